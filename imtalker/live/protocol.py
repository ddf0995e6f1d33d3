"""What live clients and the server say to each other: docs/live.md explains it to those who write clients.

client   hello (JSON), then sound or camera pictures (binary) and commands (JSON)
server   ready (JSON), then pictures and sound (binary, with a header) and events (JSON)
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import ClassVar

import numpy as np

from ..clock import SAMPLE_RATE, SAMPLES_PER_FRAME
from ..errors import InputError
from .limits import MOST_NFE

# ------------------------------------------------------------------------------------------------ binary, server's side

HEADER = struct.Struct("<BBHIQ")
"""kind, flags, 0, frame, first sample: 16 bytes, little-endian. The sample is on the session's clock, 16 kHz."""


class Kind(IntEnum):
    JPEG = 1
    H264 = 2  # one access unit, Annex B
    SOUND = 3  # int16 mono, 16 kHz, 640 samples


KEY = 1  # flag: decoding can begin with this picture


def pack(kind: Kind, frame: int, payload: bytes, flags: int = 0) -> bytes:
    return HEADER.pack(kind, flags, 0, frame, frame * SAMPLES_PER_FRAME) + payload


def pcm(sound: np.ndarray) -> bytes:
    """float32 (n,) in -1..1 as int16."""
    return (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()


# ------------------------------------------------------------------------------------------------- JSON, client's side


@dataclass(frozen=True)
class Hello:
    """What a client wants, said before anything else."""

    source: str = "sample"  # what POST /v1/sources gave, or the bundled picture
    input: str = "speech"  # "speech": as fast as it comes; "microphone": as it is spoken; "camera": JPEG pictures
    rate: int = SAMPLE_RATE  # of the sound sent in
    format: str = "jpeg"  # of the pictures sent back: "jpeg", "h264"
    quality: int = 85  # of JPEG
    sound: bool = True  # send back the sound that belongs to the pictures
    latency: str | None = None  # "low": short windows of motion; "smooth": long ones; low for a microphone if not said
    seed: int = 0
    nfe: int | None = None
    guidance: float | None = None
    relative: bool = False  # camera: the source's own pose, and the changes of the camera's face
    key: str | None = None  # the server's API key, for clients that cannot set a header

    CHOICES: ClassVar = {
        "input": ("speech", "microphone", "camera"),
        "format": ("jpeg", "h264"),
        "latency": (None, "low", "smooth"),
    }
    RANGES: ClassVar = {
        "rate": (8000, 192_000),
        "quality": (1, 100),
        "seed": (0, 2**63 - 1),
        "nfe": (1, MOST_NFE),
        "guidance": (0, 20),
    }

    @classmethod
    def read(cls, given: dict) -> Hello:
        """Raises InputError for anything that is unknown, of another type, or out of range."""
        known = {field.name: field for field in fields(cls)}
        if unknown := set(given) - set(known) - {"type"}:
            raise InputError(f"{', '.join(map(repr, sorted(unknown)))} in the hello, expected {', '.join(known)}")
        values = {name: value for name, value in given.items() if name != "type"}
        for name, value in values.items():
            default = known[name].default
            kinds = {"nfe": int, "guidance": (int, float), "key": str, "latency": str}.get(name, type(default))
            optional = default is None and value is None
            if not optional and (not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool)):
                raise InputError(f"{name}={value!r} in the hello: a value such as {default!r} expected")
            if name in cls.CHOICES and value not in cls.CHOICES[name]:
                raise InputError(
                    f"{name}={value!r} in the hello: one of {', '.join(filter(None, cls.CHOICES[name]))} expected"
                )
            if name in cls.RANGES and value is not None:
                low, high = cls.RANGES[name]
                if not low <= value <= high:
                    raise InputError(f"{name}={value!r} in the hello: {low} to {high} expected")
        return cls(**values)


def read_json(text: str | bytes) -> dict:
    """One JSON object with a "type". Raises InputError for anything else."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError("a message that is not JSON: an object such as {'type': 'flush'} expected") from None
    if not isinstance(given, dict) or not isinstance(given.get("type"), str):
        raise InputError("a message without a type: an object such as {'type': 'flush'} expected")
    return given


def numbers(given: dict, name: str, count: int) -> list[float] | None:
    """A command's list of numbers, or None."""
    value = given[name]
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count or not all(_is_number(x) for x in value):
        raise InputError(f"{name}={value!r}: {count} numbers or null expected")
    return [float(x) for x in value]


def number(given: dict, name: str) -> float:
    if not _is_number(given[name]):
        raise InputError(f"{name}={given[name]!r}: a number expected")
    return float(given[name])


def _is_number(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False
