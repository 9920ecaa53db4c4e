"""A client of the service: images as arrays, with the retries that Ray Serve leaves to whoever asks.

Every request names its images by address, so sending it again is safe: the second answer is the first.
"""

import io
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import numpy as np
from PIL import Image

from cluster.errors import UserError
from vaegan.shards import Images

RETRIED = frozenset({429, 500, 502, 503, 504})
"""500 too: Ray Serve answers it for the requests of a replica that died."""
LONGEST_WAIT_S = 30.0


class ServiceError(UserError):
    """The service said no; the message is its one sentence.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Talks to one service. A context manager, or `close` it.

    Args:
        url: where the service is, such as http://127.0.0.1:8000.
        api_key: sent as X-API-Key.
        timeout_s: for one request; a large one on a small host takes minutes.
        retries: how often a request is sent again after 429, 500, 502 to 504 or a broken connection.
        per_request: most images asked for in one request; larger orders are split.
        transport: how httpx sends requests; for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retries: int = 6,
        per_request: int = 256,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, self.retries, self.per_request = url.rstrip("/"), retries, per_request
        self._http = httpx.Client(
            headers={"X-API-Key": api_key} if api_key else {}, timeout=timeout_s, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """What GET /v1/models lists: one dictionary per model and version."""
        return self._send("GET", "/v1/models").json()["models"]

    def samples(
        self,
        model: str,
        classes: str | Sequence[str] = (),
        *,
        count: int,
        seed: int,
        start: int = 0,
        version: str | None = None,
        latent: str = "prior",
        truncation: float = 1.0,
    ) -> Images:
        """`count` labelled images, those that `vaegan.sample` would write for the same addresses.

        Args:
            classes: one class, or several for a model of co-occurring findings.
            version: the latest when it is None; then all parts of a large order come from the same one.

        Raises:
            ServiceError: the service refuses, or still fails after all retries.
        """
        order = {
            "model": model,
            "labels": [classes] if isinstance(classes, str) else list(classes),
            "seed": seed,
            "latent": latent,
            "truncation": truncation,
        }
        parts: list[Images] = []
        done = 0
        while done < count:
            size = min(self.per_request, count - done)
            body = order | {"version": version, "start": start + done, "count": size}
            response = self._send("POST", "/v1/samples", json=body, headers={"Accept": "application/x-npz"})
            # A new version published between two parts must not mix in.
            version = response.headers["X-AugRay-Version"]
            parts.append(_read_npz(response.content))
            done += size
        if not parts:
            raise UserError(f"count is {count}, expected 1 or more; ask for some images")
        return Images.concatenate(parts)

    def image(self, address: str) -> np.ndarray:
        """The image of one address, NAME/VERSION/CLASSES/SEED/INDEX: uint8 (H, W, C).

        Raises:
            ServiceError: as `samples`.
            UserError: `address` isn't one.
        """
        path, mark, query = address.partition("?")
        parts = path.split("/")
        if len(parts) != 5:
            raise UserError(f"{address!r} is no address, expected NAME/VERSION/CLASSES/SEED/INDEX; copy one whole")
        name, version, classes, seed, index = (quote(part, safe="+") for part in parts)
        url = f"/v1/models/{name}/{version}/images/{classes}/{seed}/{index}.png{mark}{query}"
        with Image.open(io.BytesIO(self._send("GET", url).content)) as png:
            pixels = np.asarray(png)
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(self.retries + 1):
            try:
                response = self._http.request(method, self.url + path, **options)
            except httpx.TransportError as error:
                failure = ServiceError(0, f"{self.url} does not answer ({error}); check the URL and that it runs")
                wait_s = None
            else:
                if response.is_success:
                    return response
                failure = ServiceError(response.status_code, _detail(response))
                if response.status_code not in RETRIED:
                    raise failure
                wait_s = _retry_after_s(response)
            if attempt < self.retries:
                # Doubling, and at random within it: clients that were turned away together don't return together.
                time.sleep(
                    random.uniform(0.5, 1.0) * min(0.2 * 2**attempt, LONGEST_WAIT_S) if wait_s is None else wait_s
                )
        raise failure


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        return min(max(float(response.headers["Retry-After"]), 0.0), LONGEST_WAIT_S)
    except (KeyError, ValueError):
        return None


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code}, expected images; is it this service?"


def _read_npz(data: bytes) -> Images:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        text = {n: arrays[n].astype(object) for n in ("patient_id", "image_id", "source", "model")}
        return Images(arrays["pixels"], arrays["labels"], seed=arrays["seed"], index=arrays["index"], **text)
