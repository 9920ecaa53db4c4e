"""GDCM in a process of its own.

Over some damaged pixels it ends the process that it runs in (an exception of C++ that nobody catches); over others it
goes on, and says so to stderr alone. A process of its own can end without harm, and what it says can be heard.
"""

import atexit
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import UserError

LIMIT_S = 120.0
"""For one image. The largest that is taken needs 20 s."""
DAMAGE = re.compile(rb"corrupt|premature|bogus|invalid|unsupported|not defined", re.IGNORECASE)
"""What its libraries say on stderr about pixels that they then give all the same."""


class _Child:
    """A running decoder, asked one thing at a time."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vaegan.gdcm_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )

    def ask(self, question: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Raises OSError or EOFError once the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(LIMIT_S, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            self.process.stdin.write(json.dumps(question | {"size": len(data)}).encode() + b"\n" + data)
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            answer = json.loads(line)
            pixels = self.process.stdout.read(answer.get("size", 0))
            if len(pixels) < answer.get("size", 0):
                raise EOFError
            return answer, pixels
        finally:
            timer.cancel()

    def close(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was written can't be flushed any more
                pass
        self.process.wait()


_lock = threading.Lock()
_child: _Child | None = None


def decode_apart(syntax: str, data: bytes, options: dict[str, Any]) -> tuple[np.ndarray, str]:
    """An encapsulated image through pydicom's GDCM plugin: stored pixels, and their photometric interpretation.

    Args:
        syntax: the transfer syntax.
        data: the value of Pixel Data.
        options: what pydicom's `Decoder.as_array` wants to know of a buffer.

    Raises:
        UserError: the pixels are damaged.
    """
    global _child
    with _lock:
        if _child is None or _child.owner != os.getpid():  # a fork must not speak to its parent's
            _child = _Child()
        try:
            answer, pixels = _child.ask({"syntax": syntax, "options": options}, data)
        except (OSError, EOFError, ValueError):
            _child.close()
            _child = None
            raise UserError("damaged compressed pixels, over which the decoder broke down") from None
    if "error" in answer:
        raise UserError(f"damaged compressed pixels ({answer['error']})")
    return np.frombuffer(pixels, answer["dtype"]).reshape(answer["shape"]), answer["photometric"]


def _close() -> None:
    if _child is not None and _child.owner == os.getpid():
        _child.close()


atexit.register(_close)


# ---------------------------------------------------------------------------------------------------------------------
# The other side


def _serve() -> None:
    """Answer until stdin ends. What libraries write to stdout or stderr goes to a file that is looked at."""
    import importlib
    import logging
    import warnings

    gdcm = importlib.import_module("gdcm")
    for off in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
        off()  # it traces much that is harmless; the libraries inside it speak for themselves
    from pydicom.pixels.decoders.base import get_decoder

    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    answers = os.fdopen(os.dup(1), "wb")
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        while line := sys.stdin.buffer.readline():
            question = json.loads(line)
            data = sys.stdin.buffer.read(question["size"])
            pixels = b""
            try:
                decoder = get_decoder(question["syntax"])
                array, found = decoder.as_array(data, index=0, decoding_plugin="gdcm", **question["options"])
                pixels = np.ascontiguousarray(array).tobytes()
                answer = {"shape": array.shape, "dtype": array.dtype.str, "size": len(pixels)}
                answer["photometric"] = str(found["photometric_interpretation"])
            except Exception:  # its words are Python's about what GDCM didn't give
                answer = {"error": "GDCM can't decode them"}
            said.seek(0)
            if DAMAGE.search(said.read()):
                answer, pixels = {"error": "GDCM finds them corrupt"}, b""
            said.seek(0)
            said.truncate()
            answers.write(json.dumps(answer).encode() + b"\n" + pixels)
            answers.flush()


if __name__ == "__main__":
    _serve()
