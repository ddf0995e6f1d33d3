"""Motion generator: audio features, head pose, camera and gaze -> motion latents, by flow matching.

    B batch, W window (50 frames made at once), C context (the 10 frames before), N = C + W tokens,
    M motion latent (32), K condition (32 as published), D width of the network

A transformer over N tokens predicts the velocity of the window's motion; conditions and time enter as per-token
modulation (adaptive layer norm). `Generator.step` walks the flow of one window, which begins where the one before
ended; `stream.MotionStream` steps through a clip.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import flow

CONTROLS = ("pose", "cam", "gaze")
CONDITIONS = ("audio",) + CONTROLS
SETTLE = 0.93  # what is left, a frame later, of the step between two windows, see `damping`


@dataclass(frozen=True)
class GeneratorConfig:
    """The defaults are the published network; `GeneratorConfig.mini()` is ours."""

    motion_dim: int = 32
    audio_dim: int = 768
    pose_dim: int = 3           # axis-angle head rotation, radians
    cam_dim: int = 3            # mini: log scale, x, y of the head; published: weak-perspective camera of SMIRK
    gaze_dim: int = 2           # mini: yaw, pitch in the head, radians; published: angles of L2CS-Net
    condition_dim: int = 32
    width: int = 512
    depth: int = 8
    heads: int = 8
    mlp_ratio: int = 4
    modulation_rank: int = 0    # 0: one full matrix per block, as published; r: through r numbers, far fewer weights
    time_dim: int = 256
    window: int = 50            # frames
    context: int = 10           # frames
    noise: tuple[float, ...] = ()   # deviation of the noise in each latent number; none: 1
    # The latent begins with pose, cam and gaze in these units, so controls are kept exactly; none: it is not known how
    control_scale: tuple[float, ...] = ()
    # How much of the way to what was sampled each number goes in a frame, see `damping`; none: all of it
    follow: tuple[float, ...] = ()

    def __post_init__(self):
        anchored = sum(getattr(self, f"{name}_dim") for name in CONTROLS)
        for name, length in (("noise", self.motion_dim), ("follow", self.motion_dim), ("control_scale", anchored)):
            if len(getattr(self, name)) not in (0, length):
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers, expected {length} or none")

    @classmethod
    def mini(cls) -> GeneratorConfig:
        # Heads stay nearly where they were: from noise as wide as the data, what is left of it would shake them.
        noise = (.1,) * 6 + (.3,) * 2 + (1.,) * 24      # pose and cam, gaze, lids and expression
        return cls(audio_dim=128, condition_dim=64, width=192, depth=4, heads=4, mlp_ratio=3, modulation_rank=32,
                   noise=noise, control_scale=(.3, .3, .3, .15, .08, .08, .3, .3), follow=(.6,) * 6 + (1.,) * 26)


# ------------------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Conditions:
    """What drives the motion, projected: each (B, n, K). An absent one is zeros."""

    audio: Tensor
    pose: Tensor
    cam: Tensor
    gaze: Tensor

    def __len__(self) -> int:
        """Number of frames."""
        return self.audio.shape[1]

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        return Conditions(*(function(getattr(self, name)) for name in CONDITIONS))

    def __getitem__(self, frames: slice) -> Conditions:
        return self.map(lambda x: x[:, frames])

    def join(self, later: Conditions) -> Conditions:
        return Conditions(*(torch.cat([getattr(self, name), getattr(later, name)], 1) for name in CONDITIONS))

    def keep(self, **masks: Tensor) -> Conditions:
        """Drop parts: `masks` maps a condition's name to what (B,), (B, n) or (B, n, 1) to multiply it by (0 drops)."""
        def apply(name: str) -> Tensor:
            x = getattr(self, name)
            if name not in masks:
                return x
            mask = masks[name].to(x)
            return x * mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))

        unknown = set(masks) - set(CONDITIONS)
        if unknown:
            raise ValueError(f"no condition named {', '.join(sorted(unknown))}; there are {', '.join(CONDITIONS)}")
        return Conditions(*(apply(name) for name in CONDITIONS))

    def sum(self) -> Tensor:
        return self.audio + self.pose + self.cam + self.gaze


class ConditionProjection(nn.Sequential):
    """(B, n, dim) -> (B, n, K)."""

    def __init__(self, dim: int, condition_dim: int):
        super().__init__(nn.Linear(dim, condition_dim), nn.LayerNorm(condition_dim), nn.SiLU())


# ---------------------------------------------------------------------------------------------------------- network


class TimeEmbedding(nn.Module):
    """(B,) t in [0, 1] -> (B, D): cosines and sines of t, then two layers."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        half = dim // 2
        self.register_buffer("frequency", 10000.0 ** (-torch.arange(half) / half), persistent=False)
        self.inner = nn.Linear(dim, width)
        self.outer = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None].float() * self.frequency.float()
        waves = torch.cat([angle.cos(), angle.sin()], -1).to(self.inner.weight.dtype)
        return self.outer(F.silu(self.inner(waves)))


class Modulation(nn.Module):
    """`parts` vectors of width D per token from the activated condition (B, N, D).

    The last layer begins at zero (adaLN-zero), so that an untrained block passes its input on.
    """

    def __init__(self, width: int, parts: int, rank: int):
        super().__init__()
        self.parts = parts
        self.down = nn.Linear(width, rank, bias=False) if rank else nn.Identity()
        self.linear = nn.Linear(rank or width, parts * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(self.down(condition)).chunk(self.parts, -1)


class ModulatedNorm(nn.LayerNorm):
    """LN(x) (1 + scale) + shift; the norm has no weights of its own."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6, elementwise_affine=False)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, super().forward(x), 1 + scale)


class RotaryAttention(nn.Module):
    """Self-attention over N tokens, their positions as rotations of query and key (half-split, base 10000)."""

    def __init__(self, width: int, heads: int, tokens: int):
        super().__init__()
        self.heads = heads
        half = width // heads // 2
        angle = torch.arange(tokens)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", torch.cat([angle.cos(), angle.cos()], -1), persistent=False)     # (N, D / heads)
        self.register_buffer("sin", torch.cat([-angle.sin(), angle.sin()], -1), persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def rotate(self, x: Tensor) -> Tensor:
        return x * self.cos.to(x.dtype) + x.roll(x.shape[-1] // 2, -1) * self.sin.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rotate(query), self.rotate(key), value)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config: GeneratorConfig):
        super().__init__()
        width = config.width
        self.modulation = Modulation(width, 6, config.modulation_rank)
        self.norm = ModulatedNorm(width)
        self.attention = RotaryAttention(width, config.heads, config.context + config.window)
        self.mlp = nn.Sequential(nn.Linear(width, config.mlp_ratio * width), nn.GELU(approximate="tanh"),
                                 nn.Linear(config.mlp_ratio * width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)
        x = torch.addcmul(x, gate_a, self.attention(self.norm(x, shift_a, scale_a)))
        return torch.addcmul(x, gate_m, self.mlp(self.norm(x, shift_m, scale_m)))


class Generator(nn.Module):
    """The velocity network and its sampler.

    Training: `project` the conditions of C + W frames, drop some (`Conditions.keep`), then `velocity`.
    Inference: `step` from window to window; the state goes from one to the next.
    """

    def __init__(self, config: GeneratorConfig = GeneratorConfig()):
        super().__init__()
        self.config = config
        width = config.width
        self.projections = nn.ModuleDict({
            name: ConditionProjection(getattr(config, f"{name}_dim"), config.condition_dim) for name in CONDITIONS})
        self.time = TimeEmbedding(config.time_dim, width)
        self.condition = nn.Linear(config.condition_dim, width)
        self.embed = nn.Linear(2 * config.motion_dim, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.out_modulation = Modulation(width, 2, config.modulation_rank)
        self.out_norm = ModulatedNorm(width)
        self.out = nn.Linear(width, config.motion_dim)
        self.register_buffer("damping", damping(torch.tensor(config.follow), config.window) if config.follow else None,
                             persistent=False)
        self.register_buffer("noise_scale", torch.tensor(config.noise or (1.,) * config.motion_dim), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.out.weight.dtype

    def project(self, audio: Tensor | None = None, pose: Tensor | None = None, cam: Tensor | None = None,
                gaze: Tensor | None = None) -> Conditions:
        """Raw conditions, each (B, n, its dim) or None, -> `Conditions`. An absent one is zero *after* projection."""
        raw = dict(zip(CONDITIONS, (audio, pose, cam, gaze)))
        like = next(x for x in raw.values() if x is not None)
        nothing = torch.zeros(*like.shape[:2], self.config.condition_dim, device=self.device, dtype=self.dtype)
        return Conditions(*(nothing if x is None else self.projections[name](x.to(self.out.weight))
                            for name, x in raw.items()))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, reference: Tensor) -> Tensor:
        """Velocity of every token.

        x: (B, N, M) context motion, then noisy motion. t: (B,) in [0, 1]. condition: (B, N, K), the projected
        conditions' sum. reference: (B, M), motion latent of the source. Returns (B, N, M).
        """
        c = F.silu(self.condition(condition) + self.time(t)[:, None])
        h = self.embed(torch.cat([reference[:, None].expand_as(x), x], -1))
        for block in self.blocks:
            h = block(h, c)
        return self.out(self.out_norm(h, *self.out_modulation(c)))

    def velocity(self, x: Tensor, t: Tensor, conditions: Conditions, reference: Tensor, context: Tensor) -> Tensor:
        """Velocity of the window, (B, W, M).

        x: (B, W, M) noisy motion. t: (B,). conditions: C + W frames, the context's first. reference: (B, M).
        context: (B, C, M) motion before the window; zeros (and zero conditions) where nothing came before.
        """
        return self(torch.cat([context, x], 1), t, conditions.sum(), reference)[:, context.shape[1]:]

    # ------------------------------------------------------------------------------------------------------ sampling

    def begin(self) -> SampleState:
        """The state before the first window: nothing has happened yet."""
        config = self.config
        nothing = torch.zeros(1, config.context, config.condition_dim, device=self.device, dtype=self.dtype)
        motion = torch.zeros(1, config.context, config.motion_dim, device=self.device)
        return SampleState(False, motion, Conditions(nothing, nothing, nothing, nothing))

    @torch.inference_mode()
    def step(self, state: SampleState, conditions: Conditions, reference: Tensor, noise: Tensor, *,
             times: Tensor, guidance_scale: float, keep: int | None = None,
             held: flow.Held | None = None) -> tuple[Tensor, SampleState]:
        """Make the next frames.

        conditions: 1 to W projected frames that follow `state`; a window that they do not fill is filled by
        repeating the last. reference: (1, M). noise: (1, W, M). times: see `flow.time_grid`. keep: how many frames to
        take (all that have conditions if None); the others were only look-ahead. held: see `hold`. Returns motion
        (keep, M) float32, and the state after it.
        """
        config = self.config
        known = len(conditions)
        keep = known if keep is None else keep
        full = conditions.map(lambda x: torch.cat([x, x[:, -1:].expand(-1, config.window - known, -1)], 1))
        guided = guidance_scale != 1
        branches = [state.conditions.join(full).sum()]
        if guided:  # without the window's audio; the context's stays, as it has been heard already
            branches.insert(0, state.conditions.join(full.keep(audio=full.audio.new_zeros(1))).sum())
        condition = torch.cat(branches)
        reference = reference.to(self.out.weight).expand(len(branches), -1)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            tokens = torch.cat([state.motion, x], 1).to(self.dtype).expand(len(branches), -1, -1)
            v = self(tokens, t.expand(len(branches)), condition, reference)[:, config.context:].float()
            return flow.guide(v[:1], v[1:], guidance_scale) if guided else v

        noise = noise.to(self.noise_scale) * self.noise_scale
        motion = self.steady(flow.euler(velocity, noise, times.to(self.device), held), state, held)[0, :keep]
        return motion, state.after(motion, conditions[:keep])

    def steady(self, motion: Tensor, state: SampleState, held: flow.Held | None) -> Tensor:
        """Motion (1, W, M) that has the inertia of `damping`, but for what is held."""
        if self.damping is None:
            return motion
        before = state.motion[:, -2:] if state.begun else motion[:, :1].expand(-1, 2, -1)
        steady = torch.einsum("mtk,bkm->btm", self.damping, torch.cat([before, motion], 1))
        return steady if held is None else steady.lerp(motion, held.share)

    def hold(self, controls: dict[str, tuple[Tensor, Tensor]]) -> flow.Held | None:
        """What controls, each (n, its dim) with how far it counts, (n,) from 0 to 1, say of a window's motion outright.

        A network that follows its conditions roughly is then exact. None where it is not known which numbers of the
        latent they are, as with the published weights.
        """
        config = self.config
        if not config.control_scale or not controls:
            return None
        frames = range(config.window)
        value, share = torch.zeros(2, 1, config.window, config.motion_dim, device=self.device)
        first = 0
        for name in CONTROLS:
            place = slice(first, first := first + getattr(config, f"{name}_dim"))
            if name in controls:
                rows, counts = (extend(x.to(value), frames) for x in controls[name])
                value[0, :, place] = rows / value.new_tensor(config.control_scale[place])
                share[0, :, place] = counts[:, None]
        return flow.Held(value, share)


@dataclass(frozen=True)
class SampleState:
    """All that the sampler carries from window to window."""

    begun: bool              # whether there was a window before; otherwise motion and conditions are nothing
    motion: Tensor           # (1, C, M) float32, the last frames
    conditions: Conditions   # of the same frames

    def after(self, motion: Tensor, conditions: Conditions) -> SampleState:
        """The state after one more window: motion (n, M) and the conditions of its n frames."""
        frames = self.motion.shape[1]
        return SampleState(True, torch.cat([self.motion, motion[None]], 1)[:, -frames:],
                           self.conditions.join(conditions)[-frames:])


def damping(follow: Tensor, frames: int) -> Tensor:
    """What is left of noise in a head's place shakes it: two low-pass filters of first order, one after the other.

    A head goes on as it moved where a window ends: by how much the next one would begin elsewhere is taken from it,
    less and less from frame to frame. follow: (M,), the share of the way that each filter goes per frame; 1 changes
    nothing. Returns (M, W, 2 + W): W = `frames` frames as sums of the two before the first, as they were filtered, and
    of those that come in.
    """
    follow = follow.double()[:, None]
    rest, t = 1 - follow, torch.arange(frames)
    decay = rest ** t  # (M, W)
    response = follow ** 2 * (t + 1) * decay
    inside = torch.stack([F.pad(response, (k, 0))[:, :frames] for k in range(frames)], 2)
    before = torch.stack([-(rest ** 2) * (t + 1) * decay, rest * (t + 2) * decay], 2)
    weights = torch.cat([before, inside], 2)
    seam = inside @ SETTLE ** t.double() * (follow < 1)  # (M, W), what a step at the beginning makes of it
    ahead = 1 + 2 * rest / follow  # frames by which what comes in is before what went out
    weights[:, :, :3] += seam[:, :, None] * torch.stack([-ahead, 1 + ahead, -torch.ones_like(ahead)], 2)
    return weights.float()


def window_noise(seed: int, first: int, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal float32 noise (1, W, M) = `shape` for the window that begins with frame `first`; the same on
    every device. Every frame has its own: short windows look beyond their end, and so the next one means the same."""
    block, offset = divmod(first, shape[1])
    blocks = [np.random.default_rng([seed, block + k]).standard_normal(shape, np.float32) for k in range(2)]
    return torch.from_numpy(np.concatenate(blocks, 1)[:, offset:offset + shape[1]])


def extend(control: Tensor, frames: range) -> Tensor:
    """The given frames of a control curve (n, dim), which holds its last value beyond its end."""
    return control[torch.arange(frames.start, frames.stop, device=control.device).clamp(max=len(control) - 1)]

