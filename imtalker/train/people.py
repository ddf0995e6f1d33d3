"""People that `imtalker synth` rendered: a file each, with pictures as JPEG and what is true of them."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import readable

# What is true of a frame, and the shape of each
LABELS = {"latent": (32,), "pose": (3,), "cam": (3,), "gaze": (2,), "blink": (2,), "mouth": (), "landmarks": (68, 2),
          "surface": (64, 64, 3), "parts": (64, 64)}
ADVICE = "delete it and make it again with `imtalker synth`"


def people_in(folder: str | Path, most: int | None = None) -> list[Path]:
    """The files of the first `most` people in a folder. Raises InputError if there is none."""
    files = sorted(Path(folder).glob("identity-*.npz"))[:most]
    if not files:
        raise InputError(f"{str(folder)!r} holds no identity-*.npz: make them with `imtalker synth {folder}`")
    return files


def read_person(file: Path, names: Iterable[str] = tuple(LABELS), frames: int | None = None
                ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Pictures, each a JPEG (bytes,) uint8, and labels (n, …), of the first `frames` frames of a person. Raises
    InputError for a file that lacks some."""
    with readable(file, ADVICE), np.load(file) as data:
        jpeg, ends = data["jpeg"], data["offsets"]
        pictures = [jpeg[a:b] for a, b in zip(ends, ends[1:])][:frames]
        labels = {name: data[name][:frames] for name in names}
        for name, label in labels.items():
            if label.shape != (len(pictures), *LABELS[name]):
                raise ValueError(f"{name} is {label.shape}, {(len(pictures), *LABELS[name])} expected")
    return pictures, labels
