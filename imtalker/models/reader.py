"""A small network that reads a face crop: landmarks, head pose, gaze, lids, mouth, parts, and whether it is a face.

Shapes: B batch, S = 128 crop side. Positions are fractions 0..1 of the crop, x right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POINTS = 68  # landmarks, in the usual order
PARTS = 7  # background, skin, eyes, mouth inside, hair, brows and lashes, clothes
EYES = ((36, 42), (42, 48))  # landmark ranges: the person's right eye, left eye
MOUTH = (48, 68)
# landmark i of a mirrored face is landmark MIRROR[i] of the face
MIRROR = [
    16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 27, 28, 29, 30,
    35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56,
    55, 64, 63, 62, 61, 60, 67, 66, 65,
]  # fmt: skip


@dataclass(frozen=True)
class FaceReaderConfig:
    size: int = 128  # side of the crops it reads
    widths: tuple[int, ...] = (16, 32, 64, 96)  # channels at strides 2, 4, 8, 16
    depths: tuple[int, ...] = (0, 1, 2, 2)  # residual blocks at each
    merged: int = 48  # channels of the merged map at stride 4
    look: int = 32  # numbers kept of each close look at an eye or the mouth
    hidden: int = 128


class Prediction(NamedTuple):
    """What the network says of B crops."""

    landmarks: Tensor  # (B, 68, 2) crop fractions
    pose: Tensor  # (B, 3) rotation vector, radians: x + looks down, y + turns to own left, z + lifts own left side
    gaze: Tensor  # (B, 2) yaw, pitch of the eyes in the head, radians, + own left, + down
    blink: Tensor  # (B, 2) left, right lid, about 0 open .. 1 closed
    mouth: Tensor  # (B,) gap of the inner lips over the distance of the outer eye corners
    score: Tensor  # (B,) logit: a human face, upright and framed by the crop policy
    parts: Tensor  # (B, 7, S/4, S/4) logits
    heat: Tensor  # (B, 68, S/4, S/4) log-probability of each landmark's place


class Observation(NamedTuple):
    """What the network sees in B crops, before it says anything."""

    landmarks: Tensor  # (B, 68, 2) crop fractions
    heat: Tensor  # (B, 68, S/4, S/4) log-probability of each landmark's place
    merged: Tensor  # (B, merged, S/4, S/4)
    coarse: Tensor  # (B, widths[-1], S/16, S/16)
    evidence: Tensor  # (B, widths[-1] + 3 look): the whole face, then closer looks at both eyes and the mouth


class FaceReader(nn.Module):
    """Input (B, 3, 128, 128) float RGB in 0..1, a face framed by the crop policy."""

    def __init__(self, config: FaceReaderConfig = FaceReaderConfig()):
        super().__init__()
        self.config = config
        widths = config.widths
        self.stages = nn.ModuleList()
        for before, after, depth in zip((3, *widths), widths, config.depths):
            residuals = (Residual(after) for _ in range(depth))
            self.stages.append(nn.Sequential(conv_norm(before, after, stride=2), *residuals))
        merged = config.merged
        self.lateral = nn.ModuleList(nn.Conv2d(width, merged, 1) for width in widths[1:])
        self.merge_8, self.merge_4 = conv_norm(merged, merged), conv_norm(merged, merged)
        self.place = nn.Conv2d(merged, POINTS, 1)
        self.segment = nn.Conv2d(merged, PARTS, 1)
        self.eye = CloseLook(widths[0] + widths[1], config.look, across=12, down=8, width=1.8)
        self.lips = CloseLook(widths[0] + widths[1], config.look, across=12, down=8, width=1.4)
        hidden = config.hidden
        self.geometry = nn.Sequential(
            nn.Linear(2 * POINTS, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden // 2),
            nn.ReLU(),
            nn.Linear(hidden // 2, 8),
        )
        self.correction = nn.Sequential(
            nn.Linear(widths[-1] + 3 * config.look, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 8)
        )
        self.judge = nn.Sequential(
            nn.Linear(2 * widths[-1] + POINTS + 3 * config.look, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1)
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 2, 4, 8, 16 of (B, 3, H, W) in 0..1; any H and W divisible by 16."""
        x = x * 4 - 2
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def observe(self, x: Tensor, hint: Tensor | None = None) -> Observation:
        """All that the readings are made of.

        hint: (B, 68, 2) landmarks to look at instead of the network's own, NaN where there are none; for training.
        """
        two, four, eight, sixteen = self.features(x)
        y = self.merge_8(self.lateral[1](eight) + _twice(self.lateral[2](sixteen)))
        merged = self.merge_4(self.lateral[0](four) + _twice(y))
        heat = self.place(merged).float().flatten(2).log_softmax(-1).unflatten(2, merged.shape[2:])
        chance = heat.exp()
        across, down = ((torch.arange(n, device=x.device) + 0.5) / n for n in (merged.shape[3], merged.shape[2]))
        landmarks = torch.stack([(chance.sum(2) * across).sum(-1), (chance.sum(3) * down).sum(-1)], -1)
        # closer looks, where the landmarks say that eyes and mouth are
        at = landmarks.detach() if hint is None else torch.where(hint.isnan(), landmarks.detach(), hint)
        fine = torch.cat([two, F.interpolate(four, size=two.shape[2:], mode="bilinear", align_corners=False)], 1)
        looks = [self.eye(fine, at[:, a:b]) for a, b in EYES] + [self.lips(fine, at[:, MOUTH[0] : MOUTH[1]])]
        return Observation(landmarks, heat, merged, sixteen, torch.cat([sixteen.mean((2, 3)), *looks], 1))

    def forward(self, x: Tensor, hint: Tensor | None = None) -> Prediction:
        seen = self.observe(x, hint)
        state = self.state_of(seen.landmarks.detach()) + self.correction(seen.evidence)
        peaks = seen.heat.exp().flatten(2).amax(-1)
        whole, looks = seen.evidence.split([seen.coarse.shape[1], 3 * self.config.look], 1)
        judged = self.judge(torch.cat([whole, seen.coarse.amax((2, 3)), peaks, looks], 1))
        parts = self.segment(seen.merged)
        return Prediction(
            seen.landmarks, state[:, :3], state[:, 3:5], state[:, 5:7], state[:, 7], judged[:, 0], parts, seen.heat
        )

    def state_of(self, landmarks: Tensor) -> Tensor:
        """(B, 68, 2) -> (B, 8): pose, gaze, lids and mouth as far as landmarks tell, whatever their place and scale."""
        low, high = landmarks.amin(1, keepdim=True), landmarks.amax(1, keepdim=True)
        side = (high - low).amax(-1, keepdim=True).clamp_min(1e-3)
        return self.geometry((4 * (landmarks - (low + high) / 2) / side).flatten(1))


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = conv_norm(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class CloseLook(nn.Module):
    """Numbers from a patch of a map that is laid over a group of landmarks, level with the picture."""

    def __init__(self, channels: int, numbers: int, across: int, down: int, width: float):
        super().__init__()
        self.width = width  # of the patch, over the width of the landmarks
        x, y = torch.meshgrid(torch.linspace(-1, 1, across), torch.linspace(-1, 1, down), indexing="xy")
        self.register_buffer("grid", torch.stack([x, y * down / across], -1), persistent=False)
        self.shrink = conv_norm(channels, numbers, stride=2)
        self.keep = nn.Linear(numbers * (across // 2) * (down // 2), numbers)

    def forward(self, maps: Tensor, landmarks: Tensor) -> Tensor:
        """maps (B, C, h, w), landmarks (B, n, 2) fractions -> (B, numbers)."""
        low, high = landmarks.amin(1), landmarks.amax(1)
        half = ((high - low)[:, 0] * self.width / 2).clamp(0.02, 0.5)
        where = ((low + high) / 2)[:, None, None, :] + half[:, None, None, None] * self.grid
        patch = F.grid_sample(maps, (where * 2 - 1).to(maps.dtype), align_corners=False, padding_mode="border")
        return F.relu(self.keep(self.shrink(patch).flatten(1)))


def conv_norm(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """A convolution over 3 x 3, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
