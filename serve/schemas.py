"""What a client may send and what it gets as JSON."""

import http
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from vaegan.latents import MAX_SEED

MAX_STEPS = 256

EXPECTED = {
    "model": "the name of a model, as GET /v1/models lists them",
    "version": "the version of a model, as GET /v1/models lists them",
    "class": "the name of one class of the model, such as GET /v1/models lists",
    "labels": "a list of class names of the model, such as GET /v1/models lists",
    "count": "an integer from 1 up to the service's limit",
    "seed": f"an integer from 0 to {MAX_SEED}",
    "start": f"an integer from 0 to {MAX_SEED}",
    "index": f"an integer from 0 to {MAX_SEED}",
    "latent": 'the name of a source of latents, such as "prior"',
    "truncation": "a number from 0 to 2",
    "from": 'an address such as {"seed": 1, "index": 0}',
    "to": 'an address such as {"seed": 2, "index": 0}',
    "at": "a number from 0 to 1",
    "steps": f"an integer from 2 to {MAX_STEPS}",
}
"""What each field should hold, in the words of an error message."""


class Order(BaseModel):
    """What every request for images names."""

    # Strict: "5", 5.0 and true are not the integer 5; a client that sends them has a mistake worth telling.
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    EXAMPLE: ClassVar[str]

    model: str = Field(min_length=1, max_length=200, description="Name of the model.")
    version: str | None = Field(default=None, max_length=200, description="Its version; the current one by default.")
    class_: str | None = Field(default=None, alias="class", max_length=200, description="One class of the model.")
    labels: list[Annotated[str, Field(max_length=200)]] | None = Field(
        default=None, max_length=1000, description="Several classes at once, for models of co-occurring findings."
    )
    latent: str = Field(
        default="prior", max_length=40, description="Where latents come from: prior, or mixture if it has one."
    )
    truncation: float = Field(
        1.0,
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="Spread of the latents: below 1 trades variety for typicality.",
    )

    @classmethod
    def fields(cls) -> list[str]:
        """The names of the fields as JSON has them."""
        return [field.alias or name for name, field in cls.model_fields.items()]


class SampleRequest(Order):
    """Images start, start + 1, ... start + count - 1 of one seed. The same request gives the same images."""

    EXAMPLE = '{"model": "small", "class": "normal", "count": 4, "seed": 1}'

    count: int = Field(default=1, ge=1, description="How many images; the service's limit is its operator's choice.")
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Names a sequence of images.")
    start: int = Field(default=0, ge=0, le=MAX_SEED, description="Index of the first image in that sequence.")


class End(BaseModel):
    """One end of a way between two images of the same model and classes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: int = Field(ge=0, le=MAX_SEED)
    index: int = Field(default=0, ge=0, le=MAX_SEED)


class InterpolateRequest(Order):
    """Images on the way from one address to another, both ends included, at equal steps."""

    EXAMPLE = '{"model": "small", "class": "normal", "from": {"seed": 1}, "to": {"seed": 2}, "steps": 8}'

    from_: End = Field(alias="from", description="Where the way begins.")
    to: End = Field(description="Where it ends.")
    steps: int = Field(default=8, ge=2, le=MAX_STEPS, description="How many images.")


BODIES: dict[str, type[Order]] = {"/v1/samples": SampleRequest, "/v1/interpolate": InterpolateRequest}
"""What each path takes as JSON."""


class Privacy(BaseModel):
    """What the last privacy audit said of a model: pass, fail, too little data to say, or not audited."""

    images: str = Field(description="Of its synthetic images.")
    model: str = Field(description="Of what its networks say of an image that a client sends.")
    override: str | None = Field(default=None, description="Why its operator serves it in spite of that, and who.")


class ModelSummary(BaseModel):
    """One version of one model."""

    name: str
    version: str
    available: bool = Field(description="False when it could not be loaded; the service's log has the reason.")
    latest: bool = Field(default=False, description="True for the version that a request without one gets.")
    privacy: Privacy | None = Field(default=None, description="The privacy gate's verdicts.")
    serves: list[str] = Field(
        default=[],
        description="What gate and key allow: sample (its images), reconstruct (encode, reconstruct, anomaly).",
    )
    kind: str | None = None
    task: str | None = None
    classes: list[str] = []
    size: int | None = Field(default=None, description="Height and width in pixels.")
    channels: int | None = None
    latents: list[str] = []
    sha256: str | None = Field(default=None, description="Of the file with its weights.")


class ModelList(BaseModel):
    models: list[ModelSummary]
    max_count: int = Field(description="Most images that one request may ask for.")


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    status: str
    models: list[str] = Field(description="NAME/VERSION of each model that answers.")
    unavailable: list[str] = Field(description="NAME/VERSION of each model that could not be loaded.")


class Encoding(BaseModel):
    """What an encoder makes of an image: the mean and log variance of q(z|x)."""

    model: str
    version: str
    classes: list[str]
    mu: list[float]
    log_var: list[float]


class Anomaly(BaseModel):
    """How unlike its training images a model finds an image, in nats; only comparable within one model."""

    model: str
    version: str
    classes: list[str]
    score: float = Field(description="features + kl; pixels + kl for a model without a discriminator.")
    features: float | None = Field(description="Error of the reconstruction in the discriminator's maps.")
    kl: float = Field(description="Divergence of the posterior from the prior.")
    pixels: float = Field(description="Half the squared pixel error of the reconstruction, summed.")


PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found, what was expected, what to do next."},
        "request_id": {"type": "string", "description": "As in the header X-Request-ID; the log has it too."},
    },
}


def _header(description: str, **schema: Any) -> dict[str, Any]:
    """An entry for a header that an answer always has."""
    return {"description": description, "required": True, "schema": {"type": "string", **schema}}


REQUEST_ID = {"X-Request-ID": _header("The client's own, or one that was made up; the log has it too.")}
PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": _header("How to present a key.")},
    429: {"Retry-After": _header("Seconds after which to ask again.", type="integer")},
    503: {"Retry-After": _header("Seconds after which to ask again.", type="integer")},
}
SYNTHETIC_HEADERS = {
    "X-AugRay-Synthetic": _header("Every image is synthetic.", const="true"),
    "X-AugRay-Address": _header("Names the image, the first of several, for ever; percent-encoded."),
    "X-AugRay-Version": _header("The version of the model that made it."),
}
IMAGE_HEADERS = SYNTHETIC_HEADERS | {
    "X-AugRay-Count": _header("How many images.", type="integer"),
    "X-AugRay-Privacy": _header("What the last privacy audit said of the model's images; overridden or not."),
}
CACHE_HEADERS = {
    "ETag": _header("Differs where the image does."),
    "Cache-Control": _header("How long the image may be kept, and by whom."),
}


def documented(
    *statuses: int, content: Sequence[str] = (), headers: Mapping[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of an operation: the problems it may answer with, and its success.

    Args:
        content: media types of a success that isn't JSON.
        headers: of a success.
    """
    entries: dict[int | str, dict[str, Any]] = {
        status: {
            "description": http.HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA}},
            "headers": REQUEST_ID | PROBLEM_HEADERS.get(status, {}),
        }
        for status in statuses
        if status >= 400
    }
    if 304 in statuses:
        entries[304] = {"description": "Unchanged", "headers": REQUEST_ID | CACHE_HEADERS}
    entries[200] = {"description": "Success", "headers": REQUEST_ID | dict(headers or {})}
    if content:
        binary = {"schema": {"type": "string", "format": "binary"}}
        entries[200]["content"] = dict.fromkeys(content, binary)
    return entries
