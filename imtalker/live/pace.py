"""How many of its frames a face gets drawn when the machine cannot draw all of everybody's."""

from __future__ import annotations

from ..clock import FPS

SPARE = 0.05  # of the time: for sound, compression and whatever else the machine does
MOVING = 0.35  # of the time that motion may take, so that the rest is left for drawing
ALONE = 0.7  # of one worker's time that motion may take at most: it is made by one
WINDOWS = (5, 10, 15, 25)  # frames
LEAST = 0.1  # share that a face gets in any case
ENOUGH = 0.8  # share from which on every frame is tried: it is an estimate, and a frame that comes too late is left out
FORGET = 0.1  # share of a new measurement in the running mean


class Pace:
    """Measures what motion and drawing cost and shares the time among all faces alike.

    Motion is always made for every frame, because speech must not lose any of it; only drawing is left out.
    """

    def __init__(self):
        self.faces = 0  # that are being made at once
        self.workers = 1  # that draw at the same time, or make motion
        self.motion_seconds = self.drawing_seconds = 0.0  # per frame
        self.window_seconds = 0.0  # of motion, per window of whatever length

    def moved(self, frames: int, seconds: float) -> None:
        """A window of motion, of `frames` frames, took so long."""
        self.window_seconds = _mean(self.window_seconds, seconds)
        self.motion_seconds = _mean(self.motion_seconds, seconds / frames)

    def drew(self, frames: int, seconds: float) -> None:
        """Drawing `frames` frames took one worker so long."""
        self.drawing_seconds = _mean(self.drawing_seconds, seconds / frames)

    def window(self, faces: int, current: int = 0) -> int:
        """Frames of the shortest window of motion that so many faces can afford: short ones answer sooner.

        current: the one in use, which is left for a shorter one only when that has a third of its time to spare.
        """
        for frames in WINDOWS:
            seconds = FPS / frames * self.window_seconds * faces
            if seconds * (4 / 3 if frames < current else 1) <= min(MOVING * self.workers, ALONE):
                return frames
        return WINDOWS[-1]

    @property
    def share(self) -> float:
        """Share of the frames, up to 1, for which there is time."""
        if not self.drawing_seconds:
            return 1.0
        share = (self._there(max(self.faces, 1)) / FPS - self.motion_seconds) / self.drawing_seconds
        return 1.0 if share > ENOUGH else max(LEAST, share)

    def fits(self, faces: int, frames_a_second: float) -> bool:
        """Whether so many faces would still get so many frames a second each."""
        return self._there(faces) >= FPS * self.motion_seconds + frames_a_second * self.drawing_seconds

    def _there(self, faces: int) -> float:
        """Seconds of work that a second has for each of so many faces."""
        return self.workers * (1 - SPARE) / faces


def _mean(before: float, new: float) -> float:
    return new if not before else before + FORGET * (new - before)
