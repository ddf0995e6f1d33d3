"""The renderer: a source picture and a motion latent per frame make frames (IMTalker, arXiv 2511.22167, section 3)."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from .appearance import AppearanceEncoder
from .eyes import FARTHER, eyeballs, gaze_change
from .latent import GAZE
from .motion import IdentityAdapter, LandmarkMotionEncoder, MotionDecoder, MotionEncoder
from .synthesis import SynthesisNetwork
from .transfer import MotionTransfer, TransferSource
from .warping import FlowTransfer


@dataclass(frozen=True)
class RendererConfig:
    """Every size of the renderer. Tuples are coarse first; the defaults are the published `base`."""

    size: int = 512  # picture side, pixels
    stem: int = 32
    widths: tuple[int, ...] = (512, 512, 256, 128, 64, 32)  # appearance maps, from the coarsest to S/2
    encoder_residuals: int = 2
    identity_dim: int = 512
    motion_dim: int = 32
    motion_encoder: str = "pixels"  # "pixels" as published, or "landmarks"
    motion_stem: int = 64  # of the pixels encoder
    motion_widths: tuple[int, ...] = (128, 256, 512, 512, 512)  # of the pixels encoder, fine first
    adapter_hidden: int = 512
    adapter_residual: bool = False  # the adapter adds to the latent instead of replacing it
    const_channels: int = 32
    map_convs: int = 3  # convolutions per level of the motion decoder
    modulation: str = "scale"  # how the latent steers them: "scale" as published, or "affine"
    transfer: str = "attention"  # implicit, as published, or "flow": explicit, to compare it with
    attention_levels: int = 4  # levels that attend, or have a flow of their own; finer ones are resampled
    heads: int = 8
    fine: str = "mean"  # how finer levels follow: "mean" of a cell as published, or "sample"
    eyes: float = 0.0  # radians of gaze to a unit of an anchored latent, by which eyeballs move; 0: as attention says
    hints: bool = False  # tell synthesis the driving maps too
    copy: bool = False  # fetch the source's pixels too, and keep those that fit
    synthesis_residuals: tuple[tuple[int, int], ...] = ((2, 2),) * 5
    synthesis_attention: tuple[str, ...] = ("global", "global", "global", "window", "window")

    def __post_init__(self):
        # JSON has no tuples: accept its lists, so that a config read back equals the one written.
        for name in ("widths", "motion_widths", "synthesis_attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.motion_encoder not in ("pixels", "landmarks"):
            raise ValueError(f"motion_encoder {self.motion_encoder!r}, expected 'pixels' or 'landmarks'")
        if self.modulation not in ("scale", "affine"):
            raise ValueError(f"modulation {self.modulation!r}, expected 'scale' or 'affine'")
        if self.fine not in ("mean", "sample"):
            raise ValueError(f"fine {self.fine!r}, expected 'mean' or 'sample'")
        if self.transfer not in ("attention", "flow") or (self.transfer == "flow" and self.fine == "mean"):
            raise ValueError(f"transfer {self.transfer!r}, expected 'attention', or 'flow' with fine='sample'")
        if self.eyes and (self.motion_encoder, self.fine, self.transfer) != ("landmarks", "sample", "attention"):
            raise ValueError("eyes needs motion_encoder='landmarks' and attention with fine='sample'")
        object.__setattr__(self, "synthesis_residuals", tuple(tuple(pair) for pair in self.synthesis_residuals))

    @property
    def first_size(self) -> int:
        """Side of the coarsest map, cells."""
        return self.size >> len(self.widths)


MINI_RENDERER = RendererConfig(
    size=256, stem=16, widths=(96, 96, 48, 32, 16), encoder_residuals=1, identity_dim=128,
    motion_encoder="landmarks", adapter_hidden=128,
    adapter_residual=True, const_channels=32,
    map_convs=2, modulation="affine", attention_levels=3, heads=2, fine="sample", eyes=0.3, hints=True, copy=True,
    synthesis_residuals=((0, 1), (0, 1), (0, 1), (0, 1)), synthesis_attention=("global", "none", "none", "none"))


@dataclass(frozen=True, eq=False)
class SourceFeatures:
    """All that rendering needs of the source picture, computed once. Batch size 1, or one row per frame."""

    motion: Tensor  # (B, motion_dim), the source's own motion latent
    identity: Tensor  # (B, identity_dim)
    transfer: TransferSource


def map_tensors(function: Callable[..., Tensor], *parts):
    """`function` of tensors that sit at the same place in each of `parts`: alike dataclasses, lists and tuples of
    tensors, at any depth. None, which all lack, stays."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*parts)
    if isinstance(first, (list, tuple)):
        return type(first)(map_tensors(function, *each) for each in zip(*parts, strict=True))
    return replace(first, **{field.name: map_tensors(function, *(getattr(part, field.name) for part in parts))
                             for field in fields(first)})


class Renderer(nn.Module):
    """encode_source once, then render any number of frames. Pictures are (B, 3, S, S) RGB in [0, 1]."""

    def __init__(self, config: RendererConfig = RendererConfig()):
        super().__init__()
        c = self.config = config
        map_widths = c.widths[:c.attention_levels]
        self.appearance_encoder = AppearanceEncoder(c.stem, c.widths, c.encoder_residuals, c.identity_dim)
        self.motion_encoder = (LandmarkMotionEncoder(c.motion_dim) if c.motion_encoder == "landmarks"
                               else MotionEncoder(c.motion_stem, c.motion_widths, c.motion_dim))
        self.adapter = IdentityAdapter(c.motion_dim, c.identity_dim, c.adapter_hidden, c.adapter_residual)
        self.motion_decoder = MotionDecoder(c.motion_dim, c.const_channels, c.first_size // 2, map_widths, c.map_convs,
                                           c.modulation)
        self.transfer = (MotionTransfer(map_widths, c.heads, c.fine, c.hints) if c.transfer == "attention"
                         else FlowTransfer(map_widths, c.hints))
        self.synthesis = SynthesisNetwork(c.widths, c.synthesis_residuals, c.synthesis_attention, c.heads, c.first_size,
                                          c.copy)

    def encode_motion(self, pictures: Tensor) -> Tensor:
        """Motion latents (B, motion_dim) of pictures (B, 3, S, S)."""
        return self.motion_encoder(pictures)

    def motion_maps(self, motion: Tensor, identity: Tensor) -> list[Tensor]:
        """Motion maps, coarse first, of latents (B, motion_dim) adapted to `identity` (B or 1, identity_dim)."""
        return self.motion_decoder(self.adapter(motion, identity))

    def encode_source(self, picture: Tensor, motion: Tensor | None = None, gaze: Tensor | None = None
                      ) -> SourceFeatures:
        """Source side of everything, from pictures (B, 3, S, S). `motion` (B, motion_dim) replaces their own latent.
        gaze: (B, 2) radians, as somebody else sees it, for a renderer that moves eyes: where they look from is what
        they are turned from, and as a small picture hardly tells, the mean is taken."""
        appearance, identity = self.appearance_encoder(picture)
        eyes = None
        if self.config.eyes:
            read, landmarks = self.motion_encoder.observe(picture)
            eyes = eyeballs(landmarks.detach().float(), self.config.size // 2)
            if gaze is not None:
                read[:, GAZE] = (read[:, GAZE] + gaze.to(read) / self.config.eyes) / 2
        elif motion is None:
            read = self.encode_motion(picture)
        motion = read if motion is None else motion
        maps = self.motion_maps(motion, identity)
        levels = [*appearance, picture] if self.config.copy else appearance
        source = SourceFeatures(motion, identity, self.transfer.encode_source(maps, levels, eyes))
        if self.training or not self.config.copy:
            return source
        *fine, pixels = source.transfer.fine  # with those of the source's own frame, for `SynthesisNetwork.blend`
        fine.append(torch.cat([pixels, self.render(source, motion)], 1))
        return replace(source, transfer=replace(source.transfer, fine=fine))

    def align(self, source: SourceFeatures, motion: Tensor) -> list[Tensor]:
        """The source's features moved as the latents `motion` (B, motion_dim) say: what `synthesis` makes frames of."""
        return self.transfer(self.motion_maps(motion, source.identity), source.transfer, self.gaze(source, motion))

    def gaze(self, source: SourceFeatures, motion: Tensor) -> Tensor | None:
        """How far the latents `motion` (B, motion_dim) look away from where the source does, for `transfer`."""
        if not self.config.eyes:
            return None
        change = gaze_change(motion, source.motion, self.config.eyes)
        return change if self.training else FARTHER * change

    def render(self, source: SourceFeatures, motion: Tensor) -> Tensor:
        """Frames (B, 3, S, S) in [0, 1] of the source moved as the latents `motion` (B, motion_dim) say."""
        return self.synthesis(self.align(source, motion))

    def forward(self, picture: Tensor, driving: Tensor) -> Tensor:
        """Frames of `picture` (1 or B, 3, S, S) with the motion of the pictures `driving` (B, 3, S, S)."""
        return self.render(self.encode_source(picture), self.encode_motion(driving))
