"""What a client may send and what it gets as JSON."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from vaegan.latents import MAX_SEED

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
}
"""What each field should hold, in the words of an error message."""


class SampleRequest(BaseModel):
    """Images start, start + 1, ... start + count - 1 of one seed. The same request gives the same images."""

    # Strict: "5", 5.0 and true are not the integer 5; a client that sends them has a mistake worth telling.
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    EXAMPLE: ClassVar[str] = '{"model": "small", "class": "normal", "count": 4, "seed": 1}'

    model: str = Field(min_length=1, max_length=200, description="Name of the model.")
    version: str | None = Field(default=None, max_length=200, description="Its version; the latest by default.")
    class_: str | None = Field(default=None, alias="class", max_length=200, description="One class of the model.")
    labels: list[Annotated[str, Field(max_length=200)]] | None = Field(
        default=None, max_length=1000, description="Several classes at once, for models of co-occurring findings."
    )
    count: int = Field(default=1, ge=1, description="How many images; the service's limit is its operator's choice.")
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Names a sequence of images.")
    start: int = Field(default=0, ge=0, le=MAX_SEED, description="Index of the first image in that sequence.")
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


class ModelSummary(BaseModel):
    """One version of one model."""

    name: str
    version: str
    available: bool = Field(description="False when it could not be loaded; the service's log has the reason.")
    latest: bool = Field(default=False, description="True for the version that a request without one gets.")
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


PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found, what was expected, what to do next."},
    },
}


def documented(*statuses: int, content: Sequence[str] = ()) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of an operation: the problems it may answer with, and the media types of its success."""
    entries: dict[int | str, dict[str, Any]] = {
        status: {"description": "Problem", "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA}}}
        for status in statuses
        if status >= 400
    }
    if 304 in statuses:
        entries[304] = {"description": "Unchanged"}
    if content:
        binary = {"schema": {"type": "string", "format": "binary"}}
        entries[200] = {"description": "Success", "content": dict.fromkeys(content, binary)}
    return entries
