"""Implicit motion transfer: the driving map asks, the source map answers, the source's appearance is fetched.

Shapes: N = H·W cells of a level's map, h heads, d head width.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .eyes import look
from .places import Surroundings, grid_of, sample_at, set_right

# Attention weights built at once where the arg-max is needed: on a CPU what a core's cache holds, 1 MB in float32
MAX_WEIGHTS = {"cpu": 1 << 18, "cuda": 1 << 25}


def tokens(maps: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, C)."""
    return maps.flatten(2).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class TransferSource:
    """The source's side of transfer, computed once per picture. Lists are coarse first.

    keys, values: per attention level (B, h, N, d). fine: per resampled level its map (B, C, H, W), or, where cells are
    fetched whole, the mean of every cell of the finest attention level, (B, N, C). astray: where maps are sampled, by
    how much every cell of the finest attention level looks beside itself while nothing moves, in cells, (B, 2, H, W).
    """

    keys: list[Tensor]
    values: list[Tensor]
    fine: list[Tensor]
    astray: Tensor | None = None
    eyes: Tensor | None = None  # see `eyes.eyeballs`


class CrossAttention(nn.Module):
    """Multi-head cross-attention without residual, norm or positions; `width` channels in and out."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, h, N, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def queries(self, driving_map: Tensor) -> Tensor:
        return self.split(self.q_proj(tokens(driving_map)))

    def keys(self, source_map: Tensor) -> Tensor:
        return self.split(self.k_proj(tokens(source_map)))

    def values(self, appearance: Tensor) -> Tensor:
        return self.split(self.v_proj(tokens(appearance)))

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention weights (B, h, N, N'), rows summing to one."""
        return ((queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)).softmax(-1)

    def merge(self, x: Tensor, shape: torch.Size) -> Tensor:
        """(B, h, N, d) to the aligned map (B, C, H, W)."""
        x = self.proj(x.transpose(1, 2).flatten(2))
        return x.transpose(1, 2).unflatten(2, shape[-2:])

    def forward(self, driving_map: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries = self.queries(driving_map)
        batch = (queries.shape[0], -1, -1, -1)
        x = F.scaled_dot_product_attention(queries, keys.expand(batch), values.expand(batch))
        return self.merge(x, driving_map.shape)

    def forward_and_match(self, driving_map: Tensor, keys: Tensor, values: Tensor,
                          placed: bool) -> tuple[Tensor, Tensor]:
        """As `forward`; also where in the source every target cell looks: the number of the cell of greatest weight,
        mean over heads, (B, N) int64; or, if `placed`, a place finer than a cell, (B, 2, H, W), see
        `Surroundings.place`.

        The rows of all frames that share a source are one table: its keys are neither copied nor read again for every
        frame.
        """
        queries, shape = self.queries(driving_map), driving_map.shape
        table = queries.unflatten(0, (keys.shape[0], -1)).transpose(1, 2).flatten(2, 3)  # (sources, h, rows, d)
        with torch.autocast(table.device.type, enabled=False):  # its casts would cost more than the rest
            table = (table * table.shape[-1] ** -0.5).float()
            attended, looks = self.attend_and_look(table, keys.float(), values.float(), shape[-1] if placed else None)
        attended = attended.unflatten(2, (-1, queries.shape[2])).transpose(1, 2).flatten(0, 1)
        looks = looks.unflatten(1, (-1, queries.shape[2])).flatten(0, 1)  # (B, N) or (B, N, 2)
        return (self.merge(attended.to(queries.dtype), shape),
                looks.transpose(1, 2).contiguous().unflatten(2, shape[-2:]) if placed else looks)

    def attend_and_look(self, table: Tensor, keys: Tensor, values: Tensor, width: int | None) -> tuple[Tensor, Tensor]:
        """What rows (B, h, R, d), scaled, attend to, (B, h, R, d), and where they look: (B, R), or, in a map of that
        width, (B, R, 2). In pieces, so that no more than MAX_WEIGHTS weights exist at a time."""
        rows = max(1, MAX_WEIGHTS.get(table.device.type, 1 << 25) // (keys.shape[0] * self.heads * keys.shape[2]))
        pieces = [table] if torch.compiler.is_compiling() else table.split(rows, dim=2)  # a graph has no loops
        around = None if width is None else Surroundings(keys.shape[2] // width, width, table.device)
        attended, matches, near = [], [], []
        for piece in pieces:
            logits = piece @ keys.transpose(-1, -2)
            weights = weights_of(logits)
            attended.append(weights @ values)
            matches.append(greatest(weights.detach().sum(1)))
            if around:
                near.append(around.logits(logits, matches[-1]))
        match = torch.cat(matches, 1)
        return torch.cat(attended, 2), around.place(torch.cat(near, 2), match) if around else match


def weights_of(logits: Tensor) -> Tensor:
    """Softmax of (…, N), N up to a few thousand, in which nothing is so small that it is no normal number: products
    with those take many CPUs eight times as long. What is e^-60 of the greatest counts for nothing anyway."""
    most = logits.detach().amax(-1, keepdim=True)
    return logits.maximum(most - 60 - most.abs() * 2 ** -20).softmax(-1)  # of huge logits 60 is less than the last bit


def greatest(x: Tensor) -> Tensor:
    """The number of the greatest of x (…, N), the first if there are several: `argmax` in a fifth of its time on a CPU,
    which compares one by one where it has to know the number."""
    width = math.isqrt(x.shape[-1])
    if width * width != x.shape[-1] or torch.compiler.is_compiling():  # graphs have an operator for it
        return x.argmax(-1)
    parts = x.unflatten(-1, (width, width))
    part = parts.amax(-1).argmax(-1, keepdim=True)
    inside = parts.take_along_dim(part[..., None], -2).squeeze(-2).argmax(-1)
    return part.squeeze(-1) * width + inside


class Hints(nn.ModuleList):
    """Tells synthesis the driving maps, added to what is aligned with them; begins by telling nothing."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__(nn.Conv2d(width, width, 1) for width in widths)
        for hint in self:
            nn.init.zeros_(hint.weight)
            nn.init.zeros_(hint.bias)

    def forward(self, aligned: list[Tensor], driving_maps: list[Tensor]) -> list[Tensor]:
        return [x + hint(driving) for x, hint, driving in zip(aligned, self, driving_maps)]


class MotionTransfer(nn.Module):
    """Aligns the source's appearance to the driving motion, level by level.

    The first `len(widths)` levels attend. Finer levels have no weights: they follow the finest attention level, either
    as published (`fine="mean"`: every target cell gets the mean over the one source cell that it attends to most) or
    with all their detail (`fine="sample"`: every pixel is sampled where attention, read finer than a cell, looks, less
    what it errs by for a source that does not move: that one is copied exactly).

    With `hints`, aligned features also hold the driving map itself, so that synthesis knows of an open mouth for which
    a closed one has nothing to fetch; it begins at nothing.
    """

    def __init__(self, widths: tuple[int, ...], heads: int, fine: str, hints: bool):
        super().__init__()
        self.hints = Hints(widths) if hints else None
        self.levels = nn.ModuleList(CrossAttention(width, heads) for width in widths)
        self.fine = fine

    def encode_source(self, source_maps: list[Tensor], appearance: list[Tensor],
                      eyes: Tensor | None = None) -> TransferSource:
        """Motion maps of the source and its appearance maps, both coarse first; the picture itself may be the last."""
        fine = appearance[len(self.levels):]
        if self.fine == "mean":
            cells = source_maps[-1].shape[-1]
            fine = [tokens(F.avg_pool2d(level, level.shape[-1] // cells)) for level in fine]
        # contiguous: they are read for every frame
        keys = [x.contiguous() for x in self.source_keys(source_maps)]
        values = [block.values(x).contiguous() for block, x in zip(self.levels, appearance)]
        astray = None
        if self.fine == "sample":
            _, looks = self.levels[-1].forward_and_match(source_maps[-1], keys[-1], values[-1], placed=True)
            astray = looks - grid_of(looks)
        return TransferSource(keys, values, fine, astray, eyes)

    def source_keys(self, source_maps: list[Tensor]) -> list[Tensor]:
        """Of every attention level, (B, h, N, d)."""
        return [block.keys(x) for block, x in zip(self.levels, source_maps)]

    def forward(self, driving_maps: list[Tensor], source: TransferSource, gaze: Tensor | None = None) -> list[Tensor]:
        """Aligned features, coarse first: one map for each appearance map of the source. With `gaze`, see
        `eyes.gaze_change`, finer levels also look that far away."""
        *coarse, (finest, driving_map, keys, values) = zip(self.levels, driving_maps, source.keys, source.values)
        aligned = [block(*inputs) for block, *inputs in coarse]
        attended, looks = finest.forward_and_match(driving_map, keys, values, placed=self.fine == "sample")
        aligned.append(attended)
        if self.hints:
            aligned = self.hints(aligned, driving_maps)
        if self.fine == "mean":
            return aligned + [fetch_means(rows, looks, driving_map.shape[-1], 2 ** (level + 1))
                              for level, rows in enumerate(source.fine)]
        looks = set_right(looks, source.astray)
        if gaze is not None:
            looks = look(looks, source.eyes, gaze)
        return aligned + [sample_at(level, looks) for level in source.fine]


def fetch_means(rows: Tensor, match: Tensor, cells: int, ratio: int) -> Tensor:
    """Every target cell filled with its match's mean: rows (B or 1, N, C), match (B, N) to (B, C, ratio·cells, …)."""
    batch = match.shape[0]
    rows = rows.expand(batch, -1, -1)
    fetched = rows.gather(1, match[..., None].expand(-1, -1, rows.shape[-1])).view(batch, cells, 1, cells, 1, -1)
    fetched = fetched.expand(-1, -1, ratio, -1, ratio, -1)
    return fetched.reshape(batch, cells * ratio, cells * ratio, -1).permute(0, 3, 1, 2)
