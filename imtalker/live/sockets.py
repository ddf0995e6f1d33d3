"""A live face over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import InputError
from . import protocol
from .conversation import Conversation
from .outbox import Closed, Event
from .pictures import encoder
from .refusal import Refusal, in_words, short
from .service import Service

log = logging.getLogger("imtalker.live")

# Close codes of WebSockets
POLICY, FAULT, RESTART, LATER = 1008, 1011, 1012, 1013

PATIENCE = 1.0  # seconds that the last messages to a client may take


async def live(socket: WebSocket, service: Service, accepts: Callable[[str | None], bool]) -> None:
    """One client from its hello to its end. accepts: whether an API key is right."""
    await socket.accept()
    task = asyncio.current_task()
    service.connections.add(task)
    task.add_done_callback(service.connections.discard)
    try:
        conversation = await _greet(socket, service, accepts)
    except (InputError, Refusal) as error:
        if isinstance(error, Refusal):
            service.refused(error)
        await _end(socket, str(error), LATER if getattr(error, "status", 0) == 503 else POLICY)
        return
    except (WebSocketDisconnect, RuntimeError):  # gone already
        return
    try:
        await _talk(socket, conversation, service)
    finally:
        await service.close(conversation)


async def _greet(socket: WebSocket, service: Service, accepts: Callable[[str | None], bool]) -> Conversation:
    try:
        message = await asyncio.wait_for(socket.receive(), service.limits.hello_seconds)
    except asyncio.TimeoutError:
        raise InputError(f"no hello within {service.limits.hello_seconds:g} seconds: send it first") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect
    hello = protocol.Hello.read(protocol.read_json(message.get("text") or message.get("bytes") or ""))
    scheme, _, key = socket.headers.get("authorization", "").partition(" ")
    if not accepts(key if scheme.lower() == "bearer" else hello.key):
        raise Refusal(401, "key", "the API key is missing or wrong: say it in the hello, as key")
    conversation = await service.open(hello)
    try:
        await socket.send_json(conversation.ready())
    except BaseException:
        await service.close(conversation)
        raise
    return conversation


async def _talk(socket: WebSocket, conversation: Conversation, service: Service) -> None:
    """Both ways at once, until either ends, or the conversation was closed and its end cannot be sent."""

    async def give_up() -> None:
        await conversation.outbox.closed()
        await asyncio.sleep(PATIENCE)
        raise Closed(conversation.outbox.reason)

    ways = _receive(socket, conversation), _send(socket, conversation, service.encoders), give_up()
    tasks = [asyncio.ensure_future(way) for way in ways]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    error = next((task.exception() for task in done if task.exception() is not None), None)
    if isinstance(error, Closed):
        await _end(socket, str(error), RESTART if service.state == "stopping" else POLICY)
    elif error is not None and not isinstance(error, (WebSocketDisconnect, RuntimeError, OSError)):
        log.error("a live connection failed", exc_info=error)
        await _end(socket, in_words(error), FAULT)


async def _receive(socket: WebSocket, conversation: Conversation) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            if message.get("bytes") is not None:
                await conversation.binary(message["bytes"])
            else:
                await conversation.command(protocol.read_json(message["text"]))
        except InputError as error:
            conversation.mistake(error)


async def _send(socket: WebSocket, conversation: Conversation, encoders: Executor) -> None:
    hello, pictures = conversation.hello, encoder(conversation.hello)
    loop = asyncio.get_running_loop()
    sends_sound = hello.sound and hello.input != "camera"
    while True:
        item = await conversation.next()
        if isinstance(item, Event):
            await socket.send_json({"type": item.kind, **item.details})
            continue
        if sends_sound:
            await socket.send_bytes(protocol.pack(protocol.Kind.SOUND, item.frame, protocol.pcm(item.sound)))
        if item.picture is not None:
            for message in await loop.run_in_executor(encoders, pictures.encode, item.frame, item.picture):
                await socket.send_bytes(message)


async def _end(socket: WebSocket, reason: str, code: int) -> None:
    """Say why, then close. A client that is gone, or that reads no more, is not waited for."""

    async def say() -> None:
        await socket.send_text(json.dumps({"type": "closing", "error": reason}))
        await socket.close(code, short(reason))

    try:
        await asyncio.wait_for(say(), PATIENCE)
    except (asyncio.TimeoutError, RuntimeError, WebSocketDisconnect, OSError):
        log.debug("a client was gone before it could be told: %s", reason)
