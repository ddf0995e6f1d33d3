"""A face that speaks while the sound is still coming.

    push ─ MotionStream ─ strength ─ render ─ frames
    idle ─ silence ┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .clock import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from .errors import InputError
from .steering import KEEP, Steering

if TYPE_CHECKING:
    from .pipeline import IMTalker, Source

WINDOWS = (5, 5, 10, 15, 20, 25)  # frames: a first answer soon, then fewer and longer windows, which cost less


class Session:
    """Push sound, get frames; made by `IMTalker.session`, which explains the options.

    Frames come in order, 25 a second; number k belongs to samples 640 k to 640 (k + 1) of what was pushed, silence of
    `idle` included. What a call returns is made while it is looked at; what is not taken comes with the next call.
    One thread at a time.

    sample_rate: of the sound, 16 000. frames: handed out so far.
    delay: seconds of sound that the first frame waits for. steady_delay: how long after its sound a frame can be
    counted on while sound comes as fast as it is spoken: play with this delay, and no frame is missed. Equal windows
    make both the same: (5,) gives 0.4 s with the bundled model, (2,) 0.28 s for more work.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, talker: IMTalker, source: Source, *, windows: Sequence[int], look_ahead: int, **sampling):
        """sampling: the other options of `MotionStream`."""
        self._talker, self._source = talker, source
        self._steering = Steering(talker.device)
        sampling |= {"windows": windows, "look_ahead": look_ahead}
        self._stream = talker.motion_stream(source, controls=self._steering, **sampling)
        self._ahead = look_ahead + talker.audio_encoder.wait_frames
        self._set_delays(windows)
        self.frames = 0
        self._motion: deque[Tensor] = deque()  # made, to be drawn
        self._drawing: Iterator[np.ndarray] = iter(())
        self._drawn = 0  # frames whose drawing has begun

    def push(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Frames, uint8 (H, W, 3) RGB, that are due after more sound: float32 (n,) in -1..1, any n, at 16 kHz.

        Raises InputError for anything else.
        """
        samples = np.asarray(samples)
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
            raise InputError(f"sound of shape {samples.shape} and type {samples.dtype}: float32 (n,) mono expected")
        if not np.isfinite(samples).all():
            raise InputError("sound with values that are not finite numbers: -1 to 1 expected")
        self._stream.push(torch.from_numpy(samples.astype(np.float32)).to(self._talker.device))
        return self._draw()

    def idle(self, frames: int = 5) -> Iterator[np.ndarray]:
        """Frames for which there is no sound: the rest of what was pushed, then `frames` of a silent face that blinks
        and looks about. They take their place on the clock, as if that much silence had been pushed."""
        if frames < 1:
            raise InputError(f"idle for {frames} frames: at least 1 expected")
        self._motion.extend(self._stream.rest())
        self._stream.push(torch.zeros(frames * SAMPLES_PER_FRAME, device=self._talker.device))
        self._motion.extend(self._stream.rest(at_once=True))  # nothing is waited for
        return self._draw()

    def flush(self) -> Iterator[np.ndarray]:
        """Frames of all that was pushed, without waiting for more. The session can go on afterwards: the next sound
        belongs to the next frame, and is answered as quickly as the first."""
        self._motion.extend(self._stream.rest())
        return self._draw()

    def interrupt(self, shown: int | None = None) -> None:
        """Be silent: forget all sound that has no frame yet, and close the mouth within 200 ms.

        shown: how many frames the viewer has seen, if fewer than were handed out: the others are taken back, and the
        next frame is number `shown`. What is more than ten seconds back cannot be taken back.
        """
        shown = self.frames if shown is None else shown
        if not 0 <= shown <= self.frames:
            raise InputError(f"shown={shown}: a number of frames from 0 to the {self.frames} handed out expected")
        self._motion.clear()
        self._drawing = iter(())
        self._stream.rewind(shown)
        self.frames = self._drawn = self._stream.frames

    def steer(self, *, pose=KEEP, gaze=KEEP, cam=KEEP, strength=KEEP) -> None:
        """Change what head, eyes and framing do, from the next window on, within half a second.

        pose (3,), gaze (2,) in radians, cam (3,): as for `animate`; None: the model decides again; left out: as it is.
        A head that is held sways by less than a degree about its pose.
        strength: of the expression, 0 to 2, 1 is natural. Raises InputError for anything else.
        """
        self._steering.set(self._stream.frames, pose=pose, gaze=gaze, cam=cam, strength=strength)

    def pace(self, windows: Sequence[int]) -> None:
        """Other windows from the next one on, see `IMTalker.session`: longer ones when there is little time, shorter
        ones when there is more. The delays change with them."""
        self._stream.pace(windows)
        self._set_delays(windows)

    def _set_delays(self, windows: Sequence[int]) -> None:
        self.delay, self.steady_delay = (windows[0] + self._ahead) / FPS, (max(windows) + self._ahead) / FPS

    def next_motion(self) -> Tensor | None:
        """Motion latents (n, 32) of the next frames that are due, None if none are: for those who draw the faces of
        several sessions together, see `IMTalker.render`, instead of iterating over frames. They count as handed out."""
        motion = self._take_motion()
        self.frames = self._drawn
        return motion

    def _take_motion(self) -> Tensor | None:
        motion = self._motion.popleft() if self._motion else next(self._stream.due(), None)
        if motion is None:
            return None
        frames = range(self._drawn, self._drawn + len(motion))
        self._drawn = frames.stop
        strength = self._steering.strength(frames)
        if (strength != 1).any():
            reference = self._source.features.motion.float()
            columns = slice(*self._talker.config.expression)
            motion = motion.clone()
            motion[:, columns] = reference[:, columns].lerp(motion[:, columns], strength)
        return motion

    def _draw(self) -> Iterator[np.ndarray]:
        while True:
            for frame in self._drawing:
                self.frames += 1
                yield frame
            motion = self._take_motion()
            if motion is None:
                return
            self._drawing = self._talker.render(self._source, [motion])
