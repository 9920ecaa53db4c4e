"""The decoder behind plain FastAPI, as a user would write it, and what the same behind LitServe shares with it.

    cd benchmarks; python -m common.service_rivals --model FOLDER --port PORT

Both take the body of /v1/samples and answer with an NPZ of pixels, one PNG, or a ZIP of PNGs. They have our sampler,
one thread that decodes, and its memory settings; they check, limit, count and record nothing.
"""

import argparse
import asyncio
import io
import sys
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from vaegan.acceleration import keep_freed_memory
from vaegan.images import encode_png
from vaegan.sampler import Sampler

NPZ = "application/x-npz"
PNG = "image/png"
ZIP = "application/zip"
HOST = "127.0.0.1"


class Body(BaseModel):
    """As our service takes it."""

    model: str
    class_: str = Field(alias="class")
    count: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    start: int = Field(default=0, ge=0)


def load(model: Path) -> Sampler:
    """The sampler of a model's folder, with one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    return Sampler.from_model(model)


def pack(pixels: np.ndarray, png: bool) -> Response:
    """Images uint8 (N, H, W, C) as an answer."""
    if not png:
        buffer = io.BytesIO()
        np.savez(buffer, pixels=pixels)
        return Response(buffer.getvalue(), media_type=NPZ)
    files = [encode_png(image) for image in pixels]
    if len(files) == 1:
        return Response(files[0], media_type=PNG)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, file in enumerate(files):
            archive.writestr(f"{number:06d}.png", file)
    return Response(buffer.getvalue(), media_type=ZIP)


def run_fastapi(model: Path, port: int) -> None:
    """One process: the event loop, and one thread for the decoder."""
    sampler = load(model)
    decoder = ThreadPoolExecutor(1)
    api = FastAPI()

    def make(body: Body, png: bool) -> Response:
        labels = sampler.labels_of([body.class_], body.count)
        return pack(sampler(labels, body.seed, np.arange(body.start, body.start + body.count)), png)

    @api.post("/v1/samples")
    async def samples(body: Body, request: Request) -> Response:
        png = request.headers["accept"] != NPZ
        return await asyncio.get_running_loop().run_in_executor(decoder, make, body, png)

    @api.get("/health")
    async def health() -> str:
        return "ok"

    uvicorn.run(api, host=HOST, port=port, log_level="warning", access_log=False)


def main(run: Callable[[Path, int], None], argv: Sequence[str] | None = None) -> int:
    """Serve a model at a port, both from the command line, until terminated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args(argv)
    run(arguments.model, arguments.port)
    return 0


if __name__ == "__main__":
    sys.exit(main(run_fastapi))
