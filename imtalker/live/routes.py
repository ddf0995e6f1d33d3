"""What clients can ask over HTTP: pictures, clips, live faces. docs/live.md describes it for those who call it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from ..errors import InputError
from ..media import SAMPLE_RATE, stream_audio
from ..media.video import VideoReader
from . import forms, rtc, sockets
from .guard import matches
from .jobs import Job
from .pictures import jpeg
from .protocol import Hello
from .refusal import Refusal
from .service import Service
from .uploads import BROKEN_OFF, receive_form, receive_json

REPORT_SECONDS = 0.1  # between two reports of a job: no more than a progress bar can be seen to move


def source_routes(service: Service) -> APIRouter:
    """Pictures."""
    routes = APIRouter(prefix="/v1/sources", tags=["sources"])
    form = forms.describe({"source": "a picture of a face"}, ("face", "crop"))

    @routes.post("", status_code=201, summary="A picture, for any number of uses", openapi_extra=form)
    async def add_source(request: Request):
        service.check_ready()
        with service.folder_for_request() as folder:
            form = await receive_form(request, folder, service.limits, ("source",), ("face", "crop"))
            try:
                source = await service.sources.encode(form.files["source"], **forms.framing(form.values))
            except InputError as error:
                raise forms.in_clients_words(error, folder) from None
            service.remove(folder)
        return {"id": service.sources.keep(source), "size": list(source.size)}

    @routes.get("/{name}/picture", summary="The part of it that is animated, JPEG", response_class=Response)
    async def picture(name: str):
        service.check_ready()
        return Response(jpeg((await service.sources.get(name)).picture), media_type="image/jpeg")

    @routes.delete("/{name}", status_code=204, summary="Forget a picture")
    async def drop_source(name: str):
        service.check_ready()
        service.sources.drop(name)

    return routes


def job_routes(service: Service) -> APIRouter:
    """Clips."""
    routes = APIRouter(prefix="/v1", tags=["jobs"])
    picture = {"source": "a picture of a face"}
    speech = forms.describe({**picture, "audio": "speech"}, forms.ANIMATE, choice=True)
    video = forms.describe({**picture, "driving": "a video of a face"}, forms.REENACT, choice=True)

    @routes.post("/animate", status_code=202, summary="A picture speaks", openapi_extra=speech)
    async def animate(request: Request):
        def clip(source, audio: Path, how: dict):
            check_seconds(audio, service.limits.seconds)
            return service.talker.animate(source, audio, **how)

        return await take(request, "animate", "audio", forms.ANIMATE, forms.animating, clip)

    @routes.post("/reenact", status_code=202, summary="A picture copies a video's motion", openapi_extra=video)
    async def reenact(request: Request):
        def clip(source, driving: Path, how: dict):
            video = VideoReader(driving, most_pixels=service.limits.pixels)
            if (video.duration or 0) > service.limits.seconds:
                raise too_long("video", service.limits.seconds)
            return service.talker.reenact(source, driving, **how)

        return await take(request, "reenact", "driving", forms.REENACT, forms.reenacting, clip)

    async def take(
        request: Request, kind: str, driving: str, named: tuple[str, ...], read: Callable[[dict], dict], clip: Callable
    ) -> JSONResponse:
        """read: options from the form's values. clip: (source, what drives it, options) -> a clip; in a thread."""
        service.check_ready()
        name = request.query_params.get("source_id")
        chosen = None if name is None else await service.sources.get(name)
        files = ("source", driving) if chosen is None else (driving,)
        with service.jobs.room(), service.folder_for_request() as folder:
            form = await receive_form(request, folder, service.limits, files, named)
            if await request.is_disconnected():  # it would never hear of its job
                raise InputError(BROKEN_OFF)
            framing, how = forms.framing(form.values), read(form.values)

            async def prepare():
                source = chosen or await service.sources.encode(form.files["source"], **framing)
                return await asyncio.to_thread(clip, source, form.files[driving], how)

            job = service.jobs.add(Job(kind, folder, prepare, service.limits.seconds))
        return JSONResponse(job.report(), 202, {"location": f"/v1/jobs/{job.id}"})

    @routes.get("/jobs/{name}", summary="How far a job is")
    async def job(name: str):
        service.check_ready()
        return service.jobs.get(name).report()

    @routes.get("/jobs/{name}/events", summary="The same as server-sent events, up to the job's end")
    async def events(name: str):
        service.check_ready()
        job = service.jobs.get(name)

        async def lines():
            async for told in job.events():
                yield f"event: {told['state']}\ndata: {json.dumps(told)}\n\n"
                await asyncio.sleep(REPORT_SECONDS)

        return StreamingResponse(lines(), media_type="text/event-stream")

    @routes.get("/jobs/{name}/video", summary="The video, MP4", response_class=FileResponse)
    async def video_of(name: str):
        service.check_ready()
        job = service.jobs.get(name)
        if job.state != "done":
            raise Refusal(409, "early", f"the job is {job.state}: its video is there when it is done")
        job.fetched = True
        return FileResponse(job.video, media_type="video/mp4", filename=f"imtalker-{job.kind}.mp4")

    @routes.delete("/jobs/{name}", status_code=204, summary="Cancel a job and forget its files")
    async def drop_job(name: str):
        service.check_ready()
        service.jobs.drop(name)

    return routes


def live_routes(service: Service, key: str | None) -> APIRouter:
    """Live faces."""
    routes = APIRouter(prefix="/v1", tags=["live"])

    @routes.websocket("/live")
    async def live(socket: WebSocket):
        await sockets.live(socket, service, partial(matches, key))

    properties = {"sdp": {"type": "string"}, "hello": {"type": "object", "description": "as over the WebSocket"}}
    schema = {"type": "object", "properties": properties, "required": ["sdp"]}
    json_body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    @routes.post("/rtc", summary="A live face over WebRTC: an offer in, the answer out", openapi_extra=json_body)
    async def offer(request: Request):
        service.check_ready()
        given = await receive_json(request, service.limits)
        sdp, hello = given.get("sdp"), given.get("hello", {})
        if not isinstance(sdp, str) or not isinstance(hello, dict):
            raise InputError("an offer such as {'sdp': '...', 'hello': {'source': 'sample'}} is expected")
        return await rtc.answer(service, Hello.read(hello), sdp)

    @routes.delete("/sessions/{name}", status_code=204, summary="End a live session")
    async def end(name: str):
        await service.close(service.conversation(name))

    form = forms.describe({"audio": "speech"}, ())

    @routes.post("/sessions/{name}/speech", status_code=202, summary="A sound file to speak live", openapi_extra=form)
    async def speech(name: str, request: Request):
        conversation = service.conversation(name)
        with service.folder_for_request() as folder:
            form = await receive_form(request, folder, service.limits, ("audio",), ())
            try:
                await asyncio.to_thread(check_seconds, form.files["audio"], service.limits.seconds)
            except InputError as error:
                raise forms.in_clients_words(error, folder) from None
            conversation.speak_file(form.files["audio"], lambda: service.remove(folder))
        return {"session": name}

    return routes


def check_seconds(path: Path, most: float) -> None:
    """Raise InputError unless it is sound, of at most so many seconds. Reads no more than that."""
    samples = 0
    for block in stream_audio(path, SAMPLE_RATE):
        samples += len(block)
        if samples > most * SAMPLE_RATE:
            raise too_long("sound", most)


def too_long(what: str, most: float) -> InputError:
    return InputError(f"the {what} is longer than {most:g} seconds, the limit here: cut it")
