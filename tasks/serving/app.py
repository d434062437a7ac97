"""The HTTP application: OpenAI's API, health, metrics and the chat page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any

import orjson
import prometheus_client
from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from tasks.serving import translate
from tasks.serving.observe import Seen
from tasks.serving.problems import CLIENT_GONE, TYPES, ApiError, ClientGoneError, field_of, of_validation
from tasks.serving.requests import ChatRequest, CompletionRequest
from tasks.serving.respond import Chat, Text
from tasks.serving.responses import (
    Alive,
    ChatCompletion,
    ChatCompletionChunk,
    ErrorBody,
    Health,
    Model,
    ModelList,
    TextCompletion,
)
from tasks.serving.service import Service

_REFUSALS = (400, 401, 404, 405, 408, 413, 415, 429, 500, 503, 504)
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": TYPES[status].replace("_", " ")} for status in _REFUSALS
}
Within = Annotated[
    float | None,
    Header(alias="x-vinoflow-within-s", gt=0, allow_inf_nan=False, description="Give up after so many seconds."),
]
_PAGE = files("tasks.serving") / "page"
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def _streams(of: str) -> dict[int | str, dict[str, Any]]:
    """Return how a route that may stream is documented: its events are `of` that schema."""
    what = f"Whole, or with stream: true a stream of events: {of}, then [DONE]; an error ends it."
    kinds = [
        {"contentMediaType": "application/json", "contentSchema": {"$ref": f"#/components/schemas/{name}"}}
        for name in (of, ErrorBody.__name__)
    ]
    data = {"type": "string", "anyOf": [*kinds, {"const": "[DONE]"}]}
    one = {"type": "object", "properties": {"data": data}, "required": ["data"], "description": "One event."}
    return {**_ERRORS, 200: {"description": what, "content": {"text/event-stream": {"schema": one}}}}


class _Orjson(Request):
    """A request whose JSON is read strictly: no NaN, no lone surrogates, no nesting without end."""

    async def json(self) -> Any:
        """Return the body's content."""
        return orjson.loads(await self.body())


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Hand on requests that read their JSON strictly."""
        handler = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handler(_Orjson(request.scope, request.receive))

        return strictly


def _words(error: RequestValidationError) -> ApiError:
    """Return the first thing that is wrong with a request, with the field's path as a client wrote it."""
    problem = error.errors()[0]
    place, *path = problem["loc"]
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problem['ctx']['error']}", code="invalid_json")
    return of_validation(problem, ".".join(map(str, path)) if place != "body" else field_of(path, error.body))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ApiError):
        told = error
    elif isinstance(error, RequestValidationError):
        told = _words(error)
    elif isinstance(error, HTTPException):
        words = {404: "there is nothing here: GET /openapi.json tells what is", 405: "this path has other methods"}
        status = error.status_code if error.status_code in TYPES else 400
        told = ApiError(status, words.get(status, str(error.detail)), headers=dict(error.headers or {}))
    else:
        told = ApiError(500, f"a bug came up; the log tells of request {request.state.seen.id}", code="bug")
    request.state.seen.failed(told)
    return JSONResponse(told.body, told.status, told.headers)


async def _gone(request: Request, _: Exception) -> Response:
    """Return what nobody will read; the log has it."""
    request.state.seen.gone()
    return Response(status_code=CLIENT_GONE)


def _answers(service: Service) -> APIRouter:
    router = APIRouter(route_class=_Route, responses=_ERRORS)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=_streams("ChatCompletionChunk"))
    async def chat(request: Request, asked: ChatRequest, within_s: Within = None) -> Response:
        """Answer a chat."""
        seen: Seen = request.state.seen
        seen.user = asked.user or ""
        replica = await service.replica_for(asked.model, seen)
        requests = translate.of_chat(asked, replica.habits)
        form = Chat(asked, seen, replica.habits.style)
        return await service.answer(
            request, requests, form, replica, model=asked.model, stream=bool(asked.stream), within_s=within_s
        )

    @router.post("/v1/completions", response_model=TextCompletion, responses=_streams("TextCompletion"))
    async def completions(request: Request, asked: CompletionRequest, within_s: Within = None) -> Response:
        """Continue raw texts."""
        seen: Seen = request.state.seen
        seen.user = asked.user or ""
        replica = await service.replica_for(asked.model, seen)
        requests = translate.of_completion(asked, replica.habits)
        form = Text(asked, seen, prompts=len(requests) // (asked.n or 1))
        return await service.answer(
            request, requests, form, replica, model=asked.model, stream=bool(asked.stream), within_s=within_s
        )

    return router


def _models(service: Service) -> APIRouter:
    router = APIRouter(responses=_ERRORS)
    follower = service.follower

    def model() -> Model:
        replica = follower.current
        if replica is None or not replica.answers:
            raise ApiError(503, "the model is being loaded: try again", headers={"retry-after": "2"})
        version = replica.version
        return Model(
            id=version.name,
            object="model",
            created=service.started,
            owned_by="vinoflow",
            version=version.version,
            digest=version.digest,
            alias=follower.alias,
            device=replica.device,
            context=replica.engine.context,
        )

    @router.get("/v1/models")
    async def models() -> ModelList:
        """Tell what is served."""
        return ModelList(object="list", data=[model()])

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str, request: Request) -> Model:
        """Tell of the model that is served, by any of its names."""
        await service.replica_for(name, request.state.seen)
        return model()

    return router


def _operations(service: Service) -> APIRouter:
    router = APIRouter(responses=_ERRORS)
    follower = service.follower

    @router.get("/health/live")
    async def live() -> Alive:
        """Tell that the process answers."""
        return Alive(alive=True)

    @router.get("/health/ready", response_model=Health, responses={503: {"model": Health}})
    async def ready() -> Response:
        """Tell whether requests are answered now (200) or have to wait (503), and whether the alias is followed."""
        health = service.health()
        return JSONResponse(health.model_dump(), 200 if health.ready else 503)

    @router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        """Tell Prometheus."""
        health, replica = service.health(), follower.current
        service.observer.present(
            replica.version if replica else None,
            running=health.running,
            waiting=health.waiting,
            ready=health.ready,
            engine_restarts=health.restarts,
            engine_peak_rss_bytes=replica.engine.peak_rss_bytes if replica and health.ready else 0,
            swap_failed=health.swap.state == "failed",
        )
        return Response(
            prometheus_client.generate_latest(service.observer.registry),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return _static("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return _static(name)

    return router


def _static(name: str) -> Response:
    found = {entry.name: entry for entry in _PAGE.iterdir()}.get(name)
    if found is None:
        raise HTTPException(404)
    kind = _KINDS.get(name.rpartition(".")[2], "application/octet-stream")
    return Response(found.read_bytes(), media_type=f"{kind}; charset=utf-8")


def application(service: Service) -> FastAPI:
    """Return the application, without what stands before it."""
    app = FastAPI(
        title="vinoflow",
        docs_url=None,  # this page and the next load scripts from strangers
        redoc_url=None,
        redirect_slashes=False,  # a path with a slash too many is not there; a redirect is no answer of ours
    )
    for routes in (_answers, _models, _operations):
        app.include_router(routes(service))
    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _refused)

    made = app.openapi

    def openapi() -> dict[str, Any]:
        """Return FastAPI's document, less the 422 that we never answer with, and with the chunks of streams."""
        if not app.openapi_schema:
            document = made()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            chunk = ChatCompletionChunk.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= {**chunk.pop("$defs", {}), "ChatCompletionChunk": chunk}
        return app.openapi_schema or {}

    app.add_exception_handler(ClientGoneError, _gone)
    app.openapi = openapi  # type: ignore[method-assign]
    return app
