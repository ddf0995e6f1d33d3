"""Where in the source the target's cells look: read off attention finer than a cell, and fetched.

Shapes: a place is x and y, in cells of the map that it is told for; B frames, G x G cells.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import fading

REACH = 2  # cells around the best match that refine its place
NEAR = 2.0  # cells: what has moved farther errs in another way than what has not moved


class Surroundings:
    """The cells around every cell of a map of `height` x `width`: what refines where attention looks."""

    def __init__(self, height: int, width: int, device: torch.device):
        cell, reach = torch.arange(height * width, device=device), torch.arange(-REACH, REACH + 1, device=device)
        away = torch.stack([reach.repeat(len(reach)), reach.repeat_interleave(len(reach))], -1)  # (K, 2), x and y
        self.own = torch.stack([cell % width, cell // width], -1)  # (N, 2)
        x, y = (self.own[:, None] + away).unbind(-1)  # (N, K)
        self.away = away.float()
        self.outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        self.cells = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)

    def logits(self, logits: Tensor, match: Tensor) -> Tensor:
        """Of the attention's (B, h, R, N) those around every row's best cell, `match` (B, R): (B, h, R, K)."""
        return logits.gather(-1, self.cells[match][:, None].expand(-1, logits.shape[1], -1, -1))

    def place(self, logits: Tensor, match: Tensor) -> Tensor:
        """Where in the source every row looks, finer than a cell: (B, R, 2) x and y, in cells.

        The mean place under the attention weights of the cells around the best match, whose logits (B, h, R, K) are.
        Differentiable in them.
        """
        weights = logits.masked_fill(self.outside[match][:, None], -torch.inf).softmax(-1).mean(1)  # (B, R, K)
        return self.own[match] + weights @ self.away


def grid_of(place: Tensor) -> Tensor:
    """Every cell's own place (2, G, G), x and y, of a map of places (B, 2, G, G)."""
    own = torch.arange(place.shape[-1], device=place.device, dtype=place.dtype)
    return torch.stack(torch.meshgrid(own, own, indexing="xy"))


def values_at(field: Tensor, place: Tensor) -> Tensor:
    """Values of a field (B or 1, C, H, H) at places (B, 2, G, G), x and y in its own cells: (B, C, G, G)."""
    grid = (place + 0.5).permute(0, 2, 3, 1) * (2 / field.shape[-1]) - 1
    field = field.to(grid.dtype).expand(place.shape[0], -1, -1, -1)
    return F.grid_sample(field, grid, padding_mode="border", align_corners=False)


def set_right(place: Tensor, astray: Tensor) -> Tensor:
    """Places (B, 2, G, G) less what they err by while nothing moves, `astray` (B or 1, 2, G, G), as far as they are
    near."""
    moved = (place - grid_of(place)).square().sum(1, keepdim=True)
    return place - values_at(astray, place) * fading(moved / NEAR**2)


def sample_at(level: Tensor, place: Tensor) -> Tensor:
    """Pixels of `level` (B or 1, C, R, R) at `place` (B, 2, G, G), x and y in cells of a G x G grid: (B, C, R, R).

    What is interpolated between cells is how far to look, so that standing still copies every pixel exactly.
    """
    cells, size = place.shape[-1], level.shape[-1]
    offset = F.interpolate(place - grid_of(place), size=(size, size), mode="bilinear")
    offset = offset * (2 / cells)  # of the range -1 to 1
    centre = (torch.arange(size, device=place.device, dtype=place.dtype) * 2 + 1) / size - 1
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy")) + offset
    grid = grid.permute(0, 2, 3, 1).to(level.dtype)
    return F.grid_sample(level.expand(place.shape[0], -1, -1, -1), grid, padding_mode="border", align_corners=False)
