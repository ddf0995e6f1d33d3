"""What one server accepts. Every bound is here; what is beyond is refused in words."""

from __future__ import annotations

from dataclasses import dataclass

LIVE_NFE = 4  # velocity evaluations for each window of a live face's motion, when nobody says how many
MOST_NFE = 32  # velocity evaluations for a window of motion, during which no other face gets any
# Formats of pictures whose size is read before anything is decoded
PICTURES = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; all are checked before memory or disk is spent on what is beyond them."""

    sessions: int = 4  # faces that talk at once
    upload_bytes: int = 100 * 2**20  # of one request
    uploads: int = 8  # requests that are being received at once
    stalled_seconds: float = 30.0  # an upload of which nothing comes for so long has broken off
    pixels: int = 25_000_000  # of a picture, and of a driving video's frame
    camera_pixels: int = 1920 * 1080  # of a live camera's picture: a second of them is looked at together
    seconds: float = 600.0  # of sound or video in one job
    speech_seconds: float = 120.0  # of sound that waits to be spoken in one session
    text_characters: int = 2000  # of one text to speak
    sources: int = 64  # pictures kept encoded; the one unused for longest is forgotten
    jobs: int = 16  # being uploaded, waiting, running, and finished ones that were not fetched
    keep_seconds: float = 900.0  # how long a finished job, or a source that nobody uses, is kept
    hello_seconds: float = 10.0  # until a connected client has said what it wants
    stuck_seconds: float = 10.0  # a viewer that takes nothing for so long is gone
    silent_seconds: float = 1800.0  # a session that is asked for nothing for so long is closed
    blind_seconds: float = 120.0  # so is one whose camera shows nothing; pages in the background show little
