"""The renderer as its description reads, for the benchmark to measure against: no trick, nothing kept, nothing folded.

One frame at a time, float32, eager. Attention weights are built in full (in the published model 8 x 4096 x 4096),
resampling gathers, and the source's side of transfer (its motion maps, keys, values) is made again for every frame.
What is made once for a picture are its appearance, identity and motion latent, as in the published program.

Reads the weights of a `Renderer` by their names and shares no code with it, so that each proves the other right.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..models.renderer import Renderer

LEFT_EYE, RIGHT_EYE, MOUTH = slice(42, 48), slice(36, 42), slice(48, 68)  # landmarks


class PlainSource(NamedTuple):
    picture: Tensor  # (1, 3, S, S)
    appearance: list[Tensor]  # maps, coarse first
    identity: Tensor
    motion: Tensor  # (1, motion_dim)
    eyes: Tensor | None  # (1, 1, S / 2, S / 2): how far its points move when the gaze changes, in sides
    astray: Tensor | None  # (2, G, G): how far beside itself a cell looks while nothing moves, in cells
    own: Tensor | None  # (1, 3, S, S): the frame of nothing moving


class PlainRenderer:
    """`encode_source` once a picture, then `frame` for every motion latent. All tensors have batch size 1."""

    def __init__(self, renderer: Renderer):
        """renderer: as it is loaded, on any device; its weights are read, not changed. Raises InputError for one that
        warps instead of attending: what it would be compared with is not what it does."""
        if renderer.config.transfer != "attention":
            raise InputError(f"model with transfer {renderer.config.transfer!r}, expected 'attention': choose another")
        self.config = renderer.config
        self.weights = {name: x.float() for name, x in renderer.state_dict().items()}

    @torch.inference_mode()
    def encode_source(self, picture: Tensor) -> PlainSource:
        """picture: (1, 3, S, S) in [0, 1]."""
        x = F.relu(self.norm("appearance_encoder.stem_norm", self.conv("appearance_encoder.stem", picture, padding=3)))
        maps = []
        for level in range(len(self.config.widths)):
            x = self.conv_block(f"appearance_encoder.blocks.{level}", x, self.config.encoder_residuals, "down")
            maps.append(x)
        identity = self.equal_mlp("appearance_encoder.identity", x.mean((2, 3)))
        eyes = eye_field(self.landmarks(picture)[0], picture.shape[-1] // 2) if self.config.eyes else None
        motion, astray = self.encode_motion(picture), None
        if self.config.fine == "sample":
            finest = self.motion_maps(self.adapt(motion, identity))[-1]
            logits, weights = self.weigh(self.config.attention_levels - 1, finest, finest)
            place = mean_place(logits[0], weights.mean(1).argmax(-1)[0], finest.shape[-1])
            astray = place - grid(finest.shape[-1], place.device)
        source = PlainSource(picture, maps[::-1], identity, motion, eyes, astray, None)
        return source._replace(own=self.frame(source, motion)) if self.config.copy else source

    @torch.inference_mode()
    def encode_motion(self, picture: Tensor) -> Tensor:
        """Motion latent (1, motion_dim) of a picture (1, 3, S, S)."""
        if self.config.motion_encoder == "pixels":
            return self.motion_of_pixels(picture)
        landmarks, evidence = self.landmarks(picture)
        return (self.mlp("motion_encoder.geometry", (4 * landmarks - 2).view(1, -1))
                + self.mlp("motion_encoder.correction", evidence))

    @torch.inference_mode()
    def frame(self, source: PlainSource, motion: Tensor) -> Tensor:
        """The frame (1, 3, S, S) in [0, 1] of the source moved as `motion` (1, motion_dim) says."""
        source_maps = self.motion_maps(self.adapt(source.motion, source.identity))
        driving_maps = self.motion_maps(self.adapt(motion, source.identity))
        aligned = self.transfer(driving_maps, source_maps, source, motion)
        own = None if source.own is None else aligned.pop()
        frame = self.synthesise(aligned)
        if own is None:
            return frame
        share = (-((frame - own).abs().mean(1) / 0.04) ** 2).exp()
        return (frame + share * (aligned[-1] - own)).clamp(0, 1)

    # -------------------------------------------------------------------------------------------------------- layers

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 1, equalised: bool = False) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        if equalised:
            weight = weight / math.sqrt(weight[0].numel())
        return F.conv2d(x, weight, self.weights.get(f"{name}.bias"), stride, padding)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def equal_linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.linear(x, weight / math.sqrt(weight.shape[1]), self.weights[f"{name}.bias"])

    def equal_mlp(self, name: str, x: Tensor) -> Tensor:
        for i in range(4):
            x = F.leaky_relu(self.equal_linear(f"{name}.hidden.{i}", x), 0.2)
        return self.equal_linear(f"{name}.out", x)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Batch norm with its running statistics."""
        mean, variance, weight, bias = (
            self.weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, variance, weight, bias)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def fused_leaky_relu(self, bias: str, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.weights[bias].view(1, -1, 1, 1), 0.2) * math.sqrt(2)

    def conv_block(self, name: str, x: Tensor, residuals: int, resize: str = "none") -> Tensor:
        if resize == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.leaky_relu(self.norm(f"{name}.norm", self.conv(f"{name}.conv1", x)), 0.01)
        if resize == "down":
            x = F.avg_pool2d(x, 2)
        x = self.conv(f"{name}.conv2", x)
        for block in (f"{name}.residuals.{i}" for i in range(residuals)):
            y = F.leaky_relu(self.norm(f"{block}.norm1", self.conv(f"{block}.conv1", x)), 0.01)
            x = F.leaky_relu(self.norm(f"{block}.norm2", self.conv(f"{block}.conv2", y)) + x, 0.01)
        return x

    # -------------------------------------------------------------------------------------------------------- motion

    def motion_of_pixels(self, picture: Tensor) -> Tensor:
        name = "motion_encoder"
        x = F.leaky_relu(self.conv(f"{name}.stem", picture), 0.2)
        for block in (f"{name}.blocks.{i}" for i in range(len(self.config.motion_widths))):
            y = self.fused_leaky_relu(f"{block}.bias1", self.conv(f"{block}.conv1", x, equalised=True))
            y = self.conv(f"{block}.conv2", blur(y, 2), stride=2, padding=0, equalised=True)
            skip = self.conv(f"{block}.skip", blur(x, 2), stride=2, padding=0, equalised=True)
            x = self.fused_leaky_relu(f"{block}.bias2", y) + self.fused_leaky_relu(f"{block}.bias_skip", skip)
        return self.equal_mlp(f"{name}.head", self.conv(f"{name}.last", x, equalised=True).mean((2, 3)))

    def landmarks(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Landmarks (68, 2) in fractions of the side, and what else the reader sees."""
        name = "motion_encoder.reader"

        def conv(part: str, x: Tensor, stride: int = 1) -> Tensor:
            return F.relu(self.norm(f"{name}.{part}.1", self.conv(f"{name}.{part}.0", x, stride)))

        def look(part: str, maps: Tensor, landmarks: Tensor, width: float) -> Tensor:
            """Numbers from a patch, 12 x 8 points, over a group of landmarks (n, 2)."""
            low, high = landmarks.amin(0), landmarks.amax(0)
            half = ((high - low)[0] * width / 2).clamp(0.02, 0.5)
            x, y = (torch.linspace(-1, 1, n, device=maps.device) for n in (12, 8))
            grid = torch.stack(torch.meshgrid(x, y * 8 / 12, indexing="xy"), -1)
            at = ((low + high) / 2 + half * grid) * maps.shape[-1] - 0.5  # (8, 12, 2) x, y in cells
            patch = conv(f"{part}.shrink", gather_bilinear(maps, at[..., 0], at[..., 1]), stride=2)
            return F.relu(self.linear(f"{name}.{part}.keep", patch.flatten(1)))

        twice = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")
        x = F.interpolate(picture, size=(128, 128), mode="area") * 4 - 2
        maps = []  # at strides 2, 4, 8, 16
        for stage, depth in enumerate((0, 1, 2, 2)):
            x = conv(f"stages.{stage}.0", x, stride=2)
            for block in (f"stages.{stage}.{i + 1}" for i in range(depth)):
                y = self.conv(f"{name}.{block}.second.0", conv(f"{block}.first", x))
                x = F.relu(x + self.norm(f"{name}.{block}.second.1", y))
            maps.append(x)
        four, eight, sixteen = (self.conv(f"{name}.lateral.{i}", x, padding=0) for i, x in enumerate(maps[1:]))
        merged = conv("merge_4", four + twice(conv("merge_8", eight + twice(sixteen))))
        chance = self.conv(f"{name}.place", merged, padding=0)[0].flatten(1).softmax(-1).view(-1, *merged.shape[2:])
        across, down = ((torch.arange(n, device=x.device) + 0.5) / n for n in (chance.shape[2], chance.shape[1]))
        landmarks = torch.stack([(chance.sum(1) * across).sum(1), (chance.sum(2) * down).sum(1)], -1)  # (68, 2)
        fine = torch.cat([maps[0], twice(maps[1])], 1)
        looks = [look("eye", fine, landmarks[RIGHT_EYE], 1.8), look("eye", fine, landmarks[LEFT_EYE], 1.8),
                 look("lips", fine, landmarks[MOUTH], 1.4)]
        return landmarks, torch.cat([maps[3].mean((2, 3)), *looks], 1)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """Linear layers numbered 0, 2, ..., ReLU between."""
        x = self.linear(f"{name}.0", x)
        layer = 2
        while f"{name}.{layer}.weight" in self.weights:
            x = self.linear(f"{name}.{layer}", F.relu(x))
            layer += 2
        return x

    def adapt(self, motion: Tensor, identity: Tensor) -> Tensor:
        change = self.equal_mlp("adapter.head", self.equal_linear("adapter.join", torch.cat([motion, identity], 1)))
        return motion + change if self.config.adapter_residual else change

    def motion_maps(self, adapted: Tensor) -> list[Tensor]:
        """Motion maps, coarse first, of an adapted latent (1, motion_dim)."""
        styled = self.affine_conv if self.config.modulation == "affine" else self.modulated_conv
        x = styled("motion_decoder.first", self.weights["motion_decoder.const"], adapted, up=False)
        maps = []
        for level in range(self.config.attention_levels):
            for conv in range(self.config.map_convs):
                x = styled(f"motion_decoder.levels.{level}.{conv}", x, adapted, up=conv == 0)
            maps.append(x)
        return maps

    def modulated_conv(self, name: str, x: Tensor, style: Tensor, up: bool) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        scale = self.equal_linear(f"{name}.modulation", style)
        weight = weight / math.sqrt(weight[0].numel()) * scale[:, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        if up:
            x = blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), 1, gain=4)
        else:
            x = F.conv2d(x, weight, padding=1)
        return self.fused_leaky_relu(f"{name}.bias", x)

    def affine_conv(self, name: str, x: Tensor, style: Tensor, up: bool) -> Tensor:
        if up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        scale, shift = self.linear(f"{name}.style", style)[:, :, None, None].chunk(2, 1)
        return F.leaky_relu(self.conv(f"{name}.conv", x * (1 + scale) + shift), 0.2)

    # ------------------------------------------------------------------------------------------------------ transfer

    def transfer(self, driving_maps: list[Tensor], source_maps: list[Tensor], source: PlainSource,
                 motion: Tensor) -> list[Tensor]:
        """Aligned features, coarse first."""
        aligned = []
        for level, (driving, own, value) in enumerate(zip(driving_maps, source_maps, source.appearance)):
            name = f"transfer.levels.{level}"
            logits, weights = self.weigh(level, driving, own)
            value = heads(self.linear(f"{name}.v_proj", tokens(value)), self.config.heads)
            attended = self.linear(f"{name}.proj", (weights @ value).transpose(1, 2).flatten(2))
            aligned.append(attended.transpose(1, 2).view_as(driving))
            if self.config.hints:
                aligned[-1] = aligned[-1] + self.conv(f"transfer.hints.{level}", driving, padding=0)
        match = weights.mean(1).argmax(-1)[0]  # (N,): where every cell of the finest level looks most
        cells = driving.shape[-1]
        fine = [*source.appearance[len(driving_maps):], *([source.picture] if self.config.copy else [])]
        fine += [] if source.own is None else [source.own]
        if self.config.fine == "mean":
            return aligned + [cell_means(level, match, cells) for level in fine]
        place = mean_place(logits[0], match, cells)
        near = (-(((place - grid(cells, place.device)) / 2) ** 2).sum(0)).exp()
        place = place - near * gather_bilinear(source.astray[None], place[0], place[1])[0]
        if self.config.eyes:
            place = self.look(place, source, motion)
        return aligned + [sample_at(level, place) for level in fine]

    def weigh(self, level: int, driving: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and weights of a level's attention, (1, h, N, N)."""
        query, key = (heads(self.linear(f"transfer.levels.{level}.{part}_proj", tokens(x)), self.config.heads)
                      for part, x in (("q", driving), ("k", own)))
        logits = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        return logits, logits.softmax(-1)

    def look(self, place: Tensor, source: PlainSource, motion: Tensor) -> Tensor:
        """Places (2, G, G) in cells, corrected for the gaze: (2, S / 2, S / 2) in half pixels' steps."""
        points, times = source.eyes.shape[-1], source.eyes.shape[-1] // place.shape[-1]
        offset = F.interpolate((place - grid(place.shape[-1], place.device))[None], scale_factor=times, mode="bilinear")
        fine = offset[0] * times + grid(points, place.device)
        ahead, own = (gaze_vector(*(x[0, 6:8] * self.config.eyes)) for x in (motion, source.motion))
        change = ahead - own
        change = (change + torch.linalg.cross(source.motion[0, :3] * self.config.eyes, change))[:2]  # nearly turned
        change[1] *= -1  # downwards
        moved = 1.4 * gather_bilinear(source.eyes, fine[0], fine[1])[0, 0]
        return fine - points * moved * change[:, None, None]

    # ----------------------------------------------------------------------------------------------------- synthesis

    def synthesise(self, aligned: list[Tensor]) -> Tensor:
        x = aligned[0]
        for stage, (before, after) in enumerate(self.config.synthesis_residuals):
            x = self.conv_block(f"synthesis.up.{stage}", x, before, "up")
            x = self.conv_block(f"synthesis.join.{stage}", torch.cat([x, aligned[stage + 1]], 1), after)
            kind = self.config.synthesis_attention[stage]
            if kind == "global":
                x = self.global_attention(f"synthesis.attention.{stage}.0", x)
            elif kind == "window":
                x = self.window_attention(f"synthesis.attention.{stage}.0", x, 0)
                x = self.window_attention(f"synthesis.attention.{stage}.1", x, 4)
        painted = F.pixel_shuffle(self.conv("synthesis.to_rgb", F.leaky_relu(x, 0.2)), 2).sigmoid()
        if not self.config.copy:
            return painted
        painted, trust = painted[:, :3], painted[:, 3:]
        return painted * (1 - trust) + aligned[-1] * trust

    def attend(self, name: str, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        query, key, value = (heads(self.linear(f"{name}.{part}_proj", x), self.config.heads)
                             for part, x in (("q", query), ("k", key), ("v", value)))
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + bias).softmax(-1)
        return self.linear(f"{name}.proj", (weights @ value).transpose(1, 2).flatten(2))

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        y = self.linear(f"{name}.ffn.0", self.layer_norm(f"{name}.norm_ffn", x))
        return x + self.linear(f"{name}.ffn.2", F.gelu(y))

    def global_attention(self, name: str, x: Tensor) -> Tensor:
        shape, x = x.shape, tokens(x)
        query = self.layer_norm(f"{name}.norm_q", x + self.weights[f"{name}.q_position"])
        key = self.layer_norm(f"{name}.norm_kv", x + self.weights[f"{name}.k_position"])
        x = x + self.attend(name, query, key, self.layer_norm(f"{name}.norm_kv", x))
        return self.feed_forward(name, x).transpose(1, 2).reshape(shape)

    def window_attention(self, name: str, x: Tensor, shift: int) -> Tensor:
        size = x.shape[-1]
        x = windows(x.permute(0, 2, 3, 1).roll((-shift, -shift), (1, 2)))
        rows, mask = window_tables(size, shift, x.device)
        bias = self.weights[f"{name}.relative_bias"][rows].permute(2, 0, 1) + mask
        key = self.layer_norm(f"{name}.norm_kv", x)
        x = x + self.attend(name, self.layer_norm(f"{name}.norm_q", x), key, key, bias)
        x = self.feed_forward(name, x)
        x = x.view(1, size // 8, size // 8, 8, 8, -1).transpose(2, 3).reshape(1, size, size, -1)
        return x.roll((shift, shift), (1, 2)).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------------------------- pieces


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device)
    kernel = torch.outer(taps, taps) / 64 * gain
    return F.conv2d(x, kernel.expand(x.shape[1], 1, 4, 4), padding=padding, groups=x.shape[1])


def tokens(x: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, N, C)."""
    return x.flatten(2).transpose(1, 2)


def heads(x: Tensor, count: int) -> Tensor:
    """(B, N, C) -> (B, h, N, d)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def windows(x: Tensor) -> Tensor:
    """(1, S, S, C) -> (S² / 64, 64, C), one row per 8 x 8 window."""
    size, channels = x.shape[2:]
    return x.reshape(size // 8, 8, size // 8, 8, channels).transpose(1, 2).reshape(-1, 64, channels)


@cache
def window_tables(size: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (64, 64) of the table of relative positions, and -100 (windows, 1, 64, 64) where the shift joined strangers.

    Not of a frame: the published model keeps both beside its weights.
    """
    y, x = torch.arange(64, device=device) // 8, torch.arange(64, device=device) % 8
    rows = (y[:, None] - y + 7) * 15 + (x[:, None] - x + 7)
    band = torch.zeros(size, device=device)
    if shift:
        band[-8:-shift], band[-shift:] = 1, 2
    region = windows((band[:, None] * 3 + band)[None, :, :, None])  # (windows, 64, 1)
    return rows, ((region != region.transpose(1, 2)) * -100.0)[:, None]


def cell_means(level: Tensor, match: Tensor, cells: int) -> Tensor:
    """Every target cell of a (cells, cells) grid filled with the mean of `level` (1, C, R, R) over its source cell."""
    _, channels, size, _ = level.shape
    ratio = size // cells
    patches = level.view(channels, cells, ratio, cells, ratio).permute(1, 3, 0, 2, 4).reshape(-1, channels, ratio**2)
    fetched = patches.gather(0, match[:, None, None].expand_as(patches)).mean(-1)  # (N, C)
    fetched = fetched[:, :, None].expand(-1, -1, ratio**2).reshape(cells, cells, channels, ratio, ratio)
    return fetched.permute(2, 0, 3, 1, 4).reshape(level.shape)


def eye_field(landmarks: Tensor, size: int) -> Tensor:
    """(1, 1, size, size): half the width of an eye inside of it, falling to 0 around it and for eyes that are shut."""
    x, y = torch.meshgrid(*[(torch.arange(size, device=landmarks.device) + 0.5) / size] * 2, indexing="xy")
    field = torch.zeros_like(x)
    for eye in (landmarks[RIGHT_EYE], landmarks[LEFT_EYE]):
        (left, right), lids = eye[[0, 3]], eye[[1, 2, 4, 5]]
        width = (right - left).norm() / 2
        height = ((lids[0] - lids[3]).norm() + (lids[1] - lids[2]).norm()) / 4
        middle = (left + right) / 4 + lids.mean(0) / 2
        turn = (right - left) / (2 * width)  # cosine and sine
        u = ((x - middle[0]) * turn[0] + (y - middle[1]) * turn[1]) / width
        v = ((y - middle[1]) * turn[0] - (x - middle[0]) * turn[1]) / (2.2 * height)
        inside = ((1.0 - torch.hypot(u, v)) / 0.4).clamp(0, 1)
        field += inside * width * (10 * height / width - 1).clamp(0, 1)
    return field[None, None]


def gaze_vector(yaw: Tensor, pitch: Tensor) -> Tensor:
    """x to the own left, y up, z ahead."""
    return torch.stack([yaw.sin() * pitch.cos(), -pitch.sin(), yaw.cos() * pitch.cos()])


def mean_place(logits: Tensor, match: Tensor, cells: int) -> Tensor:
    """(2, cells, cells) x and y, in cells: the mean place under the attention within two cells of the match.

    logits: (h, N, N). match: (N,).
    """
    y, x = torch.arange(cells**2, device=match.device) // cells, torch.arange(cells**2, device=match.device) % cells
    near = ((y - y[match][:, None]).abs() <= 2) & ((x - x[match][:, None]).abs() <= 2)  # (N, N)
    weights = logits.masked_fill(~near, -torch.inf).softmax(-1).mean(0)
    return torch.stack([weights @ x.float(), weights @ y.float()]).view(2, cells, cells)


def grid(side: int, device: torch.device) -> Tensor:
    """Every cell's own place, (2, side, side) x and y."""
    own = torch.arange(side, device=device)
    return torch.stack([own.expand(side, -1), own[:, None].expand(-1, side)])


def sample_at(level: Tensor, place: Tensor) -> Tensor:
    """Pixels of `level` (1, C, R, R), each taken from as far away as `place` (2, cells, cells) is from its own cell."""
    cells, size = place.shape[-1], level.shape[-1]
    offset = F.interpolate((place - grid(cells, place.device))[None], size=(size, size), mode="bilinear")[0]
    offset = offset * (size / cells)
    own = torch.arange(size, device=place.device)
    return gather_bilinear(level, own + offset[0], own[:, None] + offset[1])


def gather_bilinear(level: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`level` (1, C, R, R) read at x, y (h, w), in its pixels, held inside; (1, C, h, w): four gathers, mixed."""
    channels, size = level.shape[1], level.shape[-1]
    x, y = x.clamp(0, size - 1), y.clamp(0, size - 1)
    left, top = x.floor(), y.floor()
    pixels, mixed = level.flatten(2), 0.0
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        column, row = (left + across).clamp(max=size - 1), (top + down).clamp(max=size - 1)
        share = (1 - (x - left - across).abs()) * (1 - (y - top - down).abs())
        at = (row * size + column).long().flatten().expand(1, channels, -1)
        mixed = mixed + pixels.gather(2, at).unflatten(2, x.shape) * share
    return mixed
