"""The decoder behind LitServe, which batches concurrent requests.

    cd benchmarks; python -m common.litserve_rival --model FOLDER --port PORT

LitServe starts its worker as a new process, which must be able to import what it runs: hence a module of its own.
"""

import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from fastapi import Response

from common.service_rivals import HOST, Body, load, main, pack

REQUESTS = 16
"""Most requests in one batch."""
WAIT_S = 0.01
"""How long the first of a batch waits for others."""


class Samples(litserve.LitAPI):
    """One worker's model; a request is a body and whether PNG is wanted."""

    def __init__(self, model: Path) -> None:
        super().__init__(max_batch_size=REQUESTS, batch_timeout=WAIT_S, api_path="/v1/samples")
        self.model = model

    def setup(self, device: str) -> None:
        self.sampler = load(self.model)

    def decode_request(self, request: dict[str, Any]) -> tuple[Body, bool]:
        return Body(**request), request["png"]

    def batch(self, inputs: list[tuple[Body, bool]]) -> list[tuple[Body, bool]]:
        return inputs

    def predict(self, inputs: list[tuple[Body, bool]]) -> list[tuple[np.ndarray, bool]]:
        bodies = [body for body, _ in inputs]
        labels = np.concatenate([self.sampler.labels_of([body.class_], body.count) for body in bodies])
        seeds = np.concatenate([np.full(body.count, body.seed) for body in bodies])
        index = np.concatenate([np.arange(body.start, body.start + body.count) for body in bodies])
        pixels = np.split(self.sampler(labels, seeds, index), np.cumsum([body.count for body in bodies])[:-1])
        return list(zip(pixels, (png for _, png in inputs), strict=True))

    def unbatch(self, output: list[tuple[np.ndarray, bool]]) -> list[tuple[np.ndarray, bool]]:
        return output

    def encode_response(self, output: tuple[np.ndarray, bool]) -> Response:
        return pack(*output)


def run(model: Path, port: int) -> None:
    """Serve until terminated: an event loop in one process, the decoder in another."""
    server = litserve.LitServer(Samples(model), accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(host=HOST, port=port, log_level="warning", access_log=False, generate_client_file=False)


if __name__ == "__main__":
    sys.exit(main(run))
