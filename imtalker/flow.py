"""Flow matching: the straight path from noise to data, and how to walk it.

    x_t = (1 - t) x_0 + t x_1        x_0 noise, x_1 data, t in [0, 1]
    dx_t/dt = x_1 - x_0              the velocity a network learns

(Lipman et al. 2023, arXiv 2210.02747, with sigma_min = 0.) Pure functions: no network, no state.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> dx_t/dt; t is a tensor without dimensions."""


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """x_t on the straight path. `t`: (B,) or anything that broadcasts from the left against (B, ...)."""
    t = t.reshape(t.shape + (1,) * (x_1.ndim - t.ndim))
    return (1 - t) * x_0 + t * x_1


def target_velocity(x_0: Tensor, x_1: Tensor) -> Tensor:
    """The velocity of the straight path: the same at every t."""
    return x_1 - x_0


def time_grid(nfe: int) -> Tensor:
    """Times from 0 to 1 for `nfe` velocity evaluations: (nfe + 1,) float32."""
    if nfe < 1:
        raise ValueError(f"nfe={nfe} leaves no step from noise to data; give at least 1")
    return torch.linspace(0, 1, nfe + 1)


@dataclass(frozen=True)
class Held:
    """Data that is known beforehand: x_1 is `value` as far as `share`, 0 to 1, says. Both broadcast against x."""

    value: Tensor
    share: Tensor


def euler(velocity: Velocity, x_0: Tensor, times: Tensor, held: Held | None = None) -> Tensor:
    """Walk from `x_0` along `times` (n + 1,) with exactly n evaluations of `velocity`; returns x at times[-1].

    What is `held` in full keeps to its own straight path, so that all else is made to suit it; what is held in part is
    mixed in at the end.
    """
    times = times.to(x_0)
    x = x_0
    for start, end in pairwise(times):
        x = x + (end - start) * velocity(x, start)
        if held is not None:
            x = x.lerp(interpolate(x_0, held.value, end), held.share.floor())
    return x if held is None else x.lerp(held.value, held.share)


def guide(without: Tensor, given: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: v_0 + s (v_1 - v_0). Scale 1 returns the conditional velocity, 0 the unconditional."""
    return without + scale * (given - without)
