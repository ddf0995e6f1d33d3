"""A StyleGAN2-style critic for the adversarial loss."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import EqualConv2d, EqualLinear
from ..models.motion import DownBlock


class Discriminator(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1] to one logit each, (B, 1). `width` channels at S/2, doubled per halving."""

    def __init__(self, size: int, width: int = 32, widest: int = 256):
        super().__init__()
        widths = [min(width << k, widest) for k in range(size.bit_length() - 3)]  # down to 4 x 4
        self.stem = nn.Conv2d(3, widths[0], 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(DownBlock(i, o) for i, o in zip(widths, widths[1:])))
        self.last = EqualConv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.logit = EqualLinear(widths[-1], 1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.blocks(F.leaky_relu(self.stem(pictures * 2 - 1), 0.2))
        # How much the batch varies, as one more map: a collapsed renderer gives itself away.
        spread = x.float().std(0, unbiased=False).mean().to(x.dtype).expand(len(x), 1, *x.shape[2:])
        return self.logit(F.leaky_relu(self.last(torch.cat([x, spread], 1)), 0.2).mean((2, 3)))
