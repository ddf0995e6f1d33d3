"""Sound that is still arriving to motion, window by window: the one path from speech to motion latents.

    sound ─ push ─ features ─ window of conditions ─ flow matching, beginning where the last window ended ─ motion

Offline, a whole file is pushed through, or its features are known already; live, whatever a microphone gives is pushed.
What comes out depends on the sound and on the windows' lengths alone, to the bit, and not on the portions in which the
sound came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from numbers import Integral

import torch
from torch import Tensor

from . import flow
from .errors import InputError
from .models.audio import FeatureStream, KnownFeatures
from .models.generator import Conditions, Generator, SampleState, extend, window_noise

MEMORY = 250  # frames, 10 s: how far back a stream can be taken

Controls = Callable[[range], dict[str, tuple[Tensor, Tensor]]]
"""Frame numbers -> for each control that is given its values (n, dim) and how far they count (n,), 0 to 1."""


def held(curves: dict[str, Tensor]) -> Controls:
    """Controls that count in full: curves (n, dim), 25 rows a second, whose last row is held."""
    return lambda frames: {name: (extend(x, frames), x.new_ones(len(frames))) for name, x in curves.items()}


def plan(windows: Sequence[int] | None, look_ahead: int, longest: int) -> Iterator[int]:
    """Frames of each window, without end: as given, the last one again and again; None: as long as can be.

    longest: frames that the generator makes at once, those of the look-ahead included. Raises InputError.
    """
    if not isinstance(look_ahead, Integral) or not 0 <= look_ahead < longest:
        raise InputError(f"look_ahead={look_ahead!r}: a whole number from 0 to {longest - 1} expected")
    longest -= look_ahead
    if windows is None:
        return repeat(longest)
    given = tuple(windows) if isinstance(windows, Iterable) else ()
    if not given or not all(isinstance(frames, Integral) and 1 <= frames <= longest for frames in given):
        beside = f" beside look_ahead={look_ahead}" if look_ahead else ""
        raise InputError(f"windows={windows!r}: whole numbers from 1 to {longest}{beside} expected, at least one")
    return chain(given, repeat(given[-1]))


@dataclass(frozen=True)
class _Window:
    """What was made, and what it was made from, so that a stream can be taken back into the middle of it."""

    first: int
    before: SampleState
    motion: Tensor  # (n, M)
    conditions: Conditions

    @property
    def after(self) -> SampleState:
        return self.before.after(self.motion, self.conditions)

    def until(self, frame: int) -> _Window:
        kept = frame - self.first
        return _Window(self.first, self.before, self.motion[:kept], self.conditions[:kept])


class MotionStream:
    """Motion latents of sound that is pushed in any portions, 25 a second, each tied to its own 640 samples.

    frames: latents made so far; number k belongs to samples 640 k to 640 (k + 1) of all that was pushed.
    """

    def __init__(
        self,
        sound: FeatureStream | KnownFeatures,
        generator: Generator,
        reference: Tensor,
        *,
        nfe: int,
        guidance_scale: float,
        seed: int = 0,
        controls: Controls = lambda frames: {},
        windows: Sequence[int] | None = None,
        look_ahead: int = 0,
    ):
        """reference: (1, M), motion latent of the source. nfe: velocity evaluations for each window. guidance_scale:
        weight of the sound, 1 is off and halves the work. windows: frames of each window, see `plan`. look_ahead:
        frames after a window whose sound its motion may know, besides those that the encoder hears. Raises InputError
        for windows or a look-ahead that do not fit.
        """
        self.generator, self.reference, self.look_ahead = generator, reference, look_ahead
        self.controls, self.guidance_scale, self.seed = controls, guidance_scale, seed
        self.times = flow.time_grid(nfe)
        self.frames = 0
        self._sound = sound
        self._state = generator.begin()
        self._made: deque[_Window] = deque()
        self.pace(windows)

    def push(self, samples: Tensor) -> None:
        """samples: (S,) float32 mono, 16 kHz."""
        self._sound.push(samples)

    def due(self) -> Iterator[Tensor]:
        """Motion (n, M) float32 of every window whose sound, and the sound that it wants to know ahead, is there."""
        while self._sound.ready >= self._size + self.look_ahead:
            yield self._make(self._size, self.look_ahead)

    def rest(self, at_once: bool = False) -> Iterator[Tensor]:
        """Motion of all that was pushed, as if silence followed. A begun frame is completed with silence.

        at_once: in windows as long as can be, instead of the plan's. The next window is the plan's first again: after a
        pause an answer should come soon.
        """
        if not at_once:
            yield from self.due()
        self._sound.fill()
        while self._sound.waiting:
            size = self.generator.config.window - self.look_ahead if at_once else self._size
            frames = min(size, self._sound.waiting)
            yield self._make(frames, min(self.look_ahead, self._sound.waiting - frames))
        self.pace(self._windows)

    def pace(self, windows: Sequence[int] | None) -> None:
        """Begin with these windows, from the next one on. Raises InputError for what `plan` refuses; then nothing
        changes."""
        self._plan = plan(windows, self.look_ahead, self.generator.config.window)
        self._size, self._windows = next(self._plan), windows

    def rewind(self, frame: int) -> None:
        """Forget all sound, and every latent from number `frame` on; the motion goes on from there, in silence first.

        Goes back no farther than `MEMORY` frames, or to the last window's end where `frame` is still to come.
        """
        self._sound.forget()
        self.pace(self._windows)
        while self._made and self._made[-1].first >= frame:
            window = self._made.pop()
            self.frames, self._state = window.first, window.before
        if self._made and frame < self.frames:
            self._made.append(self._made.pop().until(frame))
            self.frames, self._state = frame, self._made[-1].after

    @torch.inference_mode()
    def _make(self, frames: int, ahead: int) -> Tensor:
        features = self._sound.take(frames, ahead)
        controls = self.controls(range(self.frames, self.frames + frames + ahead))
        conditions = self.generator.project(features[None], **{name: x[None] for name, (x, _) in controls.items()})
        conditions = conditions.keep(**{name: share[None] for name, (_, share) in controls.items()})
        config = self.generator.config
        noise = window_noise(self.seed, self.frames, (1, config.window, config.motion_dim))
        motion, after = self.generator.step(
            self._state, conditions, self.reference, noise, times=self.times, guidance_scale=self.guidance_scale,
            keep=frames, held=self.generator.hold(controls),
        )  # fmt: skip
        self._made.append(_Window(self.frames, self._state, motion, conditions[:frames]))
        self._state = after
        self.frames += frames
        while self._made[0].first + len(self._made[0].motion) <= self.frames - MEMORY:
            self._made.popleft()
        self._size = next(self._plan)
        return motion
