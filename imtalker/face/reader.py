"""Read crops: landmarks, head pose, gaze, lids, mouth, and whether it is a face; and motion from driving videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch

from imtalker.bundled import load_bundled
from imtalker.errors import InputError
from imtalker.face.crop import CROP_RISE, CROP_SCALE, FACE_SCALE, Crop, crop_from_landmarks
from imtalker.models.reader import FaceReader

BATCH = 32


@dataclass(frozen=True)
class Reading:
    """What N crops show. All float32."""

    landmarks: np.ndarray  # (N, 68, 2) fractions of the crop, x right, y down
    pose: np.ndarray  # (N, 3) rotation vector, radians: x + looks down, y + turns to own left, z + lifts own left side
    gaze: np.ndarray  # (N, 2) yaw, pitch of the eyes in the head, radians, + own left, + down
    blink: np.ndarray  # (N, 2) left, right lid, 0 open .. 1 closed
    mouth: np.ndarray  # (N,) gap of the inner lips over the distance of the outer eye corners
    score: np.ndarray  # (N,) 0..1, how surely it is a human face, upright and framed by the crop policy

    def __len__(self) -> int:
        return len(self.score)


class Reader:
    """The trained face reader."""

    def __init__(self, network: FaceReader, device: str = "cpu"):
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    @property
    def size(self) -> int:
        """Side of the crops that it reads best, pixels."""
        return self.network.config.size

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray | list[np.ndarray]) -> Reading:
        """Read crops (N, S, S, 3) uint8 RGB, framed by the crop policy; any S."""
        parts = []
        for start in range(0, len(crops), BATCH):
            batch = np.stack([self._fit(crop) for crop in crops[start : start + BATCH]])
            images = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).float().div_(255)
            read = self.network(images.contiguous(memory_format=torch.channels_last))
            parts.append(
                [
                    x.float().cpu().numpy()
                    for x in (
                        read.landmarks,
                        read.pose,
                        read.gaze,
                        read.blink.clamp(0, 1),
                        read.mouth.clamp_min(0),
                        read.score.sigmoid(),
                    )
                ]
            )
        if not parts:
            shapes = (68, 2), (3,), (2,), (2,), (), ()
            return Reading(*(np.zeros((0, *shape), np.float32) for shape in shapes))
        return Reading(*(np.concatenate(column) for column in zip(*parts)))

    def _fit(self, crop: np.ndarray) -> np.ndarray:
        if crop.shape[0] == self.size:
            return crop
        return cv2.resize(
            crop,
            (self.size, self.size),
            interpolation=cv2.INTER_AREA if crop.shape[0] > self.size else cv2.INTER_LINEAR,
        )


def load_reader(path: Path | str | None = None) -> FaceReader:
    """The reader's network, float32, from weights written by `train.reader.save_reader`; by default our own."""
    network = FaceReader()
    load_bundled(network, path, "reader.safetensors", "face reader")
    return network.eval()


@cache
def default_reader() -> Reader:
    """The reader that comes with the package, loaded once."""
    return Reader(load_reader())


@dataclass(frozen=True)
class Curves:
    """What a face did in a video, one row a frame, float32; conventions of `synth.motion.Motion`."""

    pose: np.ndarray  # (T, 3) rotation vector, radians
    cam: np.ndarray  # (T, 3) log head scale against nominal framing; x, y of the head from the crop centre, crop widths
    gaze: np.ndarray  # (T, 2) radians
    blink: np.ndarray  # (T, 2) left, right, 0..1
    mouth: np.ndarray  # (T,) mouth opening, as in `Reading`

    def __len__(self) -> int:
        return len(self.mouth)


def read_curves(frames: Iterable[np.ndarray], crop: Crop, reader: Reader | None = None) -> Curves:
    """Pose, camera, gaze, lids and mouth of the face in `crop` over a clip.

    frames: (height, width, 3) uint8 RGB at 25 frames a second; crop: the clip's one, from `driving_crop`. While the
    face is lost, values go straight from the frame before to the frame after. Raises InputError when it is never seen.
    """
    reader = reader or default_reader()
    rows: list[list[np.ndarray]] = []
    pending: list[np.ndarray] = []

    def flush() -> None:
        if pending:
            read = look_closer(pending, crop, reader)
            cam = camera(read.landmarks, read.pose)
            rows.extend(zip(read.score, read.pose, cam, read.gaze, read.blink, read.mouth))
            pending.clear()

    for frame in frames:
        pending.append(frame)
        if len(pending) == BATCH:
            flush()
    flush()
    score, *columns = (np.array(column, np.float32) for column in zip(*rows)) if rows else (np.zeros(0),)
    seen = np.flatnonzero(score > 0.3)
    if not len(seen):
        raise InputError(
            "no face found in the driving video: expected a face in at least one frame; try another video"
        )
    at = np.arange(len(score))
    filled = [
        np.stack([np.interp(at, seen, values[seen]) for values in column.reshape(len(at), -1).T], -1).reshape(
            column.shape
        )
        for column in columns
    ]
    pose, cam, gaze, blink, mouth = (x.astype(np.float32) for x in filled)
    return Curves(_smooth(pose), _smooth(cam), gaze, blink, mouth)


def look_closer(frames: list[np.ndarray] | np.ndarray, crop: Crop, reader: Reader) -> Reading:
    """Read the face in `crop` of frames (height, width, 3) uint8 RGB twice: the second time framed by the landmarks of
    the first. Landmarks are in fractions of `crop`."""
    first = reader([crop.apply(frame, reader.size) for frame in frames])
    closer = [
        crop_from_landmarks(crop.to_picture(points), *frame.shape[:2]) if score > 0.1 else crop
        for points, score, frame in zip(first.landmarks, first.score, frames)
    ]
    read = reader([c.apply(frame, reader.size) for c, frame in zip(closer, frames)])
    points = [crop.to_fractions(c.to_picture(p)) for c, p in zip(closer, read.landmarks)]
    return replace(read, landmarks=np.stack(points))


def camera(landmarks: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Camera numbers (N, 3) of landmarks (N, 68, 2) in fractions of the clip's crop under head rotation pose (N, 3).

    The landmarks' bounds, less what turning the head does to them; fitted on synthetic heads, where 2.5 % of scale and
    0.8 % of the crop's width are left over.
    """
    low, high = landmarks.min(1), landmarks.max(1)
    x, y = ((low + high) / 2).T
    side = (high - low).max(1)
    down, left, roll = pose.T
    scale = np.log(side * FACE_SCALE * CROP_SCALE) + 0.10 * down**2 + 0.10 * left**2 - 0.85 * roll**2
    right_of = x - 0.5 - 0.19 * left + 0.28 * roll
    below = y - 0.5 - CROP_RISE / CROP_SCALE - 0.33 * down - 0.18 * left**2
    return np.stack([scale, right_of, below], -1).astype(np.float32)


def turn_between(a: np.ndarray, b: np.ndarray) -> float:
    """Angle (radians) between two rotation vectors (3,)."""
    relative = cv2.Rodrigues(np.float64(a))[0].T @ cv2.Rodrigues(np.float64(b))[0]
    return float(np.linalg.norm(cv2.Rodrigues(relative)[0]))


def _smooth(values: np.ndarray) -> np.ndarray:
    """(T, n) with a light 1-2-1 filter over time: the reader's own tremble is not the head's."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
