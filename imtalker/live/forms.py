"""Values of forms: the options of requests, checked, with a default where there is one."""

from __future__ import annotations

from fractions import Fraction

from ..errors import InputError
from ..media.video import as_rate


def describe(files: dict[str, str], values: list[str], optional: str = "") -> dict:
    """How OpenAPI describes a form of files and values."""
    properties = {name: {"type": "string", "format": "binary", "description": what} for name, what in files.items()}
    properties |= {name: {"type": "string"} for name in values}
    schema = {"type": "object", "properties": properties, "required": list(files)}
    described = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
    if optional:
        chosen = "use this picture of POST /v1/sources, or the bundled one, sample; the form then has no source"
        described["parameters"] = [
            {"name": "source_id", "in": "query", "schema": {"type": "string"}, "description": chosen}
        ]
    return described


def framing(values: dict[str, str]) -> dict:
    """Which face of a picture, and whether it is looked for."""
    return {"face": whole(values, "face", 0, 1000) or 0, "crop": yes(values, "crop", True)}


def whole(values: dict[str, str], name: str, low: int, high: int) -> int | None:
    text = values.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise InputError(f"{name}={text[:40]!r}: a whole number from {low} to {high} expected")
    return int(text)


def real(values: dict[str, str], name: str, low: float, high: float) -> float | None:
    text = values.get(name, "").strip()
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise InputError(f"{name}={text[:40]!r}: a number from {low:g} to {high:g} expected")
    return number


def rate(values: dict[str, str]) -> Fraction:
    """Frames per second."""
    return as_rate(real(values, "fps", 1, 60) or 25)


def yes(values: dict[str, str], name: str, default: bool) -> bool:
    text = values.get(name, "").strip().lower()
    if text not in ("", "true", "false", "1", "0"):
        raise InputError(f"{name}={text[:40]!r}: true or false expected")
    return default if not text else text in ("true", "1")
