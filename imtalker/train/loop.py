"""What every training loop needs: resumable state, moving averages, metrics, progress and sheets of samples."""
from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import InputError
from ..files import check_writable, complete, readable

SAVED_EVERY = 120.0  # seconds
OTHER_RUN = "it is of other networks, or of another kind of training: name another"


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


def prepare(file: Path) -> None:
    """Make the folder of a file that a training will write; that it can be written is checked before anything slow."""
    file.parent.mkdir(parents=True, exist_ok=True)
    check_writable(file, "result")


def save_checkpoint(path: Path, **state) -> None:
    """Write atomically, so that an interrupted run always leaves a whole file."""
    with complete(path) as unfinished:
        torch.save(state, unfinished)


def load_checkpoint(path: Path, device: str | torch.device) -> dict:
    with readable(path, "it is no checkpoint of imtalker train, or damaged: name another, or delete it to begin anew"):
        state = torch.load(path, map_location=device, weights_only=True)
        return {**state, "step": int(state["step"])}


def resume(path: Path, device: str | torch.device, start: str | Path | None) -> dict | None:
    """The state in checkpoint `path`, if there is one to go on from. All that a run will need is checked here, before
    anything slow; `start` is what it would begin from otherwise."""
    import torch.utils.tensorboard  # noqa: F401

    prepare(path)
    if not path.exists():
        return None
    state = load_checkpoint(path, device)
    print(f"resuming step {state['step']}" + (", --start is not used" if start else ""), file=sys.stderr, flush=True)
    return state


@contextmanager
def saving(save: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """What is yielded is to be called after every step: now and then it calls `save`, as is done in the end, also when
    the run is interrupted. Not after an error: that may have spoilt what would be saved."""
    saved = time.monotonic()

    def now_and_then() -> None:
        nonlocal saved
        if time.monotonic() - saved >= SAVED_EVERY:
            save()
            saved = time.monotonic()

    try:
        yield now_and_then
    except KeyboardInterrupt:
        save()
        raise
    save()


def check_finite(loss: Tensor, step: int) -> None:
    if not loss.isfinite():
        raise InputError(f"the loss is not finite at step {step}: lower --learning-rate or check the data; "
                         "the checkpoint before is kept")


def descend(loss: Tensor, network: nn.Module, optimiser: torch.optim.Optimizer, step: int,
            steepest: float = 1.0) -> None:
    """One step of an optimiser down a loss, along a gradient of which `network` has no more than `steepest`. Raises
    InputError where either is not finite; weights are then as before."""
    check_finite(loss, step)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    check_finite(nn.utils.clip_grad_norm_(network.parameters(), steepest), step)
    optimiser.step()


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

    def __init__(self, steps: float, minutes: float | None):
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
