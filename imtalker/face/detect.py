"""Find faces in a picture, offline: OpenCV's cascades propose, the face reader frames, reads and judges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from threading import Lock

import cv2
import numpy as np

from imtalker.face.crop import CROP_SCALE, Crop, crop_from_landmarks, crop_of_face, face_square
from imtalker.face.reader import Reader, default_reader
from imtalker.models.reader import MIRROR

SEARCH_SIDE = 960  # pictures are searched no larger than this
SMALLEST_FACE = 28  # pixels, at the searched size
ROUNDS = 3  # readings, each framed by the landmarks of the one before
PASSING, STAYING = 0.45, 0.2  # scores of a face, and of one that was there a moment ago
# (file, neighbours, also mirrored)
FRONTAL = (("haarcascade_frontalface_alt2.xml", 2, False), ("haarcascade_frontalface_default.xml", 4, False))
PROFILE = (("haarcascade_profileface.xml", 3, True),)
TURNS = (-25, 25, -50, 50)  # degrees, tried when nothing is found upright
# from a cascade's box (side b) to a face: face side / b, and how far the landmarks' centre lies below the box's, in b;
# medians over synthetic heads
BOX_TO_SIDE, BOX_TO_DROP = 1.08, 0.16


@dataclass(frozen=True)
class Face:
    """One face of a picture."""

    crop: Crop  # by the crop policy
    score: float  # 0..1, how surely it is a human face
    landmarks: np.ndarray  # (68, 2) float32, picture pixels


def find_faces(picture: np.ndarray, reader: Reader | None = None) -> list[Face]:
    """Human faces of `picture`, (height, width, 3) uint8 RGB, largest first; painted and sculpted ones too.

    Those seen from the front; where there are none, those seen from the side, then tilted ones.
    """
    reader = reader or default_reader()
    for proposals in (
        lambda: propose(picture, FRONTAL),
        lambda: propose(picture, PROFILE),
        lambda: _turned_proposals(picture),
        lambda: _framed_already(picture),
    ):
        faces = _distinct(settle(picture, proposals(), reader))
        if faces:
            return faces
    return []


def follow(picture: np.ndarray, crop: Crop, reader: Reader | None = None) -> Face | None:
    """The face that was in `crop` one moment ago, or None when it is there no more."""
    faces = settle(picture, [crop], reader or default_reader(), rounds=2, passing=STAYING)
    return faces[0] if faces else None


def propose(picture: np.ndarray, cascades=FRONTAL) -> list[Crop]:
    """Crops around whatever the cascades take for a face."""
    height, width = picture.shape[:2]
    shrink = min(1.0, SEARCH_SIDE / max(height, width))
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    if shrink < 1:
        size = tuple(max(1, round(shrink * side)) for side in (width, height))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    grey = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(grey)
    crops: list[Crop] = []
    for name, neighbours, mirrored in cascades:
        for flip in (False, True) if mirrored else (False,):
            searched = cv2.flip(grey, 1) if flip else grey
            with _ONE_AT_A_TIME:
                boxes = _cascade(name).detectMultiScale(searched, 1.1, neighbours, minSize=(SMALLEST_FACE,) * 2)
            for x, y, b, _ in boxes:
                x = grey.shape[1] - x - b if flip else x
                centre = (x + b / 2) / shrink, (y + b * (0.5 + BOX_TO_DROP)) / shrink
                crops.append(crop_of_face(centre, BOX_TO_SIDE * b / shrink, height, width))
    return crops


def settle(
    picture: np.ndarray, crops: list[Crop], reader: Reader, rounds: int = ROUNDS, passing: float = PASSING
) -> list[Face]:
    """Frame what is in each crop by the landmarks read there, again and again; keep what then reads as a human face.

    The last reading is made twice, straight and mirrored: landmarks that disagree count against the face.
    """
    height, width = picture.shape[:2]
    least = SMALLEST_FACE * CROP_SCALE / 2
    for _ in range(rounds - 1):
        if not crops:
            return []
        read = reader([crop.apply(picture, reader.size) for crop in crops])
        framed = (
            crop_from_landmarks(crop.to_picture(points), height, width) for crop, points in zip(crops, read.landmarks)
        )
        crops = [new for new, old in zip(framed, crops) if new.side > max(least, old.side / 3)]
    if not crops:
        return []
    pictures = [crop.apply(picture, reader.size) for crop in crops]
    straight, mirrored = reader(pictures), reader([np.ascontiguousarray(p[:, ::-1]) for p in pictures])
    faces = []
    for i, crop in enumerate(crops):
        back = mirrored.landmarks[i][MIRROR] * [-1, 1] + [1, 0]
        points = (straight.landmarks[i] + back) / 2
        unrest = np.linalg.norm(straight.landmarks[i] - back, axis=-1).mean() / face_square(points)[1]
        agreement = np.exp(-((unrest / 0.12) ** 2)) * _plausible(points)
        score = float(np.sqrt(straight.score[i] * mirrored.score[i]) * agreement)
        if score >= passing:
            points = crop.to_picture(points).astype(np.float32)
            faces.append(Face(crop_from_landmarks(points, height, width), score, points))
    return faces


def same_face(a: Crop, b: Crop) -> bool:
    """Whether two crops show one face: centres closer than a third of the larger side."""
    apart = np.hypot(a.centre[0] - b.centre[0], a.centre[1] - b.centre[1])
    return bool(apart < max(a.side, b.side) / 3)


_ONE_AT_A_TIME = Lock()  # a cascade holds the picture that it searches


@cache
def _cascade(name: str) -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(cv2.data.haarcascades + name)


def _distinct(faces: list[Face]) -> list[Face]:
    """The surest of each face, largest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if not any(same_face(face.crop, other.crop) for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda f: -f.crop.side)


def _plausible(points: np.ndarray) -> float:
    """1.0 when landmarks (68, 2) lie as in an upright face: brows, eyes, nose, mouth, chin downwards; else 0."""
    rows = [points[a:b, 1].mean() for a, b in ((17, 27), (36, 48), (30, 36), (48, 68), (7, 10))]
    side = np.ptp(points, axis=0).max()
    return float(all(upper < lower + 0.02 * side for upper, lower in zip(rows, rows[1:])))


def _turned_proposals(picture: np.ndarray) -> list[Crop]:
    """Proposals in the picture turned about its centre, where they lie in the picture itself."""
    height, width = picture.shape[:2]
    crops = []
    for turn in TURNS:
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, 1.0)
        turned = cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        back = cv2.invertAffineTransform(matrix)
        crops += [
            Crop(tuple(float(v) for v in back[:, :2] @ c.centre + back[:, 2]), c.side, height, width)
            for c in propose(turned, FRONTAL[:1])
        ]
    return crops


def _framed_already(picture: np.ndarray) -> list[Crop]:
    """Guesses for a picture that is little more than one face."""
    height, width = picture.shape[:2]
    side = min(height, width)
    return [
        Crop((width / 2, height * (0.5 if height <= width else 0.4)), side * share, height, width)
        for share in (0.7, 1.0, 1.4)
    ]
