"""Whatever is sent, the answer is short, is a problem or a success, and tells nothing about this machine.

AUGRAY_FUZZ_EXAMPLES is how many requests each kind of fuzzing sends; set it to thousands for a long run by hand.
"""

import asyncio
import contextlib
import gzip
import io
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from serve.api import make_api
from serve.backend import Backend
from serve.config import ServiceConfig
from serve.security import HEADERS
from vaegan.images import ROWS, decode

EXAMPLES = int(os.environ.get("AUGRAY_FUZZ_EXAMPLES", "40"))
WORK_S = 20
"""A hang, and not slowness: everything here takes milliseconds on a quiet machine."""
SOURCES = (str(Path(__file__).parents[2]), sys.prefix, str(Path.home()) + "/", "site-packages")
"""What no answer may hold: where this code, its environment and its user are."""
GOOD = {"model": "chest", "class": "normal"}
BETWEEN = GOOD | {"from": {"seed": 1}, "to": {"seed": 2}, "steps": 3}
IMAGE = "/v1/models/chest/2/images/normal/1/0.png"
UPLOAD = b"model=chest&class=normal"
fuzzed = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@dataclass
class Exchange:
    """One request as an ASGI server hands it to the application, and what came back."""

    service: Any
    method: str = "GET"
    target: bytes = b"/"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: list[bytes] = field(default_factory=lambda: [b""])
    """Its parts. A client that stops sending is one whose last part never comes: see `stops`."""
    stops: bool = False
    waited_for: bool = False
    """Whether the application asked for more than came."""
    status: int = 0
    answered: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    took_s: float = 0.0

    def run(self) -> "Exchange":
        asyncio.run(self.exchange())
        return self

    async def exchange(self) -> None:
        path, _, query = self.target.partition(b"?")
        scope = {
            "type": "http", "method": self.method, "path": unquote(path.decode("latin-1")), "raw_path": path,
            "query_string": query, "headers": self.headers, "root_path": "", "client": ("127.0.0.1", 5),
            "server": ("service", 80), "scheme": "http", "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
        }  # fmt: skip
        parts = list(self.body)

        async def receive() -> dict[str, Any]:
            if not parts:
                self.waited_for = True
                await asyncio.Event().wait()
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts) or self.stops}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.answered = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in message["headers"]}
            self.content += message.get("body", b"")

        began_s = time.monotonic()
        await asyncio.wait_for(self.service._transport.app(scope, receive, send), 60)
        self.took_s = time.monotonic() - began_s


def check(exchange: Exchange, *also: int) -> None:
    """What holds for every answer. `also`: statuses from 500 on that are documented for it."""
    text = exchange.content.decode("latin-1")
    assert exchange.status < 500 or exchange.status in also, text[:500]
    assert exchange.took_s < WORK_S
    for name, value in HEADERS.items():
        assert name == "Cache-Control" or exchange.answered[name.lower()] == value
    assert re.fullmatch("[A-Za-z0-9._-]{1,64}", exchange.answered["x-request-id"])
    if exchange.status < 400:
        return
    assert exchange.answered["content-type"] == "application/problem+json"
    if exchange.method != "HEAD":
        assert len(exchange.content) < 2000
        problem = json.loads(exchange.content)
        assert problem["status"] == exchange.status
        assert problem["request_id"] == exchange.answered["x-request-id"]
        assert 20 < len(problem["detail"]) < 400
        assert "\n" not in problem["detail"]
        assert "Traceback" not in text
        assert not any(source in text for source in SOURCES)


@pytest.fixture(scope="module")
def small(service_of):
    return service_of(max_count=20, max_body_bytes=20_000, max_upload_bytes=200_000, max_upload_pixels=100_000)


# ------------------------------------------------------------------------------------------------------------- bodies
texts = st.text(max_size=30) | st.text(st.characters(categories=["Cs", "Cc", "Co", "So"]), max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | texts
known = st.sampled_from(
    [
        "chest",
        "1",
        "2",
        "plain",
        "findings",
        "normal",
        "Mass",
        "prior",
        "mixture",
        0,
        1,
        3,
        2**63 - 1,
        2**63,
        1e308,
        -0.0,
    ]
)
values = st.recursive(
    scalars | known,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([*BETWEEN, "version", "labels", "latent", "truncation", "count", "seed", "start", "__class__"])


@st.composite
def orders(draw: st.DrawFn) -> Any:
    """An order with some fields put wrong, or anything."""
    if draw(st.integers(0, 4)) == 0:
        return draw(values)
    order = dict(draw(st.sampled_from([GOOD, BETWEEN, {"model": "findings", "labels": ["Mass"]}])))
    order |= draw(st.dictionaries(fields, values, max_size=3))
    for name in draw(st.lists(fields, max_size=1)):
        order.pop(name, None)
    return order


def encoded(order: Any, encoding: str) -> bytes:
    if encoding == "deep":
        return b'{"model": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    if encoding == "twice":
        return json.dumps(order).encode().removesuffix(b"}") + b', "model": "plain", "model": 7}'
    if encoding == "gzip":
        return gzip.compress(json.dumps(order).encode())
    return json.dumps(order, ensure_ascii=encoding == "ascii").encode(encoding, "surrogatepass")


encodings = st.sampled_from(["ascii", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "deep", "twice", "gzip"])
types = st.sampled_from(
    [b"application/json"] * 6 + [b"text/json; charset=utf-7", b"application/json; charset=\xff", b""]
)


@fuzzed
@given(orders(), encodings, types, st.sampled_from([b"/v1/samples", b"/v1/interpolate"]))
def test_no_json_body_breaks_the_service(small, order, encoding, type, path):
    headers = [(b"content-type", type)] + [(b"content-encoding", b"gzip")] * (encoding == "gzip")
    check(Exchange(small, "POST", path, headers, [encoded(order, encoding)]).run())


@fuzzed
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.sampled_from([b"/v1/samples", b"/v1/encode"]))
@example([b"\xef\xbb\xbf{}"], b"/v1/samples")
@example([b" " * 10_000, b" " * 10_001], b"/v1/samples")
def test_no_bytes_in_any_pieces_break_the_service(small, pieces, path):
    check(Exchange(small, "POST", path, [(b"content-type", b"application/json")], pieces).run())


# ------------------------------------------------------------------------------------------------------------- images
def image_files() -> list[bytes]:
    """One of each kind that the service has to tell apart from damage: modes, compressions, frames, metadata."""
    y, x = np.mgrid[:24, :31]
    grey = ((x * 7 + y * 5) % 251).astype(np.uint8)
    plain = Image.fromarray(grey)
    about = Image.Exif()
    about[0x0112], about[0x010E] = 6, "x" * 300
    modes = {"PNG": "1 L LA P RGB RGBA", "JPEG": "L RGB CMYK", "BMP": "1 L RGB", "TIFF": "1 L P RGB CMYK"}
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (plain.convert(mode), format, {}) for format, names in modes.items() for mode in names.split()
    ]
    kinds += [(Image.fromarray(grey.astype(np.uint16) * 250), format, {}) for format in ("PNG", "TIFF")]
    kinds += [(Image.fromarray(grey.astype(kind)), "TIFF", {}) for kind in (np.float32, np.int32)]
    kinds += [(plain, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    kinds += [(plain, format, {"exif": about}) for format in ("PNG", "JPEG", "TIFF")]
    kinds += [
        (plain, format, {"save_all": True, "append_images": [plain.rotate(90)] * 3}) for format in ("PNG", "TIFF")
    ]
    kinds += [(plain, "JPEG", {"progressive": True}), (plain, "TIFF", {"big_tiff": True})]
    kinds += [(plain, "PNG", {"icc_profile": b"\0" * 200})]
    files = []
    for image, format, options in kinds:
        file = io.BytesIO()
        image.save(file, format=format, **options)
        files.append(file.getvalue())
    return files


FILES = image_files()
places = st.integers(0, 60) | st.integers(0, 400) | st.integers(0, 20_000)
extremes = st.sampled_from(
    [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\5\0", b"\x0c\0"]
)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """An image file with bytes changed, cut out, cut off or taken from another; checksums of a PNG are put right."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(places) % max(len(data), 1)
        kind = draw(st.sampled_from(["bytes", "extreme", "extreme", "cut out", "cut off", "other", "again"]))
        if kind == "bytes":
            data[at : at + 2] = draw(st.binary(min_size=1, max_size=2))
        elif kind == "extreme":
            change = draw(extremes)
            data[at : at + len(change)] = change
        elif kind == "cut out":
            del data[at : at + draw(st.integers(1, 20))]
        elif kind == "cut off":
            del data[max(at, 8) :]
        elif kind == "other":
            other = draw(st.sampled_from(FILES))
            start = draw(places) % len(other)
            data[at : at + 12] = other[start : start + 12]
        else:
            data[at:at] = data[at : at + 40]
    return with_checksums(bytes(data)) if data[:4] == b"\x89PNG" and draw(st.booleans()) else bytes(data)


def with_checksums(png: bytes) -> bytes:
    whole, at = bytearray(png), 8
    while at + 12 <= len(whole):
        end = at + 8 + int.from_bytes(whole[at : at + 4])
        if end + 4 > len(whole):
            break
        whole[end : end + 4] = struct.pack(">I", zlib.crc32(whole[at + 4 : end]))
        at = end + 4
    return bytes(whole)


def upload(service, data: bytes, path: bytes = b"/v1/encode", type: bytes = b"image/png") -> Exchange:
    return Exchange(service, "POST", path + b"?" + UPLOAD, [(b"content-type", type)], [data]).run()


@pytest.mark.parametrize("number", range(len(FILES)))
def test_the_files_that_are_damaged_below_are_taken_as_they_are(small, number):
    assert upload(small, FILES[number]).status == 200


@settings(fuzzed, max_examples=5 * EXAMPLES)
@given(damaged_files(), st.sampled_from([b"/v1/encode", b"/v1/reconstruct", b"/v1/anomaly"]))
def test_no_damaged_image_breaks_the_service(small, data, path):
    check(upload(small, data, path))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def tiff(width: int, height: int, strips: int, tag: int = 273) -> bytes:
    """A TIFF that names one byte so many times, as strips (273) or tiles (324)."""
    tile = tag == 324
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    at = 8 + 2 + 9 * 12 + 4
    entries += [(322, 3, 1, 1), (323, 3, 1, 1), (324, 3, strips, at), (325, 3, strips, at)] if tile else [
        (273, 3, strips, at), (277, 3, 1, 1), (278, 4, 1, 1), (279, 3, strips, at)
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, 9) + directory + b"\0" * 4 + b"\1\0" * strips + b"\1\2"


def progressive(scans: int) -> bytes:
    """A JPEG whose last scan comes again and again."""
    pixels = np.zeros((300, 300), np.uint8)
    pixels[0, 0] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * scans + data[-2:]


def fractional_offset() -> bytes:
    """A TIFF whose pixels begin at a fraction of a byte, at which Pillow fails with TypeError."""
    start = struct.pack("<HHI", 273, 3, 1)
    return tiff(2, 1, 1).replace(start, struct.pack("<HHI", 273, 11, 1))


def bmp(width: int, height: int, compression: int, body: bytes) -> bytes:
    """8-bit BMP with 256 black colours."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + b"\0" * 1024 + body


pixel = chunk(b"IDAT", zlib.compress(b"\0\1\2\0\3\4"))
unpacks = b"a\0\0" + zlib.compress(b"x" * 10**8)
BOMBS = {
    "a PNG of 2^31 pixels a side": (png(2**31 - 1, 2**31 - 1, pixel), 413),
    "a PNG of 100 megapixels": (png(10_000, 10_000, chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000))), 413),
    "a PNG without pixels": (png(0, 0, pixel), 422),
    "a text that unpacks to 100 MB": (png(2, 2, chunk(b"zTXt", unpacks), pixel), 422),
    "a profile that unpacks to 100 MB": (png(2, 2, chunk(b"iCCP", unpacks), pixel), None),
    "a JPEG of 1000 scans": (progressive(1000), 422),
    "a TIFF of 60,000 strips": (tiff(1, 60_000, 60_000), 422),
    "a TIFF of 60,000 tiles": (tiff(300, 200, 60_000, 324), 422),
    "a TIFF whose pixels begin at a fraction of a byte": (fractional_offset(), 422),
    "a BMP that is run-length encoded": (bmp(9, 9, 1, b"\1\7" * 81 + b"\0\1"), 422),
    "a BMP of negative size": (bmp(-5, -5, 0, b""), 413),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_is_made_to_take_long_or_much_is_refused(small, name):
    data, status = BOMBS[name]
    exchange = upload(small, data)
    check(exchange)
    assert status is None or exchange.status == status, exchange.content


def test_a_tall_film_of_sixteen_bits_is_scaled_by_its_own_range_in_whatever_pieces():
    values = np.arange(2 * ROWS * 3 + 6).reshape(-1, 3) * 40 + 1000  # more rows than two pieces
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(file, format="PNG")
    expected = np.round((values - values.min()) * (255 / (values.max() - values.min())))
    np.testing.assert_array_equal(decode(file.getvalue())[:, :, 0], expected)


# ------------------------------------------------------------------------------------------ headers, paths and queries
headers = st.lists(
    st.tuples(
        st.sampled_from(
            [b"accept", b"content-type", b"if-none-match", b"x-api-key", b"x-request-id", b"host", b"range"]
        )
        | st.sampled_from([b"content-length", b"cookie", b"origin", b"transfer-encoding", b"x-forwarded-for"]),
        st.binary(max_size=60)
        | st.sampled_from(
            [b"*/*;q=nan", b"image/*;q=1e999", b",;=,,", b'W/"', b"\xff" * 50, b"a" * 5000, b"bytes=0-0"]
        ),
    ),
    max_size=5,
)


@fuzzed
@given(headers, st.sampled_from(["POST", "GET", "HEAD", "OPTIONS", "PATCH", "\u017fERVE"]))
@example([(b"accept", b"image/png;q=" + b"9" * 5000)], "POST")
@example([(b"x-request-id", b"a\r\nX-Injected: 1")], "GET")
def test_no_header_breaks_the_service(small, headers, method):
    own = [] if any(name == b"content-type" for name, _ in headers) else [(b"content-type", b"application/json")]
    target, body = (b"/v1/samples", json.dumps(GOOD).encode()) if method == "POST" else (IMAGE.encode(), b"")
    exchange = Exchange(small, method, target, headers + own, [body]).run()
    check(exchange)
    assert "x-injected" not in exchange.answered


@fuzzed
@given(st.binary(max_size=80) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"\xff\xfe")
@example("augray_\u20ac".encode())
def test_no_presented_key_breaks_a_service_that_has_keys(keyed, presented):
    exchange = Exchange(keyed, "GET", b"/v1/models", [(b"x-api-key", presented)]).run()
    check(exchange)
    assert exchange.status == 401


@pytest.fixture(scope="module")
def keyed(service_of, make_key):
    return service_of(keys=[make_key(scopes=frozenset({"sample", "reconstruct"}))])


words = (
    "v1 models chest 2 images normal 1 0.png static page.js card none -1 {seed} . .. ~ * %2e%2e %2F %00 %ff%fe %C3%BC"
)
segments = st.sampled_from([*words.split(), "", "a+b+" * 200, "9" * 5000]) | st.text(
    st.characters(max_codepoint=126, min_codepoint=33, exclude_characters="?#"), max_size=20
)
queries = st.lists(
    st.tuples(
        st.sampled_from(["truncation", "latent", "to", "at", "model", "class", "version", "%00", "a" * 3000]),
        st.sampled_from(
            ["1", "nan", "-inf", "1e999", "prior", "1/2", "%ff", "\u0663/\u0663", "9" * 19 + "/1", "chest", ""]
        )
        | st.text(max_size=20),
    ),
    max_size=4,
).map(lambda pairs: "&".join("=".join(pair) for pair in pairs).encode("utf-8", "surrogatepass"))


@settings(fuzzed, max_examples=3 * EXAMPLES)
@given(
    st.lists(segments, max_size=10).map(lambda parts: "/" + "/".join(parts)) | st.just(IMAGE),
    queries,
    st.sampled_from(["GET", "GET", "HEAD", "POST", "DELETE"]),
)
@example("/v1/models/chest/2/images/normal/\u0663/0.png", b"", "GET")
@example("//elsewhere.example/%2e%2e/", b"", "GET")
@example("/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", b"", "GET")
@example("/static/" + "a" * 5000, b"", "GET")
def test_no_path_or_query_breaks_the_service(small, path, query, method):
    target = path.encode("utf-8", "surrogatepass") + (b"?" + query if query else b"")
    exchange = Exchange(small, method, target).run()
    check(exchange)
    if "location" in exchange.answered:  # a slash too many or too few
        assert exchange.answered["location"].startswith("http://service/")


# ------------------------------------------------------------------------------------------------------- slow and gone
@pytest.mark.parametrize("path", [b"/v1/samples", b"/v1/encode?" + UPLOAD])
def test_a_client_that_stops_halfway_through_its_body_is_told_so_and_dropped(service_of, path):
    service = service_of(body_timeout_s=0.05)
    type = b"image/png" if b"encode" in path else b"application/json"
    exchange = Exchange(service, "POST", path, [(b"content-type", type)], [b"{"], stops=True).run()
    check(exchange)
    assert exchange.status == 408
    assert exchange.answered["connection"] == "close"
    assert upload(service, FILES[1]).status == 200  # nothing is held up by it


def test_an_upload_is_not_read_before_it_is_known_who_sends_it(keyed):
    exchange = Exchange(keyed, "POST", b"/v1/encode?" + UPLOAD, [(b"content-type", b"image/png")], [], stops=True).run()
    assert exchange.status == 401


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_uploads_that_are_being_read_are_counted_and_the_next_is_told_to_come_back(service_of):
    service = service_of(max_waiting=2)

    def sending(*parts: bytes) -> Exchange:
        target, headers = b"/v1/encode?" + UPLOAD, [(b"content-type", b"image/png")]
        return Exchange(service, "POST", target, headers, list(parts), stops=not parts)

    async def crowd() -> Exchange:
        slow = [sending(), sending()]
        tasks = [asyncio.create_task(exchange.exchange()) for exchange in slow]
        await until(lambda: all(exchange.waited_for for exchange in slow))
        third = sending(FILES[1])
        await third.exchange()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return third

    refused = asyncio.run(crowd())
    check(refused, 503)
    assert int(refused.answered["retry-after"]) >= 1
    assert upload(service, FILES[1]).status == 200  # their places are free again


# ------------------------------------------------------------------------------------------------------- a real socket
@pytest.fixture(scope="module")
def server(registry):
    """The application behind uvicorn, as (backend, port)."""
    backend = Backend(ServiceConfig(registry=registry, body_timeout_s=0.5, max_count=5000))
    listener = socket.create_server(("127.0.0.1", 0))
    uvicorn_server = uvicorn.Server(uvicorn.Config(make_api(backend), log_level="critical"))
    thread = threading.Thread(target=uvicorn_server.run, args=([listener],))
    thread.start()
    while not uvicorn_server.started:
        time.sleep(0.01)
    yield backend, listener.getsockname()[1]
    uvicorn_server.should_exit = True
    thread.join()
    listener.close()


def sent(port: int, data: bytes, limit: int = 10**6) -> bytes:
    """What comes back over a connection of its own until it is closed, or for two seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        answer = b""
        with contextlib.suppress(OSError):  # a server may hang up on garbage, or wait for more of it
            connection.sendall(data)
            while len(answer) < limit and (part := connection.recv(65536)):
                answer += part
        return answer


ASK = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/samples HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GARBAGE = {
    "no HTTP at all": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\xff" * 500 + b"\r\n\r\n",
    "a header without an end": ASK + b"A: " + b"a" * 200_000,
    "ten thousand headers": ASK + b"".join(b"A%d: b\r\n" % i for i in range(10_000)) + b"\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
    "a length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk of negative size": POST + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n",
    "a length of 10^30": POST + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n",
    "a byte of a path that isn't ASCII": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "a line break in a header": ASK + b"X-Request-ID: a\rX-Injected: 1\r\n\r\n",
    "garbage after a request": ASK + b"\r\n" + b"\0\1\2garbage\r\n\r\n" * 50,
    "a hundred requests at once": (ASK + b"\r\n") * 100,
    "an upgrade": ASK + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_the_server_answers_others_after_bytes_that_are_no_request(server, name):
    _, port = server
    answer = sent(port, GARBAGE[name])
    assert b"Traceback" not in answer
    assert b" 500 " not in answer
    assert b"x-injected" not in answer.lower()
    assert sent(port, ASK + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_half_a_body_over_a_socket_ends_as_408_and_a_closed_connection(server):
    _, port = server
    request = POST + b"Content-Length: 50\r\n\r\n{"
    answer = sent(port, request)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("accept", [b"application/zip", b"application/vnd.apache.arrow.stream"])
def test_a_client_that_goes_away_in_the_middle_of_its_answer_frees_its_place(server, accept):
    backend, port = server
    body = json.dumps(GOOD | {"count": 5000}).encode()
    request = POST + b"Accept: %b\r\n"
    request += b"Content-Length: %d\r\n\r\n%b"
    assert sent(port, request % (accept, len(body), body), limit=2000).startswith(b"HTTP/1.1 200")
    asyncio.run(until(lambda: backend.batcher.requests == 0 and backend.batcher.images == 0))
