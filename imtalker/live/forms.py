"""Values of forms: the options of requests, checked, with a default where there is one."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from ..errors import InputError
from ..media.video import as_rate
from .limits import MOST_NFE

FRAMING = ("face", "crop")
ANIMATE = ("seed", "nfe", "guidance", "fps", *FRAMING)
REENACT = ("relative", "fps", *FRAMING)


def describe(files: dict[str, str], values: tuple[str, ...], choice: bool = False) -> dict:
    """How OpenAPI describes a form of files (name: what it is) and values.

    choice: instead of the file `source`, the query may name a picture that is there already.
    """
    properties = {name: {"type": "string", "format": "binary", "description": what} for name, what in files.items()}
    properties |= {name: {"type": "string"} for name in values}
    needed = [name for name in files if not (choice and name == "source")]
    schema = {"type": "object", "properties": properties, "required": needed}
    described = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
    if choice:
        what = "a picture of POST /v1/sources, or the bundled one, sample; the form then has no source"
        described["parameters"] = [
            {"name": "source_id", "in": "query", "schema": {"type": "string"}, "description": what}
        ]
    return described


def framing(values: dict[str, str]) -> dict:
    """Which face of a picture, and whether it is looked for."""
    return {"face": whole(values, "face", 0, 1000) or 0, "crop": yes(values, "crop", True)}


def animating(values: dict[str, str]) -> dict:
    """Options of `IMTalker.animate`."""
    return {
        "seed": whole(values, "seed", 0, 2**63 - 1) or 0,
        "nfe": whole(values, "nfe", 1, MOST_NFE),
        "guidance_scale": real(values, "guidance", 0, 20),
        "fps": rate(values),
    }


def reenacting(values: dict[str, str]) -> dict:
    """Options of `IMTalker.reenact`."""
    return {"relative": yes(values, "relative", False), "crop": yes(values, "crop", True), "fps": rate(values)}


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


def in_clients_words(error: InputError, folder: Path) -> InputError:
    """The client knows its files by their names, not by the folders that they were put into; and fields of its form,
    not options of a command line."""
    words = re.sub(r"--no-(driving-)?crop \(crop=False\)", "crop=false", str(error))
    return InputError(re.sub(re.escape(f"{folder}/") + r"\w+/", "", words))
