"""Motion latents in time: a head that is held steadier, and other rates. Portions (n, 32) come in and go out, so that
no whole clip is needed at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

from .media import FPS
from .models.latent import HEAD

FOLLOW = 0.6  # share of the way; less is steadier, and later


def steadied(portions: Iterable[Tensor], deviation: float) -> Iterator[Tensor]:
    """Anchored latents with pose and place of the head averaged over a Gaussian window, whose `deviation` is in frames;
    0 changes nothing. As many rows as came in, a few frames later; ends are held.

    What is read off one frame trembles. Lips and lids are faster than that and stay as they are.
    """
    if not deviation:
        yield from portions
        return
    reach = math.ceil(3 * deviation)
    weights = (torch.arange(-reach, reach + 1) / deviation).square().div(-2).softmax(0)

    def averaged(rows: Tensor) -> Tensor:
        head = rows[:, HEAD].unfold(0, 2 * reach + 1, 1) @ weights.to(rows)
        return torch.cat([head, rows[reach:-reach, HEAD.stop :]], 1)

    held: Tensor | None = None
    for portion in portions:
        held = torch.cat([portion[:1].expand(reach, -1) if held is None else held, portion])
        if len(held) > 2 * reach:
            yield averaged(held)
            held = held[-2 * reach :]
    if held is not None:
        yield averaged(torch.cat([held, held[-1:].expand(reach, -1)]))


def followed(motion: Tensor, before: Tensor | None, deviation: float) -> Tensor:
    """`steadied` for who cannot wait for the next frame: latents (1, 32) of one, whose head goes most of the way from
    where it was `before`, in the frame before it; two thirds of a frame late."""
    if before is None or not deviation:
        return motion
    return torch.cat([before[:, HEAD].lerp(motion[:, HEAD], FOLLOW), motion[:, HEAD.stop :]], 1)


def retimed_count(frames: int, fps: Fraction) -> int:
    """Frames at `fps` that cover `frames` frames at 25 a second."""
    return math.ceil(frames * fps / FPS)


def retime(portions: Iterable[Tensor], fps: Fraction) -> Iterator[Tensor]:
    """Motion latents at 25 a second -> at `fps`, by linear interpolation; both in portions (n, 32). The last is held.

    Frame k of the result is shown from k / fps on and frame i of the input from i / 25 on, so nothing moves in time.
    """
    if fps == FPS:
        yield from portions
        return
    step = FPS / fps  # input frames per output frame
    made = first = 0  # output frames so far; number of the first input frame that is still held
    held: Tensor | None = None
    for portion in portions:
        held = portion if held is None else torch.cat([held, portion])
        last = first + len(held) - 1
        count = math.floor(last / step) + 1 - made
        if count > 0:
            yield _between(held, [(made + k) * step - first for k in range(count)])
            made += count
        held, first = held[-1:], last
    if held is not None:
        rest = retimed_count(first + 1, fps) - made
        if rest > 0:
            yield held.expand(rest, -1)


def _between(motion: Tensor, places: list[Fraction]) -> Tensor:
    """Rows of `motion` (n, 32) at fractional places 0..n-1."""
    before = [math.floor(place) for place in places]
    after = [math.ceil(place) for place in places]
    share = torch.tensor([float(place % 1) for place in places], device=motion.device)[:, None]
    return motion[before].lerp(motion[after], share)
