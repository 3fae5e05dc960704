"""The HTTP interface: the page, the models, predictions and samples, and their description.

GET  /                 the page                      GET  /healthz       whether it answers
GET  /api/models       what is served                GET  /openapi.json  all of this as OpenAPI
POST /api/predict      an input -> answers           GET  /docs          that, to read
GET  /api/sample       a sample with its label
"""

import json
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from nnx.errors import InputError
from nnx.serve import guard
from nnx.serve.network import Part
from nnx.serve.service import MAX_CELL, NotHere, Service

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MAX_MODELS = 100  # named in a request
MAX_VALUES = 10_000  # of a row, as many as a table has columns
MAX_INDEX = 2**53

Name = Annotated[str, Field(max_length=200)]
Cell = Annotated[str, Field(max_length=MAX_CELL)]


class Values(BaseModel):
    """Numbers as bytes: each is scale * int8 / 127, in base64, the last index of the shape fastest."""

    shape: list[int]
    scale: float
    data: str


class Picture(BaseModel):
    """An image: its shape is (channels, height, width), its bytes are uint8 pixels from left to right, in base64."""

    shape: list[int]
    data: str


class LayerShape(BaseModel):
    """A layer whose output is shown."""

    name: str
    title: str
    kind: Literal["maps", "units", "states", "tokens", "attention", "belief"]
    shape: list[int] = Field(description="maps, rows, columns")


class Layer(LayerShape):
    """What a layer did with the input."""

    values: Values


class Model(BaseModel):
    """A network that is served."""

    id: str
    architecture: str
    parameters: int
    test_accuracy: float | None
    validation_accuracy: float | None
    shape: list[int] = Field(description="of its input: channels, height, width; or features")
    layers: list[LayerShape]


class Column(BaseModel):
    """A column of the table that the networks were trained on."""

    name: str
    kind: Literal["number", "category"]
    features: int = Field(description="values of the input, and of the saliency, that are of this column")
    typical: str | None = Field(description="the median, or the most frequent category")
    frequent: list[str] = Field(description="the most frequent values")
    low: float | None = None
    high: float | None = None
    categories: list[str] | None = None


class Models(BaseModel):
    """What is served."""

    input: Literal["image", "row"]
    drawing: bool = Field(description="whether a drawing is like the training images")
    pictures: bool = Field(description="whether image files can be read")
    classes: list[str]
    models: list[Model]
    columns: list[Column] = Field(description="of a table")


class Question(BaseModel):
    """One input: an image file, the index of a sample, or the row of a table."""

    model_config = ConfigDict(extra="forbid")

    image: Base64Bytes | None = Field(None, description="a PNG, JPEG, WebP, GIF or BMP file, in base64")
    sample: int | None = Field(None, ge=0, le=MAX_INDEX, strict=True, description="index of a sample, see /api/sample")
    row: dict[Name, Cell | None] | None = Field(
        None, max_length=MAX_VALUES, description="column: value, as text; null for a missing value"
    )
    models: list[Name] | None = Field(None, max_length=MAX_MODELS, description="ids of those to ask; by default all")
    parts: list[Part] = Field(
        default_factory=list, max_length=10, description="what else to answer: costs time, and 10 to 100 kB"
    )

    @model_validator(mode="after")
    def _one_input(self) -> "Question":
        if sum(value is not None for value in (self.image, self.sample, self.row)) != 1:
            raise ValueError("give one of image, sample and row")
        return self


class Top(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Step(BaseModel):
    """A step of the preparation, the image after it, and the most probable classes of that image."""

    step: str
    image: Picture
    top: list[Top]


class Answer(BaseModel):
    """What a network answers."""

    model: str
    label: str
    probability: float
    probabilities: list[float] = Field(description="of each class, in the order of /api/models")
    prepared: list[Step] | None = None
    layers: list[Layer] | None = None
    saliency: Values | None = Field(
        None, description="contribution of each pixel, or feature, to the logit of the label: integrated gradients"
    )


class Answers(BaseModel):
    """An answer of each network, in the order of /api/models or of the request."""

    answers: list[Answer]


class Sample(BaseModel):
    """A sample of the first network's dataset, which it was not trained on if its split is test."""

    index: int
    count: int
    split: str
    label: str
    image: Picture | None
    row: dict[str, str | None] | None


class Health(BaseModel):
    """Whether the server answers."""

    status: Literal["ok"]
    models: int


class Problem(BaseModel):
    """What was wrong with a request."""

    error: str


def build(service: Service, allowed_hosts: guard.Hosts) -> guard.Guard:
    """The guarded application for a service."""
    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem, "description": text} for code, text in guard.REFUSALS.items()
    }
    application = FastAPI(
        title="nnx serve",
        version=version("nnx"),
        summary="Trained classifiers, and what happens inside them.",
        docs_url=None,
        redoc_url=None,
        responses=problems,
    )

    @application.get("/healthz", tags=["server"])
    async def health() -> Health:
        """Whether the server answers."""
        return Health(status="ok", models=len(service.networks))

    @application.get("/api/models", response_model=Models, tags=["networks"])
    async def models() -> Response:
        """The networks that are served, their classes and their input."""
        return _json(await service.run(lambda: service.description))

    @application.post("/api/predict", response_model=Answers, tags=["networks"], responses=_not_found(problems))
    async def predict(question: Question) -> Response:
        """The answer of each network to one input: its probabilities, and on request what happened inside it."""
        arguments = question.image, question.sample, question.row, question.models, frozenset(question.parts)
        return _json({"answers": await service.run(service.predict, *arguments)})

    @application.get("/api/sample", response_model=Sample, tags=["networks"], responses=_not_found(problems))
    async def sample(index: Annotated[int | None, Query(ge=0, le=MAX_INDEX)] = None) -> Response:
        """A sample of the dataset with its true label: the one with this index, or a random one."""
        return _json(await service.run(service.sample, index))

    for file in sorted(PAGE.iterdir()):
        if file.suffix in TYPES:
            paths = {"index.html": ["/"], "docs.html": ["/docs"]}.get(file.name, [f"/{file.name}"])
            content, media_type = file.read_bytes(), TYPES[file.suffix]
            for path in paths:
                application.add_route(path, _static(content, media_type), include_in_schema=False)

    application.add_exception_handler(RequestValidationError, _refuse_invalid)
    application.add_exception_handler(InputError, _refuse_input)
    application.add_exception_handler(HTTPException, _refuse_http)
    application.add_exception_handler(Exception, _report_bug)
    return guard.Guard(application, allowed_hosts)


def _not_found(problems: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    return {**problems, 404: {"model": Problem, "description": "no such model or sample"}}


def _static(content: bytes, media_type: str) -> Any:
    async def respond(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return respond


def _json(value: Any, status: int = 200) -> Response:
    """ASCII, so that a lone surrogate in a text can't fail."""
    return Response(json.dumps(value, allow_nan=False), status, media_type="application/json")


async def _refuse_invalid(request: Request, error: Exception) -> Response:
    """The first mistakes in a request, without its values: they may be large, or no JSON."""
    assert isinstance(error, RequestValidationError)
    mistakes = [
        ": ".join((".".join(str(part)[:60] for part in mistake["loc"]), mistake["msg"].removeprefix("Value error, ")))
        for mistake in error.errors()[:3]
    ]
    return _json({"error": "; ".join(mistakes)}, 422)


async def _refuse_input(request: Request, error: Exception) -> Response:
    return _json({"error": str(error)}, 404 if isinstance(error, NotHere) else 422)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json({"error": str(error.detail)}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _report_bug(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return _json({"error": "a bug in nnx; nnx serve has printed where"}, 500)
