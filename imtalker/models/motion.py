"""From a picture to its motion latent, and from a latent to the maps that ask and answer in transfer."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import AffineConv, EqualConv2d, EqualLinear, EqualMLP, ModulatedConv, blur, fused_leaky_relu
from .reader import POINTS, FaceReader


class DownBlock(nn.Module):
    """Halve the size: two equalised convolutions beside a strided one, added without scaling."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = EqualConv2d(inputs, inputs, 3, padding=1, bias=False)
        self.conv2 = EqualConv2d(inputs, outputs, 3, stride=2, bias=False)
        self.skip = EqualConv2d(inputs, outputs, 3, stride=2, bias=False)
        self.bias1 = nn.Parameter(torch.zeros(inputs))
        self.bias2 = nn.Parameter(torch.zeros(outputs))
        self.bias_skip = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = fused_leaky_relu(self.conv1(x), self.bias1)
        y = fused_leaky_relu(self.conv2(blur(y, padding=2)), self.bias2)
        return y + fused_leaky_relu(self.skip(blur(x, padding=2)), self.bias_skip)


class MotionEncoder(nn.Module):
    """Picture (B, 3, S, S) in [0, 1] to motion latent (B, motion_dim)."""

    def __init__(self, stem: int, widths: tuple[int, ...], motion_dim: int):
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.blocks = nn.ModuleList(DownBlock(i, o) for i, o in zip((stem, *widths), widths))
        self.last = EqualConv2d(widths[-1], widths[-1], 3, padding=1)
        self.head = EqualMLP(widths[-1], widths[-1], motion_dim)

    def forward(self, picture: Tensor) -> Tensor:
        x = F.leaky_relu_(self.stem(picture), 0.2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x).mean((2, 3)))


class LandmarkMotionEncoder(nn.Module):
    """Motion latent of a picture by way of its landmarks: the face reader's network with another last word.

    An anchored latent is mostly geometry, which landmarks tell whoever the person is; closer looks at the face, the
    eyes and the mouth correct it. Reads (B, 3, S, S) in [0, 1] at 128 pixels.
    """

    def __init__(self, motion_dim: int, hidden: int = 128):
        super().__init__()
        self.reader = FaceReader()
        evidence = self.reader.config.widths[-1] + 3 * self.reader.config.look
        self.geometry = nn.Sequential(nn.Linear(2 * POINTS, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden),
                                      nn.ReLU(), nn.Linear(hidden, motion_dim))
        self.correction = nn.Sequential(nn.Linear(evidence, hidden), nn.ReLU(), nn.Linear(hidden, motion_dim))
        nn.init.zeros_(self.correction[-1].weight)

    def from_landmarks(self, landmarks: Tensor) -> Tensor:
        """(B, 68, 2) crop fractions to (B, motion_dim)."""
        return self.geometry((4 * landmarks - 2).flatten(1))

    def observe(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Motion latent, and the landmarks (B, 68, 2) it was read from."""
        size = self.reader.config.size
        if picture.shape[-1] != size:
            picture = F.interpolate(picture, size=(size, size), mode="area")
        seen = self.reader.observe(picture)
        return self.from_landmarks(seen.landmarks) + self.correction(seen.evidence), seen.landmarks

    def forward(self, picture: Tensor) -> Tensor:
        return self.observe(picture)[0]


class IdentityAdapter(nn.Module):
    """Motion latent (B, motion_dim) of anybody to the adapted latent (B, motion_dim) that suits the source's identity.

    `identity` (B, identity_dim) is always the source's, for source and driving motion alike. With `residual` the
    network says only what to change, and begins by changing nothing; as published it says the whole latent.
    """

    def __init__(self, motion_dim: int, identity_dim: int, hidden: int, residual: bool):
        super().__init__()
        self.residual = residual
        self.join = EqualLinear(motion_dim + identity_dim, hidden)
        self.head = EqualMLP(hidden, hidden, motion_dim)
        if residual:
            nn.init.zeros_(self.head.out.weight)

    def forward(self, motion: Tensor, identity: Tensor) -> Tensor:
        change = self.head(self.join(torch.cat([motion, identity.expand(motion.shape[0], -1)], 1)))
        return motion + change if self.residual else change


class MotionDecoder(nn.Module):
    """Adapted latent (B, motion_dim) to motion maps, coarse first: one map per width, each twice the size before.

    The first map is 2·`const_size` wide. `convs` counts a level's convolutions, the doubling one included. The latent
    steers them by `modulation`: "scale" of their input channels as published, or "affine".
    """

    def __init__(self, motion_dim: int, const_channels: int, const_size: int, widths: tuple[int, ...], convs: int,
                 modulation: str):
        super().__init__()
        Conv = AffineConv if modulation == "affine" else ModulatedConv
        self.const = nn.Parameter(torch.randn(1, const_channels, const_size, const_size))
        self.first = Conv(const_channels, widths[0], motion_dim)
        inputs = (widths[0], *widths)
        self.levels = nn.ModuleList(
            nn.ModuleList(Conv(inputs[i] if j == 0 else width, width, motion_dim, up=j == 0)
                          for j in range(convs))
            for i, width in enumerate(widths))

    def forward(self, adapted: Tensor) -> list[Tensor]:
        x = self.first(self.const.expand(adapted.shape[0], -1, -1, -1), adapted)
        maps = []
        for level in self.levels:
            for conv in level:
                x = conv(x, adapted)
            maps.append(x)
        return maps
