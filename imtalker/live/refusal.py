"""Saying no to a client: in words, with the status that its kind of client understands."""

from __future__ import annotations

from ..errors import InputError


class Refusal(Exception):
    """The request cannot be served; the message says why and what to do.

    status: of HTTP. reason: one word for the metrics. retry_after: seconds after which trying again makes sense.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.reason, self.retry_after = status, reason, retry_after


def too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"the request is larger than the limit of {limit / 2**20:g} MB: send less")


def stalled(seconds: float) -> Refusal:
    return Refusal(408, "stalled", f"nothing of the request came for {seconds:g} seconds: send it again")


def busy(message: str) -> Refusal:
    return Refusal(503, "busy", f"{message}: try again later", retry_after=10)


def missing(what: str) -> Refusal:
    return Refusal(404, "missing", f"{what} is not there (any more): check it, or make it again")


def in_words(error: Exception) -> str:
    """What a client is told: all of what it got wrong itself; of a fault of ours only its kind."""
    if isinstance(error, (InputError, Refusal)):
        return str(error)
    return f"this should not happen: {type(error).__name__}: please report it"


def short(reason: str) -> str:
    """As much of it as a WebSocket's last message takes: 123 bytes."""
    return reason.encode()[:120].decode(errors="ignore")
