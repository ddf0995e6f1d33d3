"""Evaluation's own eye for pose, gaze, lids and mouth, trained apart from every network that it judges.

Landmarks come from the face reader. From there on nothing is shared: eyes, mouth and the face as a whole are cut out of
the frame, level and in one size, because what an eye says lies in a few pixels; what they say is learned anew, on
people that no other network has seen. Shapes: B pictures, P = 4 patches.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bundled import load_bundled
from ..face import Reader, Reading, no_crop
from ..face.reader import look_closer
from ..models.reader import POINTS, conv_norm

SIDE = 48  # pixels of a patch
# Of the eyes, the mouth and the face: landmarks between which a patch is laid; its side, and how far its middle is
# lowered, over their distance
LEFT, RIGHT = [36, 42, 48, 36], [39, 45, 54, 45]
WIDTH, LOWERED = (1.7, 1.7, 1.5, 2.2), (0., 0., 0., .5)
CHANNELS = (3, 16, 32, 64, 64)
FEATURES, HIDDEN = 64, 192
NUMBERS = 8  # pose (3), gaze (2), lids (2) and mouth, as in `face.Reading`
BATCH = 64


def cut_patches(pictures: Tensor, landmarks: Tensor) -> Tensor:
    """(B, P, 3, 48, 48) of pictures (B, 3, S, S) with landmarks (B, 68, 2), fractions of the side."""
    left, across = landmarks[:, LEFT], landmarks[:, RIGHT] - landmarks[:, LEFT]
    down = torch.stack([-across[..., 1], across[..., 0]], -1)
    width, lowered = (across.new_tensor(x)[:, None] for x in (WIDTH, LOWERED))
    middle = left + across / 2 + lowered * down
    at = (torch.arange(SIDE, device=across.device, dtype=across.dtype) + 0.5) / SIDE - 0.5
    along = (width * across)[:, :, None, None] * at[:, None] + (width * down)[:, :, None, None] * at[:, None, None]
    where = (middle[:, :, None, None] + along).flatten(1, 2)  # (B, P·48, 48, 2)
    patches = F.grid_sample(pictures, (where * 2 - 1).to(pictures.dtype), align_corners=False, padding_mode="border")
    return patches.unflatten(2, (len(WIDTH), SIDE)).transpose(1, 2)


class Observer(nn.Module):
    """Patches (B, P, 3, 48, 48) and landmarks (B, 68, 2), of which the shape counts, to (B, 8): see `NUMBERS`."""

    def __init__(self):
        super().__init__()
        self.eye, self.mouth, self.face = look(), look(), look()
        self.layers = nn.Sequential(nn.Linear(len(WIDTH) * FEATURES + 2 * POINTS, HIDDEN), nn.ReLU(),
                                    nn.Linear(HIDDEN, HIDDEN // 2), nn.ReLU(), nn.Linear(HIDDEN // 2, NUMBERS))

    def forward(self, patches: Tensor, landmarks: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(patches, (2, 3, 4), keepdim=True)
        one, other, mouth, face = ((patches - mean) / (deviation + 1 / 64)).unbind(1)
        eyes = self.eye(torch.cat([one, other.flip(-1)])).unflatten(0, (2, -1))
        low, high = landmarks.amin(1, keepdim=True), landmarks.amax(1, keepdim=True)
        shape = 6 * (landmarks - (low + high) / 2) / (high - low).amax(-1, keepdim=True).clamp_min(1e-3)
        seen = [*eyes, self.mouth(mouth), self.face(face), shape.flatten(1)]
        return self.layers(F.dropout(torch.cat(seen, 1), 0.1, self.training))


def look() -> nn.Sequential:
    """(B, 3, 48, 48) -> (B, 64)."""
    layers = [conv_norm(*pair, stride=1 if i == 0 else 2) for i, pair in enumerate(zip(CHANNELS, CHANNELS[1:]))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS[-1] * (SIDE // 8) ** 2, FEATURES), nn.ReLU())


@torch.inference_mode()
def observe(frames: np.ndarray, reader: Reader, observer: Observer) -> Reading:
    """What is seen in frames (T, S, S, 3) uint8; landmarks, in fractions of the frame, and score by the reader."""
    read = look_closer(frames, no_crop(*frames.shape[1:3]), reader)
    marks = torch.from_numpy(np.float32(read.landmarks))
    pairs = zip(torch.from_numpy(frames).split(BATCH), marks.split(BATCH))
    seen = torch.cat([observer(cut_patches(as_pictures(x), at), at) for x, at in pairs]).numpy()
    return replace(read, pose=seen[:, :3], gaze=seen[:, 3:5], blink=seen[:, 5:7].clip(0, 1), mouth=seen[:, 7].clip(0))


def as_pictures(frames: Tensor) -> Tensor:
    """uint8 (T, S, S, 3) to float32 (T, 3, S, S) in [0, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 255


def load_observer(path: Path | None = None) -> Observer:
    """From a file of `imtalker train observer`, by default our own."""
    observer = Observer()
    load_bundled(observer, path, "observer.safetensors", "observer")
    return observer.eval().requires_grad_(False)
