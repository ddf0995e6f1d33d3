"""What the source looks like: multi-scale appearance maps and an identity vector."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvBlock, EqualMLP


class AppearanceEncoder(nn.Module):
    """Picture (B, 3, S, S) in [0, 1] to appearance maps, coarse first, and identity (B, identity_dim).

    The finest map is S/2 wide; each coarser one half of the one before.
    """

    def __init__(self, stem: int, widths: tuple[int, ...], residuals: int, identity_dim: int):
        super().__init__()
        fine_first = widths[::-1]
        self.stem = nn.Conv2d(3, stem, 7, padding=3)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.blocks = nn.ModuleList(
            ConvBlock(i, o, residuals, resize="down") for i, o in zip((stem, *fine_first), fine_first))
        self.identity = EqualMLP(widths[0], identity_dim, identity_dim)

    def forward(self, picture: Tensor) -> tuple[list[Tensor], Tensor]:
        x = F.relu(self.stem_norm(self.stem(picture)))
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps[::-1], self.identity(x.mean((2, 3)))
