"""Examples in the OpenAPI document that run as they stand against this very service."""

import copy
from typing import Any

from serve.backend import GATES, Backend
from serve.catalog import Listing
from vaegan.latents import MAX_SEED


def with_examples(document: dict[str, Any], backend: Backend) -> dict[str, Any]:
    """FastAPI's document, put right, with examples for what the service holds now and lets be asked."""
    document = copy.deepcopy(document)
    paths = document["paths"]
    _drop_foreign_problems(document)
    _exact_limits(document)
    listing = _allowed(backend, "sample")
    if listing is not None:
        order = _names(listing)
        _body(paths["/v1/samples"], one=order | {"seed": 1}, many=order | {"seed": 1, "count": 16})
        _body(paths["/v1/interpolate"], way=order | {"from": {"seed": 1}, "to": {"seed": 2}, "steps": 8})
        classes = listing.info.classes[0] if listing.info.classes else "none"
        parts = {"model": listing.info.name, "version": listing.info.version, "classes": classes, "seed": 1, "index": 0}
        for path, operations in paths.items():
            if path.startswith("/v1/models/"):
                _parameters(operations["get"], parts)
    listing = _allowed(backend, "reconstruct")
    if listing is not None:
        query: dict[str, Any] = {"model": listing.info.name, "version": listing.info.version}
        query |= {"class": [listing.info.classes[0]]} if listing.info.classes else {}
        for path in ("/v1/encode", "/v1/reconstruct", "/v1/anomaly"):
            _parameters(paths[path]["post"], query)
    return document


def _drop_foreign_problems(document: dict[str, Any]) -> None:
    """Take out the 422 that FastAPI announces wherever there are parameters: ours are problems, and announced."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _exact_limits(node: Any) -> None:
    """FastAPI writes limits as floats, and the largest seed has none: 2^63 would be in the document and refused."""
    if isinstance(node, dict):
        if node.get("maximum") == float(MAX_SEED):
            node["maximum"] = MAX_SEED
        for value in node.values():
            _exact_limits(value)
    elif isinstance(node, list):
        for value in node:
            _exact_limits(value)


def _allowed(backend: Backend, scope: str) -> Listing | None:
    """The last model of the registry that the gate lets do this."""
    for listing in reversed(list(backend.catalog.stock.listings.values())):
        refused = backend.gate.judge(listing.id, listing.privacy, GATES[scope]).refused
        if not refused and (scope == "sample" or listing.info.kind != "gan"):
            return listing
    return None


def _names(listing: Listing) -> dict[str, Any]:
    info = listing.info
    return {"model": info.name, "version": info.version} | ({"class": info.classes[0]} if info.classes else {})


def _body(operations: dict[str, Any], **examples: dict[str, Any]) -> None:
    operations["post"]["requestBody"]["content"]["application/json"]["examples"] = {
        name: {"value": value} for name, value in examples.items()
    }


def _parameters(operation: dict[str, Any], values: dict[str, Any]) -> None:
    for parameter in operation["parameters"]:
        if parameter["name"] in values:
            parameter["example"] = values[parameter["name"]]
