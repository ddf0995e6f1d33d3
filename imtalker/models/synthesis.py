"""From aligned features to the frame."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvBlock, fading

WINDOW = 8  # cells on a side of an attention window
ALIKE = 0.04  # of the range: frames that differ by so much hardly show the same any more


class FeedForward(nn.Sequential):
    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class GlobalAttention(nn.Module):
    """Self-attention over all cells with learned positions on queries and keys: (B, C, H, W) to the same."""

    def __init__(self, width: int, heads: int, cells: int):
        super().__init__()
        self.heads = heads
        self.q_position = nn.Parameter(torch.zeros(1, cells, width))
        self.k_position = nn.Parameter(torch.zeros(1, cells, width))
        self.norm_q, self.norm_kv, self.norm_ffn = (nn.LayerNorm(width) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.ffn = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (
            self.q_proj(self.norm_q(x + self.q_position)),
            self.k_proj(self.norm_kv(x + self.k_position)),
            self.v_proj(self.norm_kv(x))))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.ffn(self.norm_ffn(x))
        return x.transpose(1, 2).reshape(shape)


class WindowAttention(nn.Module):
    """Self-attention inside 8 x 8 windows, shifted by `shift` cells, with a learned bias per relative position."""

    def __init__(self, width: int, heads: int, size: int, shift: int):
        super().__init__()
        self.heads, self.size, self.shift = heads, size, shift
        self.norm_q, self.norm_kv, self.norm_ffn = (nn.LayerNorm(width) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.ffn = FeedForward(width)
        self.relative_bias = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        y, x = torch.arange(WINDOW ** 2) // WINDOW, torch.arange(WINDOW ** 2) % WINDOW
        row = (y[:, None] - y[None] + WINDOW - 1) * (2 * WINDOW - 1) + (x[:, None] - x[None] + WINDOW - 1)
        self.register_buffer("bias_row", row, persistent=False)
        self.register_buffer("mask", self.border_mask(size, shift) if shift else None, persistent=False)

    @staticmethod
    def border_mask(size: int, shift: int) -> Tensor:
        """(windows, 1, 64, 64): -100 between cells that only the wrap-around of the shift made neighbours."""
        band = torch.zeros(size, dtype=torch.long)
        band[-WINDOW:-shift], band[-shift:] = 1, 2
        region = (band[:, None] * 3 + band[None]).view(size // WINDOW, WINDOW, size // WINDOW, WINDOW)
        region = region.transpose(1, 2).reshape(-1, WINDOW ** 2)
        return ((region[:, :, None] != region[:, None, :]) * -100.0)[:, None]

    def partition(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to windows (B·windows, 64, C)."""
        b, h, w, c = x.shape
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        return x.view(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).transpose(2, 3).reshape(-1, WINDOW ** 2, c)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = self.partition(x.permute(0, 2, 3, 1))
        kv = self.norm_kv(x)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (
            self.q_proj(self.norm_q(x)), self.k_proj(kv), self.v_proj(kv)))
        bias = self.relative_bias[self.bias_row].permute(2, 0, 1)[None]
        if self.shift:
            bias = (bias + self.mask).repeat(b, 1, 1, 1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        x = x + self.ffn(self.norm_ffn(x))
        x = x.view(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).transpose(2, 3).reshape(b, h, w, c)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x.permute(0, 3, 1, 2)


def self_attention(kind: str, width: int, heads: int, size: int) -> nn.Sequential:
    """Self-attention of one stage: "global", "window" (plain, then shifted) or "none"."""
    if kind == "global":
        return nn.Sequential(GlobalAttention(width, heads, size * size))
    if kind == "window":
        return nn.Sequential(*(WindowAttention(width, heads, size, shift) for shift in (0, WINDOW // 2)))
    if kind == "none":
        return nn.Sequential()
    raise ValueError(f"attention kind {kind!r}, expected 'global', 'window' or 'none'")


class SynthesisNetwork(nn.Module):
    """Aligned features, coarse first, to frames (B, 3, S, S) in [0, 1].

    One stage per map after the first: double the size, join the aligned map, attend. `residuals` holds, per stage, the
    number of residual blocks before and after the join. With `copy`, one more map follows: pixels fetched from the
    source, (B, 3, S, S), which the frame keeps wherever a predicted mask trusts them; or (B, 6, S, S), those and the
    same pixels of the source's own frame, see `blend`.
    """

    def __init__(self, widths: tuple[int, ...], residuals: tuple[tuple[int, int], ...], attention: tuple[str, ...],
                 heads: int, first_size: int, copy: bool):
        super().__init__()
        self.copy = copy
        self.painted_as: torch.dtype | None = None  # None: as it comes
        stages = list(zip(widths[:-1], widths[1:], residuals, attention, strict=True))
        self.up = nn.ModuleList(ConvBlock(i, o, n, resize="up") for i, o, (n, _), _ in stages)
        self.join = nn.ModuleList(ConvBlock(2 * o, o, n) for _, o, (_, n), _ in stages)
        self.attention = nn.ModuleList(
            self_attention(kind, o, heads, first_size * 2 ** (k + 1)) for k, (_, o, _, kind) in enumerate(stages))
        self.to_rgb = nn.Conv2d(widths[-1], 16 if copy else 12, 3, padding=1)

    def paint_as(self, kind: torch.dtype) -> None:
        """Paint in this type from now on, whatever comes. What is fetched stays as exact as it comes."""
        self.painted_as = kind
        if kind == torch.bfloat16:  # float16 is for autocast, which knows where it is too little
            self.bfloat16()

    def stages(self, aligned: list[Tensor], first: int = 0) -> Tensor:
        """Output of as many stages as there are maps, from stage `first`, whose input is the first map."""
        x = aligned[0]
        stages = list(zip(self.up, self.join, self.attention))[first:]
        for (up, join, attention), features in zip(stages, aligned[1:]):
            # sampled features are not in the convolutions' memory format, and joined first would be slower to convert
            features = features.contiguous(memory_format=torch.channels_last)
            x = attention(join(torch.cat([up(x), features], 1)))
        return x

    def paint(self, aligned: list[Tensor], first: int = 0) -> tuple[Tensor, Tensor | None]:
        """The painted picture (B, 3, S, S) and, with `copy`, how far to trust fetched pixels instead, (B, 1, S, S)."""
        x = self.stages(aligned, first)
        phases = self.to_rgb(F.leaky_relu(x, 0.2)).contiguous()  # plane by plane, as pixels are fetched: blends faster
        painted = F.pixel_shuffle(phases, 2).sigmoid()
        return (painted[:, :3], painted[:, 3:]) if self.copy else (painted, None)

    def blend(self, painted: Tensor, trust: Tensor | None, aligned: list[Tensor]) -> Tensor:
        """The frame (B, 3, S, S): the painted picture, or the fetched pixels where they are trusted.

        What the source's own frame, made of it without moving anything, lacks of the source is then put back, wherever
        the frame shows what that one does: not where a mouth has opened or an eye has shut. So a face keeps its look,
        however little like the faces of the training data it is.
        """
        if trust is None:
            return painted
        fetched, own = aligned[-1][:, :3], aligned[-1][:, 3:]
        frame = painted.to(fetched.dtype).lerp(fetched, trust.to(fetched.dtype))
        if not own.shape[1]:
            return frame
        beside = (frame - own).abs_().mean(1, keepdim=True)
        return frame.addcmul_(fetched - own, fading(beside.div_(ALIKE).square_())).clamp_(0, 1)

    def forward(self, aligned: list[Tensor]) -> Tensor:
        if self.painted_as is None:
            return self.blend(*self.paint(aligned), aligned)
        with torch.autocast(aligned[0].device.type, torch.float16, enabled=self.painted_as == torch.float16):
            painted, trust = self.paint([x.to(self.painted_as) for x in aligned[:len(self.up) + 1]])  # no pixels
        return self.blend(painted, trust, aligned)
