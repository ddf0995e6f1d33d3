"""Controls: what the user wants head, eyes and framing to do, one row per frame at 25 a second."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np

from .errors import InputError

COLUMNS = {"pose": 3, "gaze": 2, "cam": 3}
LIMITS = {"pose": math.pi, "gaze": math.pi / 2}  # radians; beyond them somebody means degrees


def read_control(kind: str, given: str | os.PathLike | np.ndarray | None) -> np.ndarray | None:
    """A control, (T, columns) float32, from an array or a .npy, .npz or .csv file; None stays None (the model decides).

    `kind` is "pose" (head rotation vector, 3 angles), "gaze" (yaw, pitch), both in radians, or "cam" (3 numbers).
    A single row (columns,) holds for the whole clip. In an .npz the array is named as its kind or is the only one;
    a .csv may begin with a line of column names.
    Raises InputError for another shape, numbers that are not finite, or degrees.
    """
    if given is None:
        return None
    columns, name = COLUMNS[kind], kind
    if isinstance(given, (str, os.PathLike)):
        name = f"{kind} file {os.fspath(given)!r}"
        given = _read(kind, Path(given), name)
    try:
        values = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name}: numbers expected, (frames, {columns})") from None
    if values.ndim == 1 and len(values) == columns:
        values = values[None]
    if values.ndim != 2 or values.shape[1] != columns or not len(values):
        raise InputError(
            f"{name} has shape {values.shape}: ({columns},) or (frames, {columns}) with at least one frame expected"
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise InputError(f"{name}: row {row} is not finite; give a number for every frame")
    limit = LIMITS.get(kind, math.inf)
    if np.abs(values).max() > limit:
        raise InputError(f"{name} reaches {np.abs(values).max():.3g}: radians up to {limit:.3g} expected, not degrees")
    return values


def _read(kind: str, path: Path, name: str):
    if not path.is_file():
        raise InputError(f"there is no {name}: check the name and the folder")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                if kind not in arrays.files and len(arrays.files) != 1:
                    raise InputError(
                        f"{name} holds {', '.join(arrays.files) or 'nothing'}: an array named {kind!r} expected"
                    )
                return arrays[kind if kind in arrays.files else arrays.files[0]]
        if suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as file:
                lines = [line for line in csv.reader(file) if line]
            if lines and not _is_number(lines[0][0]):
                lines = lines[1:]
            return [[float(cell) for cell in line] for line in lines]
    except InputError:
        raise
    except (ValueError, EOFError, OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name} cannot be read ({error}): .npy, .npz or .csv expected, one row per frame") from error
    except Exception as error:  # a damaged .npz raises zipfile's own errors
        raise InputError(f"{name} cannot be read ({error}): is it complete?") from error
    raise InputError(f"{name} ends in {suffix!r}: .npy, .npz or .csv expected")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
