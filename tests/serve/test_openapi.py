"""The OpenAPI document: it is valid, its examples run, and Schemathesis finds no answer that it doesn't announce.

AUGRAY_FUZZ_EXAMPLES is how many random requests each operation gets; set it to thousands for a long run by hand.
"""

import asyncio
import copy
import io
import os
import shutil
from collections import Counter
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.engine import events, from_schema

from serve.access.keyfile import SCOPES, Limits

EXAMPLES = int(os.environ.get("AUGRAY_FUZZ_EXAMPLES", "15"))
SECRET = "augray_a-key-for-tests-only"
PROBLEM = "application/problem+json"
UPLOADS = ("/v1/encode", "/v1/reconstruct", "/v1/anomaly")
CONFIG: dict[str, Any] = {
    "seed": 5,
    "generation": {"max-examples": EXAMPLES, "deterministic": True, "database": "none"},
    "headers": {"X-API-Key": SECRET},
    "checks": {
        "negative_data_rejection": {"expected-statuses": ["4xx"]},  # 413 too, which isn't among its own
        # Off: a document can't say which models and classes there are now, and any other name is 422 or 404. Requests
        # with names that exist have a test of their own, where it is on.
        "positive_data_acceptance": {"enabled": False},
        # Off: they are about objects that requests make and delete, of which there are none here.
        "use_after_free": {"enabled": False},
        "ensure_resource_availability": {"enabled": False},
        "object_level_authorization": {"enabled": False},
    },
    # All others are on: not_a_server_error, status_code_conformance, content_type_conformance,
    # response_headers_conformance, response_schema_conformance, missing_required_header, unsupported_method,
    # allow_header_conformance, ignored_auth.
}


@st.composite
def films(draw: st.DrawFn) -> bytes:
    """An image file of some format, mode and size that the service takes; any type may be announced for it."""
    mode, format = draw(
        st.sampled_from([
            ("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("I;16", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG"),
            ("RGB", "BMP"), ("L", "TIFF"), ("I;16", "TIFF"), ("F", "TIFF"),
        ])
    )  # fmt: skip
    height, width = draw(st.integers(8, 60)), draw(st.integers(8, 60))  # fewer, and a JPEG may lose what differs
    ramp = np.arange(height * width, dtype=np.float32).reshape(height, width) % 250
    if mode in ("F", "I;16"):
        image = Image.fromarray(ramp if mode == "F" else ramp.astype(np.uint16) * 200)
    else:
        image = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, format=format)
    return file.getvalue()


schemathesis.openapi.media_type(
    "image/png", films(), aliases=["image/jpeg", "image/bmp", "image/tiff", "application/octet-stream"]
)


@pytest.fixture(scope="module")
def keyed(service_of, make_key):
    """Small limits: what is granted is made at once. Without quotas: 429 would hide what else goes wrong."""
    limits = {"max_count": 40, "max_upload_bytes": 100_000, "max_upload_pixels": 100_000}
    return service_of(keys=[make_key(scopes=frozenset(SCOPES))], **limits)


@pytest.fixture(scope="module")
def document(keyed) -> dict[str, Any]:
    return keyed.get("/openapi.json").json()


@pytest.fixture
def operations(document) -> dict[str, dict[str, Any]]:
    """By "METHOD /path"."""
    return {f"{m.upper()} {path}": o for path, methods in document["paths"].items() for m, o in methods.items()}


def schema_of(document: dict[str, Any], service, config: dict[str, Any]):
    """The document as Schemathesis has it, whose requests go to the service in process."""
    api = service._transport.app

    async def app(scope, receive, send) -> None:
        # Failing here is how an application says that it has no lifespan. Schemathesis would start it in an event loop
        # of its own and end it with the process; the models are loaded already.
        assert scope["type"] == "http"
        await api(scope, receive, send)

    # A copy: Schemathesis writes links that it infers into the document.
    schema = schemathesis.openapi.from_dict(copy.deepcopy(document), config=schemathesis.Config.from_dict(config))
    schema.app = app
    return schema


def broken_promises(schema) -> tuple[Counter[str], list[str]]:
    """What Schemathesis asked (requests by operation) and found wrong: by examples, at the edges, and at random.

    Its engine and not its pytest decorators, whose fixtures don't work with pytest 9.2.
    """
    asked: Counter[str] = Counter()
    found = []
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            asked.update(case.value.operation.label for case in event.recorder.cases.values())
            nodes = (node for nodes in event.recorder.checks.values() for node in nodes)
            for info in (node.failure_info for node in nodes if node.failure_info):
                found.append(f"{info.failure.operation}: {info.failure}\n{info.code_sample[:1500]}")
        elif isinstance(event, events.NonFatalError | events.FatalError):
            found.append(f"Schemathesis itself: {event}")
    print(f"{asked.total()} requests: {dict(asked)}")
    return asked, found


def test_no_request_gets_an_answer_that_the_document_does_not_announce(document, operations, keyed):
    asked, found = broken_promises(schema_of(document, keyed, CONFIG))
    assert not found, f"{len(found)} of {asked.total()}, the first:\n{found[0]}"
    assert set(asked) == set(operations)


def test_a_request_as_the_document_describes_it_with_names_that_exist_is_granted(document, keyed):
    config = CONFIG | {
        "checks": {name: check for name, check in CONFIG["checks"].items() if name != "positive_data_acceptance"},
        "generation": CONFIG["generation"] | {"mode": "positive"},
    }
    config["checks"]["positive_data_acceptance"] = {"expected-statuses": ["2xx"]}
    schema = schema_of(with_names(document), keyed, config)
    # 5.0 is an integer to JSON Schema; the service is stricter on purpose (serve/schemas.py).
    schema.hook("map_body")(lambda context, body: whole_numbers(body) if isinstance(body, dict) else body)
    asked, found = broken_promises(schema)
    assert not found, f"{len(found)} of {asked.total()}, the first:\n{found[0]}"
    assert keyed.backend.batcher.requests == 0


def whole_numbers(body: dict[str, Any]) -> dict[str, Any]:
    """The same with 5 for 5.0."""
    inner = {name: whole_numbers(value) for name, value in body.items() if isinstance(value, dict)}
    whole = {name: int(value) for name, value in body.items() if isinstance(value, float) and value.is_integer()}
    return body | inner | whole


NAMES: dict[str, dict[str, Any]] = {
    "model": {"const": "chest"},
    "version": {"enum": ["1", "2"]},
    "class": {"enum": ["normal", "consolidation", "effusion"]},
    "classes": {"enum": ["normal", "consolidation", "effusion"]},
    "latent": {"enum": ["prior", "mixture"]},
    # Two limits that a schema can't say: that of an operator, and of start + count.
    "count": {"type": "integer", "minimum": 1, "maximum": 40},
    "start": {"type": "integer", "minimum": 0, "maximum": 2**62},
    "to": {"type": "string", "pattern": r"^[0-9]{1,18}/[0-9]{1,18}$"},
}


def with_names(document: dict[str, Any]) -> dict[str, Any]:
    """The document narrowed to what a registry holds, and to what depends on it: one class of one model."""
    document = copy.deepcopy(document)
    for name in ("SampleRequest", "InterpolateRequest"):
        schema = document["components"]["schemas"][name]
        for field in set(schema["properties"]) & set(NAMES) - {"to"}:
            schema["properties"][field] = NAMES[field]
        del schema["properties"]["labels"]  # either it or class
        schema["required"] = [*schema["required"], "class"]
    for path, methods in document["paths"].items():
        for parameter in (
            methods.get("get", methods.get("post"))["parameters"] if "{" in path or path in UPLOADS else ()
        ):
            name = parameter["name"]
            if name in NAMES:
                parameter["schema"] = NAMES[name]
            if name == "class":
                parameter |= {"required": True, "schema": {"type": "array", "items": NAMES[name]}}
                parameter["schema"] |= {"minItems": 1, "maxItems": 1}
            if name == "to":
                parameter["required"] = True  # `at` means nothing without it
    return document


def test_the_document_is_openapi_3_1_and_describes_every_operation(document, operations):
    assert document["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(document).validate()
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
    for name, operation in operations.items():
        assert operation["summary"], name
        assert len(operation["description"]) > 10, name
        assert operation["tags"], name


def test_every_problem_that_is_announced_is_one_and_every_answer_has_an_id(operations):
    for name, operation in operations.items():
        for status, answer in operation["responses"].items():
            assert "X-Request-ID" in answer["headers"], (name, status)
            if status >= "400":
                assert list(answer["content"]) == [PROBLEM], (name, status)


def test_every_example_runs(document, operations, keyed, film):
    ran = set()
    for name, operation in operations.items():
        method, url = name.split(" ")
        query = {}
        for parameter in operation.get("parameters", ()):
            if "example" in parameter and parameter["in"] == "path":
                url = url.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
            elif "example" in parameter:
                query[parameter["name"]] = parameter["example"]
        contents = operation.get("requestBody", {}).get("content", {})
        bodies: list[dict[str, Any]] = [{}]
        if "application/json" in contents:
            bodies = [{"json": example["value"]} for example in contents["application/json"]["examples"].values()]
        headers = {"X-API-Key": SECRET} | ({"Content-Type": "image/png"} if "image/png" in contents else {})
        for body in [{"content": film}] if "image/png" in contents else bodies:
            answer = keyed.request(method, url, params=query, headers=headers, **body)
            assert answer.status_code == 200, (name, answer.text)
            media_type = answer.headers["content-type"].split(";")[0]
            assert media_type in operation["responses"]["200"]["content"], name
            ran.add(name)
    assert ran == set(operations)


URLS = {
    "{model}/{version}": "chest/2",
    "{classes}/{seed}/{index}": "normal/1/0",
    **{path: f"{path}?model=chest&class=normal" for path in UPLOADS},
}
ORDER = {"model": "chest", "version": "2", "class": "normal"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/samples": ORDER | {"count": 2},
    "/v1/interpolate": ORDER | {"from": {"seed": 1}, "to": {"seed": 2}, "steps": 2},
}


def refusals(name: str, film: bytes, service, broken, other_host) -> dict[str, int]:
    """Each status that an operation announces, and what a request that ought to get it gets.

    Args:
        service: with the keys "everything" and "poor", which may have one image a day.
        broken: the same with models that can't be loaded.
        other_host: a service without keys, asked from elsewhere.
    """
    method, path = name.split(" ")
    url = path
    for part, replacement in URLS.items():
        url = url.replace(part, replacement)
    good: dict[str, Any] = {"headers": {"X-API-Key": "everything"}}
    if path in UPLOADS:
        good = {"content": film, "headers": good["headers"] | {"Content-Type": "image/png"}}
    elif path in BODIES:
        good["json"] = BODIES[path]

    def ask(service=service, url: str = url, headers: dict[str, str] | None = None, content: Any = None) -> int:
        request = good | {"headers": good["headers"] | (headers or {})}
        if content is not None:
            request = {"content": content, "headers": {"Content-Type": "application/json"} | request["headers"]}
        return service.request(method, url, **request).status_code

    async def half():
        yield b"{"
        await asyncio.Event().wait()

    bad = {"/v1/samples": b"{}", "/v1/interpolate": b"{}"}.get(path, b"no image" if path in UPLOADS else None)
    trials = {
        "304": lambda: ask(headers={"If-None-Match": "*"}),
        "400": lambda: ask(content=b"\xff"),
        "401": lambda: ask(headers={"X-API-Key": "unknown"}),
        "403": lambda: ask(other_host),
        "404": lambda: ask(url=url.replace("chest", "nobody")),
        "406": lambda: ask(headers={"Accept": "text/html"}),
        "408": lambda: ask(content=half()),
        "413": lambda: ask(content=b" " * 100_001),
        "415": lambda: ask(headers={"Content-Type": "text/plain"}),
        "422": lambda: ask(url=f"{url}?truncation=9") if bad is None else ask(content=bad),
        "429": lambda: max(ask(headers={"X-API-Key": "poor"}) for _ in range(2)),
        "503": lambda: ask(broken),
    }
    if method == "GET":  # a body is refused there too, but who sends one?
        del trials["408"], trials["413"]
    return {status: trials[status]() for status in trials}


def test_an_operation_announces_exactly_the_refusals_that_occur(
    operations, service_of, make_key, registry, tmp_path, film
):
    root = shutil.copytree(registry, tmp_path / "registry")
    for folder in root.glob("*/*"):
        (folder / "model.json").write_text("{")
    keys = [
        make_key("everything", "everything", scopes=frozenset(SCOPES)),
        make_key("poor", "poor", scopes=frozenset(SCOPES), limits=Limits(images_per_day=1)),
    ]
    options: dict[str, Any] = {"keys": keys, "max_upload_bytes": 100_000, "body_timeout_s": 0.2}
    service, broken = service_of(**options), service_of(registry=root, **options)
    other_host = service_of(peer="192.0.2.1")
    for name, operation in operations.items():
        found = refusals(name, film, service, broken, other_host)
        occur = {status for status, got in found.items() if str(got) == status}
        assert occur == set(operation["responses"]) - {"200"}, (name, found)
