"""Opening what the user gave: existence, readability, FFmpeg containers, and the clock that sound and picture share."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Union

import av

from ..errors import InputError

log = logging.getLogger("imtalker.media")

MediaSource = Union[str, "os.PathLike[str]", bytes]  # a path, or the bytes of a whole file

# A hole in the timestamps longer than this is a damaged file and not a pause: filling it would never end.
MAX_GAP_SECONDS = 600

# Lists of other files and addresses. Reading one would open files or hosts that the user did not name.
_PLAYLISTS = {"hls", "concat", "dash", "sdp", "rtsp", "imf"}


def name_of(source: MediaSource) -> str:
    """How a message calls the source: its quoted name, always on one line."""
    return "the given bytes" if isinstance(source, (bytes, bytearray, memoryview)) else repr(os.fspath(source))


def check_readable(source: MediaSource, expected: str) -> None:
    """Raise InputError unless `source` is a readable, non-empty regular file (or non-empty bytes).

    `expected` says what it should be, for the message: "a picture such as a PNG or JPEG".
    """
    try:
        name = name_of(source)
    except TypeError:
        given = type(source).__name__
        raise InputError(f"a {given} was given, expected {expected}: give its path, or its bytes") from None
    if not name.strip("'\""):
        raise InputError(f"an empty file name was given, expected {expected}: name a file")
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise InputError(f"{name} are empty, expected {expected}: give the contents of a whole file")
        return
    path = Path(source)
    try:
        if not path.exists():
            hint = "download it first" if "://" in str(path) else "check the spelling"
            raise InputError(f"{name} does not exist, expected {expected}: {hint}")
        if path.is_dir():
            raise InputError(f"{name} is a folder, expected {expected}: give one file in it")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file, expected {expected}: save it to a file first")
        with open(path, "rb") as file:
            if not file.read(1):
                raise InputError(f"{name} is empty (0 bytes), expected {expected}: check how it was made or copied")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} cannot be read ({reason}), expected {expected}: check its permissions") from None


def open_media(source: MediaSource, expected: str) -> av.container.InputContainer:
    """Open a sound or video file for reading; the caller closes it. Raises InputError if FFmpeg cannot read it."""
    check_readable(source, expected)
    # "file:" keeps names such as "part 1: hello.mp4" from being taken for an address.
    target = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else f"file:{os.fspath(source)}"
    try:
        container = av.open(target, options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{name_of(source)} cannot be read as sound or video ({reason_of(error)}), expected {expected}: "
            "check that it plays, or convert it"
        ) from None
    if _PLAYLISTS & set(container.format.name.split(",")):
        container.close()
        raise InputError(f"{name_of(source)} is a list of other files, expected {expected}: give the file itself")
    return container


def reason_of(error: BaseException) -> str:
    """What went wrong, in a few words, without FFmpeg's error number and file name."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.split())


def best_stream(container: av.container.InputContainer, kind: str) -> av.stream.Stream | None:
    """The "audio" or "video" track that a player would choose, or None. Cover art is not video."""
    stream = container.streams.best(kind)
    if stream is None or stream.codec_context is None or stream.disposition & av.stream.Disposition.attached_pic:
        return None
    return stream


def time_zero(source: MediaSource, container: av.container.InputContainer) -> Fraction:
    """When the file's playback starts, in seconds of its own timestamps. `container` is `source`, opened.

    It is the start of the earlier of sound and picture. Sound and picture readers both count from it, so that a track
    which starts later than the other keeps its distance.
    """
    streams = [stream for kind in ("audio", "video") if (stream := best_stream(container, kind)) is not None]
    starts = {stream.index: stream.start_time * stream.time_base for stream in streams if stream.start_time is not None}
    if len(starts) < len(streams):
        starts = _first_timestamps(source) | starts
    # Below zero is the encoder's lead-in, which is not played.
    return max(Fraction(0), min(starts.values(), default=Fraction(0)))


def _first_timestamps(source: MediaSource) -> dict[int, Fraction]:
    """Seconds of the first packet of each track, for containers that do not declare it (Matroska, WebM)."""
    starts: dict[int, Fraction] = {}
    with open_media(source, "sound or video") as container:
        wanted = {stream.index for kind in ("audio", "video") if (stream := best_stream(container, kind)) is not None}
        try:
            for count, packet in enumerate(container.demux()):
                if packet.stream_index in wanted - starts.keys() and packet.pts is not None:
                    starts[packet.stream_index] = packet.pts * packet.time_base
                if wanted <= starts.keys() or count > 2000:
                    break
        except (av.FFmpegError, OSError):
            pass  # reading the frames will report it
    return starts


def declared_end(
    source: MediaSource, container: av.container.InputContainer, stream: av.stream.Stream
) -> Fraction | None:
    """Seconds from time zero to the end of the stream, as the file declares it, or None."""
    zero = time_zero(source, container)
    if not stream.duration:
        return Fraction(container.duration, av.time_base) if container.duration else None
    # Matroska counts its duration from timestamp 0, all others from the stream's start.
    start = 0 if "matroska" in container.format.name else stream.start_time or 0
    return (stream.duration + start) * stream.time_base - zero


def decode(container: av.container.InputContainer, stream: av.stream.Stream, name: str) -> Iterator:
    """Decoded frames of one stream, in order of presentation.

    A few damaged packets (a torn last packet, tags at the end of an MP3) are left out and reported in the log; a file
    with more damage than content raises InputError.
    """
    decoded = damaged = 0
    reason = ""
    packets = container.demux(stream)
    while True:
        frames = []
        try:
            packet = next(packets, None)
            if packet is None:
                break
            damaged += packet.is_corrupt
            frames = packet.decode()
        except av.EOFError:
            pass
        except (av.FFmpegError, OSError) as error:
            damaged += 1
            reason = reason or reason_of(error)
            if damaged > decoded + 50:
                break
        for frame in frames:
            decoded += 1
            yield frame
    if decoded == 0 or damaged > decoded:
        raise InputError(
            f"{name} is damaged ({reason or 'no ' + stream.type + ' in it can be decoded'}): "
            "check that it plays from start to end, or convert it"
        )
    if damaged:
        log.warning("%s is damaged in %d places; using what can be decoded", name, damaged)
