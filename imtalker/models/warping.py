"""Explicit motion transfer, which the implicit one is measured against: maps predict a flow, the appearance follows.

Takes and gives what `transfer.MotionTransfer` does, in the manner of first-order and latent-direction models (Siarohin
et al., arXiv 2003.00196; Wang et al., LIA, arXiv 2203.09043): offsets from coarse to fine, and a mask of what the
source does not show.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .places import grid_of, sample_at
from .transfer import Hints, TransferSource

VISIBLE = 2.0  # logit of the mask to begin with


class Warp(nn.Module):
    """One level: from the driving and the source's map, (B, C, G, G) each, where every cell comes from.

    About as many weights as attention of the same width has.
    """

    def __init__(self, width: int):
        super().__init__()
        self.join = nn.Conv2d(2 * width, width, 1)
        self.flow = nn.Conv2d(width, 3, 3, padding=1)  # offset in x and y, mask
        self.proj = nn.Conv2d(width, width, 1)
        nn.init.normal_(self.flow.weight, std=1e-4)  # it stands still, nearly
        self.flow.bias.data = torch.tensor([0.0, 0.0, VISIBLE])

    def forward(self, driving_map: Tensor, source_map: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        """Offset (B, 2, G, G) in cells, added to twice the coarser level's, and the mask (B, 1, G, G)."""
        maps = torch.cat([driving_map, source_map.expand(len(driving_map), -1, -1, -1)], 1)
        offset, mask = self.flow(F.leaky_relu(self.join(maps), 0.2)).float().split([2, 1], 1)
        if coarser is not None:
            offset = offset + 2 * F.interpolate(coarser, scale_factor=2, mode="bilinear")
        return offset, mask.sigmoid()


class FlowTransfer(nn.Module):
    """`levels` of the appearance are warped by their own flow; finer ones are sampled by the finest of them."""

    def __init__(self, widths: tuple[int, ...], hints: bool):
        super().__init__()
        self.hints = Hints(widths) if hints else None
        self.levels = nn.ModuleList(Warp(width) for width in widths)

    def encode_source(self, source_maps: list[Tensor], appearance: list[Tensor], eyes: None = None) -> TransferSource:
        """Keys are the source's motion maps, values its appearance maps, (B, C, G, G) each."""
        count = len(self.levels)
        return TransferSource(self.source_keys(source_maps), appearance[:count], appearance[count:])

    def source_keys(self, source_maps: list[Tensor]) -> list[Tensor]:
        return source_maps

    def places(self, driving_maps: list[Tensor], source_maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Coarse first, where every level's cells come from, (B, 2, G, G) x and y in cells, and the mask."""
        places, offset = [], None
        for warp, driving_map, source_map in zip(self.levels, driving_maps, source_maps):
            offset, mask = warp(driving_map, source_map, offset)
            places.append((offset + grid_of(offset), mask))
        return places

    def forward(self, driving_maps: list[Tensor], source: TransferSource, gaze: None = None) -> list[Tensor]:
        """Aligned features, coarse first: one map for each appearance map of the source."""
        places = self.places(driving_maps, source.keys)
        aligned = [warp.proj(sample_at(values, place) * mask.to(values.dtype))
                   for warp, values, (place, mask) in zip(self.levels, source.values, places)]
        if self.hints:
            aligned = self.hints(aligned, driving_maps)
        finest, _ = places[-1]
        return aligned + [sample_at(level, finest) for level in source.fine]
