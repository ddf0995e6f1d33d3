"""`imtalker serve`: the page, the HTTP interface, live faces; docs/live.md describes them."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from .. import __version__
from ..errors import InputError
from ..media import SAMPLE_RATE, stream_audio
from ..media.video import VideoReader
from . import forms, sockets
from .guard import Guard, is_loopback, matches
from .jobs import Job
from .refusal import Refusal
from .service import Service
from .uploads import receive_form

log = logging.getLogger("imtalker.live")

PAGE = Path(__file__).parent / "page"
ASSETS = Path(__file__).parents[1] / "assets"
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
        if refusal.status == 413:
            headers["connection"] = "close"  # what is still being sent is not read
        return JSONResponse({"error": str(refusal)}, refusal.status, headers)

    @app.exception_handler(404)
    async def missing(request: Request, error):
        return JSONResponse({"error": f"there is no {request.url.path} here: see /openapi.json"}, 404)

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

    # --------------------------------------------------------------------------------------------------------- sources

    @app.post("/v1/sources", status_code=201, tags=["sources"], summary="A picture, for any number of uses",
              openapi_extra=forms.describe({"source": "a picture of a face"}, ["face", "crop"]))  # fmt: skip
    async def add_source(request: Request):
        service.check_ready()
        with service.job_folder() as folder:
            form = await receive_form(request, folder, service.limits.upload_bytes, ("source",), ("face", "crop"))
            try:
                source = await service.sources.encode(form.files["source"], **forms.framing(form.values))
            except InputError as error:
                raise _in_clients_words(error, folder) from None
            finally:
                service.remove(folder)
        width, height = source.size
        return {"id": service.sources.keep(source), "size": [width, height]}

    @app.delete("/v1/sources/{name}", status_code=204, tags=["sources"], summary="Forget a picture")
    async def drop_source(name: str):
        service.check_ready()
        service.sources.drop(name)

    # ------------------------------------------------------------------------------------------------------------ jobs

    @app.post("/v1/animate", status_code=202, tags=["jobs"], summary="A picture speaks",
              openapi_extra=forms.describe({"source": "a picture of a face", "audio": "speech"},
                                  ["seed", "nfe", "guidance", "fps", "face", "crop"], optional="source"))  # fmt: skip
    async def animate(request: Request):
        def clip(source, path: Path, values: dict):
            how = {
                "seed": forms.whole(values, "seed", 0, 2**63 - 1) or 0,
                "nfe": forms.whole(values, "nfe", 1, 1000),
            }
            how |= {"guidance_scale": forms.real(values, "guidance", 0, 20), "fps": forms.rate(values)}
            _check_seconds(path, service.limits.seconds)
            return service.talker.animate(source, path, **how)

        return await _take_job(request, "animate", "audio", ("seed", "nfe", "guidance"), clip)

    @app.post("/v1/reenact", status_code=202, tags=["jobs"], summary="A picture copies the motion of a video",
              openapi_extra=forms.describe({"source": "a picture of a face", "driving": "a video of a face"},
                                  ["fps", "relative", "face", "crop"], optional="source"))  # fmt: skip
    async def reenact(request: Request):
        def clip(source, path: Path, values: dict):
            width, height = VideoReader(path).size
            if width * height > service.limits.pixels:
                raise InputError(
                    f"the video has {width} x {height} pixels, {service.limits.pixels / 1e6:g} megapixels are "
                    "the limit here: make it smaller"
                )
            how = {"relative": forms.yes(values, "relative", False), "crop": forms.yes(values, "crop", True)}
            return service.talker.reenact(source, path, fps=forms.rate(values), **how)

        return await _take_job(request, "reenact", "driving", ("relative",), clip)

    async def _take_job(request: Request, kind: str, driving: str, named: tuple[str, ...], clip) -> JSONResponse:
        """named: further options. clip: (source, path of what drives it, options) -> a clip; called in a thread."""
        service.check_ready()
        service.jobs.check_room()
        with service.job_folder() as folder:
            chosen = request.query_params.get("source_id")
            files = ("source", driving) if chosen is None else (driving,)
            form = await receive_form(
                request, folder, service.limits.upload_bytes, files, ("fps", "face", "crop", *named)
            )
            framing = forms.framing(form.values)

            async def prepare():
                if chosen is not None:
                    source = await service.sources.get(chosen)
                else:
                    source = await service.sources.encode(form.files["source"], **framing)
                return await asyncio.to_thread(clip, source, form.files[driving], form.values)

            job = service.jobs.add(Job(kind, folder, prepare, service.limits.seconds))
        return JSONResponse(job.report(), 202, {"location": f"/v1/jobs/{job.id}"})

    @app.get("/v1/jobs/{name}", tags=["jobs"], summary="How far a job is")
    async def job(name: str):
        service.check_ready()
        return service.jobs.get(name).report()

    @app.get("/v1/jobs/{name}/events", tags=["jobs"], summary="The same as server-sent events, up to the job's end")
    async def events(name: str):
        service.check_ready()
        job = service.jobs.get(name)

        async def lines():
            async for told in job.events():
                yield f"event: {told['state']}\ndata: {json.dumps(told)}\n\n"
                await asyncio.sleep(0.1)  # not more often than a progress bar can be seen to move

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.get("/v1/jobs/{name}/video", tags=["jobs"], summary="The video, MP4", response_class=FileResponse)
    async def video(name: str):
        service.check_ready()
        job = service.jobs.get(name)
        if job.state != "done":
            raise Refusal(409, "early", f"the job is {job.state}: its video is there when it is done")
        return FileResponse(job.video, media_type="video/mp4", filename=f"imtalker-{job.kind}.mp4")

    @app.delete("/v1/jobs/{name}", status_code=204, tags=["jobs"], summary="Cancel a job and forget its files")
    async def drop_job(name: str):
        service.check_ready()
        service.jobs.drop(name)

    # ------------------------------------------------------------------------------------------------------------ live

    @app.websocket("/v1/live")
    async def live(socket: WebSocket):
        await sockets.live(socket, service, partial(matches, key))

    @app.post("/v1/sessions/{name}/speech", status_code=202, tags=["live"],
              summary="A sound file for a live session to speak",
              openapi_extra=forms.describe({"audio": "speech"}, []))  # fmt: skip
    async def speech(name: str, request: Request):
        conversation = service.conversation(name)
        with service.job_folder() as folder:
            form = await receive_form(request, folder, service.limits.upload_bytes, ("audio",), ())
            try:
                await asyncio.to_thread(_check_seconds, form.files["audio"], service.limits.seconds)
            except InputError as error:
                raise _in_clients_words(error, folder) from None
            conversation.speak_file(form.files["audio"], lambda: service.remove(folder))
        return {"session": name}

    # ------------------------------------------------------------------------------------------------------------ page

    @app.get("/sample.png", include_in_schema=False)
    def sample_picture():
        return FileResponse(ASSETS / "sample.png")

    @app.get("/sample.wav", include_in_schema=False)
    def sample_speech():
        return FileResponse(ASSETS / "sample.wav")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Guard, key=key, origins=origins)
    return app


def _check_seconds(path: Path, most: float) -> None:
    """Raise InputError unless it is sound, of at most so many seconds. Reads no more than that."""
    samples = 0
    for block in stream_audio(path, SAMPLE_RATE):
        samples += len(block)
        if samples > most * SAMPLE_RATE:
            raise InputError(f"the sound is longer than {most:g} seconds, the limit here: cut it")


def _in_clients_words(error: InputError, folder: Path) -> InputError:
    """The client knows its files by their names, not by our folders."""
    return InputError(str(error).replace(f"{folder}/", "").replace("source/", "").replace("audio/", ""))


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
