"""`imtalker serve`: the page, the HTTP interface, live faces; docs/live.md describes them."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from .. import __version__
from ..bundled import ASSETS
from ..errors import InputError
from .guard import Guard, is_loopback
from .refusal import Refusal, in_words
from .routes import job_routes, live_routes, source_routes
from .service import Service

log = logging.getLogger("imtalker.live")

PAGE = Path(__file__).parent / "page"
MESSAGE_BYTES = 2 * 2**20  # of one WebSocket message: a camera's picture, some seconds of sound
LINGER = 3.0  # seconds that a client may take to read what was sent before the end
CLOSING_SECONDS = 5  # that connections get to end when the server stops


def make_app(service: Service, key: str | None = None, origins: tuple[str, ...] = ()) -> FastAPI:
    """The application. key: the API key that clients need. origins: of foreign web pages that may use it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="IMTalker",
        version=__version__,
        description="One picture of a face, plus speech or a driving video, makes a talking video, on request or live.",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError):
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal):
        service.refused(refusal)
        headers = {"retry-after": str(refusal.retry_after)} if refusal.retry_after else {}
        if refusal.status in (408, 413):
            headers["connection"] = "close"  # what is still being sent is not read
        return JSONResponse({"error": str(refusal)}, refusal.status, headers)

    @app.exception_handler(404)
    async def missing(request: Request, error):
        return JSONResponse({"error": f"there is no {request.url.path} here: see /openapi.json"}, 404)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception):
        return JSONResponse({"error": in_words(error)}, 500)

    # ------------------------------------------------------------------------------------------------------- health

    @app.get("/health/live", tags=["health"], summary="Whether the process answers")
    def alive():
        return {"alive": True}

    @app.get("/health/ready", tags=["health"], summary="Whether it can work: 503 while starting or stopping")
    def ready():
        return JSONResponse({"state": service.state}, 200 if service.state == "ready" else 503)

    @app.get("/health", tags=["health"], summary="State, model and room")
    def health():
        told = {"state": service.state, "version": __version__, "key": key is not None}
        if service.state == "ready":
            talker = service.talker
            told |= {
                "model": talker.name,
                "device": str(talker.device),
                "size": talker.config.size,
                "sessions": len(service.conversations),
                "most_sessions": service.limits.sessions,
                "upload_bytes": service.limits.upload_bytes,
                "seconds": service.limits.seconds,
            }
        return told

    @app.get("/metrics", tags=["health"], summary="Numbers for Prometheus")
    def metrics():
        service.metrics.share.set(service.pace.share)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    for routes in (source_routes(service), job_routes(service), live_routes(service, key)):
        app.include_router(routes)

    # ------------------------------------------------------------------------------------------------------------ page

    @app.get("/sample.png", include_in_schema=False)
    def sample_picture():
        return FileResponse(ASSETS / "sample.png")

    @app.get("/sample.wav", include_in_schema=False)
    def sample_speech():
        return FileResponse(ASSETS / "sample.wav")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    app.add_middleware(Guard, key=key, origins=origins)
    if origins:  # outermost: a page may read what it is refused for, too
        told = ["location", "retry-after"]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=told
        )
    return app


# ---------------------------------------------------------------------------------------------------------------- serve


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """Hangs up on clients that read nothing any more: they would be waited for without end."""

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(LINGER, self.transport.abort)

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except InvalidState:  # it is closing already
            self.transport.abort()


class _Server(uvicorn.Server):
    """Tells live clients before it hangs up, and ends when starting failed."""

    def __init__(self, config: uvicorn.Config, service: Service, told: Callable[[], None]):
        super().__init__(config)
        self._service, self._told, self._ready = service, told, False

    async def on_tick(self, counter: int) -> bool:
        if not self._ready and self._service.state == "ready":
            self._ready = True
            self._told()
        return self._service.failure is not None or await super().on_tick(counter)

    async def shutdown(self, sockets=None) -> None:
        await self._service.stop()
        await super().shutdown(sockets)


def serve(
    service: Service, host: str, port: int, key: str | None, origins: tuple[str, ...], told: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM, which end it as they end other commands. told: given the address, once ready.

    Raises InputError when the address cannot be used, or is not loopback and there is no key; whatever loading raises.
    """
    if not is_loopback(host) and not key:
        raise InputError(
            f"--host {host} can be reached from elsewhere: choose an API key with --api-key, or stay on 127.0.0.1"
        )
    listening = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    try:
        make_server(make_app(service, key, origins), lambda: told(address)).run(sockets=[listening])
    finally:
        listening.close()
    if service.failure is not None:
        raise service.failure


def make_server(app: FastAPI, told: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """told: called once when the application is ready."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws=_WebSocketProtocol,
        ws_max_size=MESSAGE_BYTES,
        ws_ping_timeout=None,  # pongs wait behind speech that waits to be spoken; the outbox tells who is gone
        ws_per_message_deflate=False,  # pictures and speech do not get smaller
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    return _Server(config, app.state.service, told)


def listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): choose another --host or --port"
        ) from None
    listening.set_inheritable(True)
    return listening
