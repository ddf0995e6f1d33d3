"""What every training loop needs: resumable state, moving averages, metrics, progress and sheets of samples."""
from __future__ import annotations

import copy
import math
import os
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn


class Average:
    """Exponential moving average of a network's parameters and buffers, kept in `network`."""

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        # Early on the average would remember the random start: shorten its memory there.
        keep = min(self.decay, (step + 1) / (step + 10))
        mine, theirs = self.network.state_dict(), network.state_dict()
        moving = [name for name, value in theirs.items() if value.dtype.is_floating_point]
        torch._foreach_lerp_([mine[n] for n in moving], [theirs[n] for n in moving], 1 - keep)
        for name in theirs.keys() - set(moving):
            mine[name].copy_(theirs[name])


def save_checkpoint(path: Path, **state) -> None:
    """Write atomically, so that an interrupted run always leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(path: Path, device: str) -> dict | None:
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


class Log:
    """Means of metrics, printed and written to TensorBoard every `every` steps."""

    def __init__(self, folder: Path, step: int, steps: int, every: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))
        self.first, self.steps, self.every = step, steps, every
        self.sums: dict[str, float | Tensor] = {}  # tensors where they are: reading one waits for its device
        self.counts: dict[str, int] = {}
        self.start = time.monotonic()

    def add(self, step: int, metrics: dict[str, Tensor | float]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        if (step + 1) % self.every:
            return
        means = {name: float(self.sums[name]) / self.counts[name] for name in self.sums}
        for name, value in means.items():
            self.writer.add_scalar(name, value, step + 1)
        pace = (time.monotonic() - self.start) / (step + 1 - self.first)
        left = pace * (self.steps - step - 1) / 60
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        done = f"step {step + 1}/{self.steps}  {pace:.3f} s/step  {left:.0f} min left"
        print(f"{done}  {shown}", file=sys.stderr, flush=True)
        self.sums, self.counts = {}, {}


def sheet(rows: list[list[Tensor]], path: Path) -> None:
    """Pictures (3, H, W) in [0, 1], row by row, as one PNG."""
    picture = torch.cat([torch.cat(row, 2) for row in rows], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()).save(path)


class Budget:
    """What a run may take: steps or, if that is over sooner, minutes."""

    def __init__(self, steps: int, minutes: float | None):
        self.steps, self.seconds = steps, 60 * minutes if minutes else math.inf
        self.begun = time.monotonic()

    def done(self, step: int) -> float:
        """Share that is spent: 1 ends a run. A learning rate that follows it is small at the end, whatever ends it."""
        if step >= self.steps:
            return 1.0
        return max(step / self.steps, (time.monotonic() - self.begun) / self.seconds)


def cosine(step: int, done: float, warm_up: int = 100, floor: float = 0.05) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to `floor` when a run is done."""
    rise = min(1.0, (step + 1) / warm_up)
    return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
