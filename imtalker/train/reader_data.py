"""Crops of synthetic heads to train the face reader on.

A crop is (128, 128, 3) uint8 RGB; positions are fractions 0..1 of it. The synthetic heads know their landmarks, pose,
gaze, lids, mouth and parts; whatever moves, turns or mirrors the picture does the same to the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..face.crop import CROP_RISE, CROP_SCALE, face_square
from ..files import readable
from ..models.reader import MIRROR
from .people import ADVICE, people_in, read_person

SIZE = 128
TRUTH = ("landmarks", "pose", "gaze", "blink", "mouth", "parts")


@dataclass
class Sample:
    """One crop and its truth; `framed` None means: no opinion on whether it is a face."""

    image: np.ndarray  # (128, 128, 3) uint8
    framed: float | None  # 1 a framed face, 0 none
    landmarks: np.ndarray | None = None  # (68, 2) fractions; None for what is not a face
    pose: np.ndarray | None = None  # (3,) as in models.reader.Prediction
    gaze: np.ndarray | None = None  # (2,)
    blink: np.ndarray | None = None  # (2,)
    mouth: float = 0.0
    parts: np.ndarray | None = None  # (32, 32) uint8


class Heads:
    """Up to `frames` frames of each of the first `most` identities in a folder, kept as JPEG in memory."""

    def __init__(self, folder: Path, most: int | None = None, frames: int = 24):
        self.jpegs: list[np.ndarray] = []
        self.identity: list[int] = []
        truth, sizes = [], []
        for number, file in enumerate(people_in(folder, most)):
            jpegs, labels = read_person(file, TRUTH, frames)
            with readable(file, ADVICE):
                sizes.append(Image.open(BytesIO(jpegs[0])).size)
                if sizes[-1] != sizes[0]:
                    raise ValueError(f"its pictures are {sizes[-1]}, those of the first {sizes[0]}")
            self.jpegs += jpegs
            self.identity += [number] * len(jpegs)
            truth.append(labels)
        self.truth = {name: np.concatenate([labels[name] for labels in truth]) for name in TRUTH}

    def __len__(self) -> int:
        return len(self.jpegs)

    def picture(self, i: int) -> np.ndarray:
        """(256, 256, 3) uint8 RGB."""
        return cv2.cvtColor(cv2.imdecode(self.jpegs[i], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def crop(self, i: int, shift=(0.0, 0.0), scale: float = 1.0, turn: float = 0.0, mirror: bool = False) -> Sample:
        """Frame i in its crop, moved by `shift` (crop sides), enlarged, turned anticlockwise (degrees), mirrored."""
        landmarks = self.truth["landmarks"][i]
        (x, y), face = face_square(landmarks)
        y -= CROP_RISE * face
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        linear = np.array([[cos, sin], [-sin, cos]]) * scale / (CROP_SCALE * face)  # y down: anticlockwise to the eye
        if mirror:
            linear[0] *= -1
        offset = 0.5 + np.asarray(shift) - linear @ [x, y]
        picture = self.picture(i)
        image = cv2.warpAffine(
            picture,
            _by_index(linear, offset, picture.shape[0], SIZE),
            (SIZE, SIZE),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        parts = self.truth["parts"][i]
        parts = cv2.warpAffine(
            parts,
            _by_index(linear, offset, parts.shape[0], SIZE // 4),
            (SIZE // 4, SIZE // 4),
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REPLICATE,
        )
        landmarks = landmarks @ linear.T + offset
        pose, gaze, blink = (self.truth[key][i].astype(np.float64) for key in ("pose", "gaze", "blink"))
        if mirror:
            landmarks, pose, gaze, blink = landmarks[MIRROR], pose * [1, -1, -1], gaze * [-1, 1], blink[::-1]
        turned = np.radians(turn)
        if turned:
            pose = cv2.Rodrigues(cv2.Rodrigues(np.array([0, 0, turned]))[0] @ cv2.Rodrigues(pose)[0])[0][:, 0]
        return Sample(
            image,
            1.0,
            landmarks.astype(np.float32),
            pose.astype(np.float32),
            gaze.astype(np.float32),
            np.ascontiguousarray(blink, np.float32),
            float(self.truth["mouth"][i]),
            parts,
        )


def _by_index(linear: np.ndarray, offset: np.ndarray, before: int, after: int) -> np.ndarray:
    """(2, 3) for OpenCV, from a map of fractions to fractions, between pictures of `before` and `after` pixels."""
    matrix = np.empty((2, 3))
    matrix[:, :2] = linear * after / before
    matrix[:, 2] = offset * after + matrix[:, :2].sum(1) * 0.5 - 0.5
    return matrix
