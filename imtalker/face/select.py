"""Which face, and one steady crop for it: of a source picture, or over a whole driving clip."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from imtalker.errors import InputError
from imtalker.face.crop import CROP_SCALE, Crop
from imtalker.face.detect import SMALLEST_FACE, find_faces, follow

EVERY = 5  # driving frames between two that are looked at
MOST = 60  # looks at the face that are enough to settle on a crop (12 s at 25 fps)
PATIENCE = 150  # looks without any face before giving up (30 s at 25 fps)


def source_crop(picture: np.ndarray, face: int = 0, name: str = "the picture") -> Crop:
    """The crop of face number `face` (0 is the largest) of `picture`, (height, width, 3) uint8 RGB.

    Raises InputError when the picture has no such face; `name` is what the message calls the picture.
    """
    faces = find_faces(picture)
    if not 0 <= face < len(faces):
        raise _missing(len(faces), face, name, "another picture, or --no-crop (crop=False)")
    return faces[face].crop


def driving_crop(frames: Iterable[np.ndarray], face: int = 0, name: str = "the driving video") -> Crop:
    """One steady crop for face number `face` (0 is the largest) over a clip of (height, width, 3) uint8 RGB frames.

    Looks at every fifth frame until it has seen enough; `frames` need not be read to the end. Faces are numbered in the
    first frame that has so many. Raises InputError when no frame has such a face.
    """
    seen: list[Crop] = []
    most_faces, without = 0, 0
    for i, frame in enumerate(frames):
        if i % EVERY:
            continue
        found = _same_person(frame, seen[-1]) if seen else None
        if not seen:
            faces = find_faces(frame)
            most_faces = max(most_faces, len(faces))
            found = faces[face].crop if 0 <= face < len(faces) else None
        if found is not None:
            seen.append(found)
        else:
            without += 1
        if len(seen) >= MOST or without >= PATIENCE:
            break
    if not seen:
        raise _missing(most_faces, face, name, "another video, or --no-driving-crop (crop=False)")
    return steady(seen)


def steady(crops: list[Crop]) -> Crop:
    """One crop for many of one clip: the median, moved and widened until the face stays inside in nearly all."""
    centres = np.array([c.centre for c in crops])
    sides = np.array([c.side for c in crops])
    half = sides[:, None] / CROP_SCALE / 2  # of the face
    low, high = np.percentile(centres - half, 5, axis=0), np.percentile(centres + half, 95, axis=0)
    side = float(max(np.median(sides), (high - low).max()))
    x, y = np.clip(np.median(centres, 0), high - side / 2, low + side / 2)
    return Crop((float(x), float(y)), side, crops[0].height, crops[0].width)


def _same_person(frame: np.ndarray, last: Crop) -> Crop | None:
    """Where the face of `last` is in this frame: near by, or after a jump the nearest, but no farther than one crop."""
    near = follow(frame, last)
    if near is not None:
        return near.crop
    crops = [f.crop for f in find_faces(frame)]
    nearest = min(crops, key=lambda crop: _apart(crop, last), default=None)
    return nearest if nearest is not None and _apart(nearest, last) < last.side else None


def _apart(a: Crop, b: Crop) -> float:
    return float(np.hypot(a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]))


def _missing(found: int, face: int, name: str, instead: str) -> InputError:
    if not found:
        return InputError(
            f"no face found in {name}: expected an upright human face at least {SMALLEST_FACE} pixels wide; "
            f"try {instead} if a centred square already frames the face"
        )
    numbers = "0" if found == 1 else f"0 to {found - 1}"
    many = "1 face" if found == 1 else f"{found} faces"
    return InputError(f"face {face} asked for, but {name} has {many}: choose {numbers} (0 is the largest)")
