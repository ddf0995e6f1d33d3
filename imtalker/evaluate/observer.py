"""Evaluation's own eye for pose, gaze, lids and mouth, trained apart from every network that it judges.

Landmarks come from the face reader. From there on nothing is shared: eyes and mouth are cut out level and in one size,
and what they and the shape of the landmarks say is learned anew, on people that no other network has seen. A step as
plain as this reads gaze better than the reader's own close look, which must work on paintings and photographs as well.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..bundled import weights_file
from ..face import Reader, Reading, no_crop
from ..face.reader import look_closer

ACROSS, DOWN = 36, 24  # pixels of a patch
# corners between which a patch is laid, and its width over their distance: both eyes, the mouth
PATCHES = ((36, 39, 1.5), (42, 45, 1.5), (48, 54, 1.4))
PIXELS = len(PATCHES) * ACROSS * DOWN
COMPONENTS, HIDDEN = 160, 192
SCALE = torch.tensor([.3, .3, .3, .3, .3, .5, .5, .1])  # of pose, gaze, lids and mouth


class Observer(nn.Module):
    """(N, 3 * 24 * 36) patches and (N, 68, 2) landmarks -> (N, 8): pose, gaze, lids, mouth as in `face.Reading`."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(PIXELS))
        self.register_buffer("components", torch.zeros(PIXELS, COMPONENTS))  # principal ones, of unit deviation
        self.layers = nn.Sequential(nn.Linear(COMPONENTS + 2 * 68, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN // 2),
                                    nn.ReLU(), nn.Linear(HIDDEN // 2, len(SCALE)))

    def forward(self, patches: Tensor, landmarks: Tensor) -> Tensor:
        low, high = landmarks.amin(1, keepdim=True), landmarks.amax(1, keepdim=True)
        shape = 6 * (landmarks - (low + high) / 2) / (high - low).amax(-1, keepdim=True)
        seen = torch.cat([(patches - self.mean) @ self.components, shape.flatten(1)], 1)
        return self.layers(seen) * SCALE.to(seen)


def cut_patches(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(3 * 24 * 36,) float32: eyes and mouth in a frame (S, S, 3), grey, each of zero mean and unit deviation."""
    found = []
    for a, b, width in PATCHES:
        (ax, ay), (bx, by) = landmarks[a] * len(frame), landmarks[b] * len(frame)
        scale = ACROSS / max(width * np.hypot(bx - ax, by - ay), 1e-3)
        angle = np.arctan2(by - ay, bx - ax)
        linear = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        offset = np.array([ACROSS, DOWN]) / 2 - linear @ [(ax + bx) / 2, (ay + by) / 2]
        offset += linear.sum(1) / 2 - 0.5  # OpenCV counts from the middle of the first pixel
        patch = cv2.warpAffine(frame, np.column_stack([linear, offset]), (ACROSS, DOWN), flags=cv2.INTER_LINEAR,
                               borderMode=cv2.BORDER_REPLICATE).mean(2, dtype=np.float32)
        found.append((patch - patch.mean()) / (patch.std() + 4))
    return np.stack(found).ravel()


@torch.inference_mode()
def observe(frames: np.ndarray, reader: Reader, observer: Observer) -> Reading:
    """What is seen in frames (T, S, S, 3) uint8; landmarks, in fractions of the frame, and score by the reader."""
    read = look_closer(frames, no_crop(*frames.shape[1:3]), reader)
    patches = np.stack([cut_patches(*pair) for pair in zip(frames, read.landmarks)])
    seen = observer(torch.from_numpy(patches), torch.from_numpy(np.float32(read.landmarks))).numpy()
    return replace(read, pose=seen[:, :3], gaze=seen[:, 3:5], blink=seen[:, 5:7].clip(0, 1), mouth=seen[:, 7].clip(0))


def load_observer(path: Path | None = None) -> Observer:
    """From a file of `imtalker train observer`, by default our own."""
    path = weights_file(path, "observer.safetensors", "observer")
    observer = Observer()
    observer.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return observer.eval().requires_grad_(False)
