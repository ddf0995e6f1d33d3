"""Who is it? A recogniser of rendered people that needs no downloads, and the aligned faces that recognisers look at.

Fisherfaces (Belhumeur, Hespanha, Kriegman 1997, IEEE PAMI 19:711): pictures of aligned faces are projected to where
people differ and one person's pictures do not. It goes by skin, shape and light alike, so it tells whether the person
in a made clip is still the source and none of the others; it is no judge of likeness among real people.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ..bundled import weights_file
from ..files import complete, readable

FACE = 112  # pixels
# Where eyes, tip of the nose and corners of the mouth lie in it: the framing of ArcFace (arXiv 1801.07698).
PLACES = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
SMALL = 40  # pixels of the faces that our own recogniser looks at
COMPONENTS, DIRECTIONS = 200, 64  # of the pictures, and of what tells people apart


def similarity(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """(2, 3) matrix that moves, turns and scales points (N, 2) as near to `onto` (N, 2) as it can (Umeyama 1991)."""
    a, b = points - points.mean(0), onto - onto.mean(0)
    u, size, vt = np.linalg.svd(b.T @ a)
    flip = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    linear = (u * flip) @ vt * (size * flip).sum() / (a ** 2).sum()
    return np.column_stack([linear, onto.mean(0) - linear @ points.mean(0)])


def aligned_faces(frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(T, 112, 112, 3) uint8 faces of frames (T, S, S, 3) with landmarks (T, 68, 2) in fractions of the frame."""
    faces = []
    for frame, marks in zip(frames, landmarks):
        points = np.stack([marks[36:42].mean(0), marks[42:48].mean(0), marks[30], marks[48], marks[54]])
        matrix = similarity(points * len(frame), PLACES)
        matrix[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5  # OpenCV counts from the middle of the first pixel
        faces.append(cv2.warpAffine(frame, matrix, (FACE, FACE), flags=cv2.INTER_LINEAR,
                                    borderMode=cv2.BORDER_REPLICATE))
    return np.stack(faces)


@dataclass(frozen=True)
class Recogniser:
    """Fisherfaces."""

    mean: np.ndarray  # (4800,) of small faces, float32, 0..1
    directions: np.ndarray  # (4800, 64)

    def __call__(self, faces: np.ndarray) -> np.ndarray:
        """(T, 64) unit vectors of aligned faces (T, 112, 112, 3) uint8; one person's lie close to each other."""
        return _unit((_pixels(faces) - self.mean) @ self.directions)

    def save(self, path: Path) -> None:
        """In half precision; the file appears only when complete."""
        with complete(Path(path)) as unfinished:
            save_file({name: np.float16(value) for name, value in vars(self).items()}, unfinished)

    @classmethod
    def load(cls, path: Path | None = None) -> Recogniser:
        """From a file of `save`, by default our own."""
        path = weights_file(path, "recogniser.safetensors", "recogniser")
        with readable(path, "give the file that imtalker train recogniser wrote"):
            return cls(**{name: np.float32(value) for name, value in load_file(path).items()})


def fit(faces: np.ndarray, identity: np.ndarray) -> Recogniser:
    """A recogniser from aligned faces (N, 112, 112, 3) uint8 of people `identity` (N,) whole numbers from 0."""
    pixels = _pixels(faces)
    mean = pixels.mean(0)
    with torch.random.fork_rng():  # the search for the strongest components begins at random
        torch.manual_seed(0)
        components = torch.pca_lowrank(torch.from_numpy(pixels), min(COMPONENTS, *pixels.shape), niter=4)[2].numpy()
    x = (pixels - mean) @ components
    count = np.bincount(identity)
    people = np.stack([np.bincount(identity, column) for column in x.T], 1) / count[:, None]
    within = np.cov((x - people[identity]).T)
    within += 0.01 * np.trace(within) / len(within) * np.eye(len(within))  # few pictures know little of the last ones
    value, vector = np.linalg.eigh(within)
    whiten = vector / np.sqrt(value)
    value, vector = np.linalg.eigh(np.cov((people @ whiten).T))
    return Recogniser(mean, np.float32(components @ whiten @ vector[:, ::-1][:, :DIRECTIONS]))


def _pixels(faces: np.ndarray) -> np.ndarray:
    """(T, 4800) float32 in 0..1."""
    small = [cv2.resize(face, (SMALL, SMALL), interpolation=cv2.INTER_AREA) for face in faces]
    return np.stack(small).reshape(len(faces), -1).astype(np.float32) / 255


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
