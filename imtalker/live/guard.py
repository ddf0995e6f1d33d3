"""Who may ask: the right host, no foreign web page, the key. And what a browser may do with the answer."""

from __future__ import annotations

import hmac
import ipaddress
import json
from urllib.parse import urlsplit

from .refusal import short

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(self)",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def matches(key: str | None, given: str | None) -> bool:
    """Whether what a client gave is the API key, or none is needed."""
    return key is None or hmac.compare_digest((given or "").encode(errors="replace"), key.encode())


class Guard:
    """ASGI middleware before everything.

    A browser tells with `Origin` which page is asking: pages of other origins are refused, WebSockets included, so that
    no web page that a user happens to visit can use a server on the same computer. A server without a key answers only
    to loopback names, so that no page can reach it under a name of its own either. With a key, everything under /v1
    and /metrics needs it, as `Authorization: Bearer KEY`; a WebSocket may say it in its hello instead.
    """

    def __init__(self, app, key: str | None = None, origins: tuple[str, ...] = ()):
        """origins: of pages that may ask besides the server's own, such as https://example.org. Raises ValueError for
        an empty key, which would let everybody in."""
        if key == "":
            raise ValueError("an empty API key: None means that there is none")
        self._app, self._key, self._origins = app, key, origins

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            refusal = self._refusal(scope, headers)
        except ValueError:  # of a Host or Origin that is no address
            refusal = 400, "the header Host or Origin is no address"
        if refusal is not None:
            return await _refuse(scope, receive, send, *refusal)

        async def sending(message):
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in there]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, sending)

    def _refusal(self, scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = urlsplit(f"//{headers.get('host', '')}")
        if self._key is None and not is_loopback(host.hostname or ""):
            return 403, f"the host {host.hostname!r} is not served: without an API key, only loopback names are"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host.netloc and origin not in self._origins:
            return 403, f"pages of {origin} may not use this server: start it with --allow-origin {origin}"
        guarded = scope["path"].startswith("/v1/") or scope["path"] == "/metrics"
        if scope["type"] == "http" and guarded and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if not matches(self._key, key if scheme.lower() == "bearer" else None):
                return 401, "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'"
        return None


async def _refuse(scope, receive, send, status: int, message: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": short(message)})
        return
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
