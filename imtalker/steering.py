"""Controls that are changed while a session runs: eased, so that no head and no eye jumps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .clock import FPS
from .controls import COLUMNS, read_control
from .errors import InputError

EASE = 12  # frames, about half a second, from one value to the next
MAX_STRENGTH = 2.0
# A head that is held where somebody wants it still lives: radians each way, and seconds to and fro
SWAY, SWAY_SECONDS = np.radians([0.5, 0.7, 0.3]), np.array([4.3, 5.9, 7.1])
KEEP = object()  # a control that is left as it is


class Eased:
    """Numbers (dim,) that go smoothly from where they are to a goal."""

    def __init__(self, value: np.ndarray):
        self._from = self._goal = value
        self._since = 0  # frame

    def set(self, goal: np.ndarray, frame: int) -> None:
        self._from, self._goal, self._since = self.at(range(frame - 1, frame))[0], goal, frame

    def at(self, frames: range) -> np.ndarray:
        """(n, dim) float32."""
        done = np.clip((np.arange(frames.start, frames.stop) - self._since + 1) / EASE, 0, 1)[:, None]
        return (self._from + (self._goal - self._from) * (done * done * (3 - 2 * done))).astype(np.float32)


class Steering:
    """Pose, gaze, framing and strength of expression over time. Calling it gives the `stream.Controls` of frames."""

    def __init__(self, device: torch.device):
        self._device = device
        self._values = {kind: Eased(np.zeros(columns)) for kind, columns in COLUMNS.items()}
        self._shares = {kind: Eased(np.zeros(1)) for kind in COLUMNS}  # 0: the model decides
        self._strength = Eased(np.ones(1))

    def set(self, frame: int, *, strength=KEEP, **controls) -> None:
        """From `frame` on: a control's numbers, None to leave it to the model again, or KEEP. Raises InputError."""
        given = {kind: read_control(kind, value) for kind, value in controls.items() if value is not KEEP}
        for kind, rows in given.items():
            if rows is not None and len(rows) > 1:
                raise InputError(f"{kind} has {len(rows)} rows: one is expected; steer again to move")
        if strength is not KEEP:
            if not isinstance(strength, (int, float)) or not 0 <= strength <= MAX_STRENGTH:  # NaN is neither
                raise InputError(f"strength {strength!r}: a number from 0 to {MAX_STRENGTH:g} expected, 1 is natural")
            self._strength.set(np.full(1, float(strength)), frame)
        for kind, rows in given.items():
            if rows is None:
                self._shares[kind].set(np.zeros(1), frame)
                continue
            if not self._shares[kind].at(range(frame - 1, frame)).any():  # not in force yet: nothing to go from
                self._values[kind] = Eased(rows[0])
            self._values[kind].set(rows[0], frame)
            self._shares[kind].set(np.ones(1), frame)

    def __call__(self, frames: range) -> dict[str, tuple[Tensor, Tensor]]:
        shares = {kind: share.at(frames)[:, 0] for kind, share in self._shares.items()}
        values = {kind: self._values[kind].at(frames) for kind, share in shares.items() if share.any()}
        if "pose" in values:
            time = np.arange(frames.start, frames.stop)[:, None] / FPS
            values["pose"] += SWAY * np.sin(2 * np.pi * time / SWAY_SECONDS)
        return {kind: (self._tensor(rows), self._tensor(shares[kind])) for kind, rows in values.items()}

    def strength(self, frames: range) -> Tensor:
        """(n, 1)."""
        return self._tensor(self._strength.at(frames))

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self._device)
