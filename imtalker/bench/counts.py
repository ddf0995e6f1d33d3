"""What a computation costs, whatever the machine, and what the machine could do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..models import cpu

OURS = {
    torch.ops.imtalker.convolve: cpu.convolve_flop,
    torch.ops.imtalker.attend_and_match: cpu.attend_flop,
    torch.ops.imtalker.attend_in_windows: cpu.attend_in_windows_flop,
}

Call = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    gflop: float  # multiplications and additions counted apart
    megabytes: float  # read and written by operators, each on its own: nothing stays in a cache, nothing is fused
    operators: int  # called, without views

    def per(self, frames: int) -> Cost:
        return Cost(self.gflop / frames, self.megabytes / frames, self.operators)


def cost(call: Call) -> Cost:
    """What `call` costs. Operators are those that PyTorch knows of: stock ones, and ours for a CPU."""
    traffic = _Traffic()
    with torch.no_grad(), traffic:
        call()
    # The CPU's fused attention is not counted; the plain one costs the same and is.
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=OURS) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return Cost(counter.get_total_flops() / 1e9, traffic.bytes / 1e6, traffic.operators)


class _Traffic(TorchDispatchMode):
    """Counts operators and the bytes of their tensors."""

    def __init__(self):
        super().__init__()
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view and function.namespace != "prim":  # prim: questions that tensors without numbers ask
            self.operators += 1
            self.bytes += sum(x.nbytes for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
        return out


def kernel_launches(call: Call) -> int:
    """Launches of CUDA kernels, or of graphs of them, by a warm `call`."""
    activities = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activities.CPU, activities.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    # such as cudaLaunchKernel, cuLaunchKernelEx, cudaGraphLaunch
    calls = {row.key: row.count for row in profile.key_averages()}
    return sum(count for name, count in calls.items() if "Launch" in name and ("Kernel" in name or "Graph" in name))


def seconds_of(call: Call, device: torch.device, least: float = 0.0) -> float:
    """Seconds that one `call` takes, until the device has done it all: the mean of as many as fill `least` seconds."""
    once = _seconds(call, 1, device)
    return once if once >= least else _seconds(call, math.ceil(least / once), device)


def _seconds(call: Call, times: int, device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / times
    started = time.perf_counter()
    for _ in range(times):
        call()
    if device.type == "mps":
        torch.mps.synchronize()
    return (time.perf_counter() - started) / times


def matrix_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP a second of a large matrix product: the most that any network could reach."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / 1e9 / _best(lambda: torch.mm(a, b, out=out), device)


def copy_gbs(device: torch.device) -> float:
    """GB a second read plus written by a large copy."""
    source = torch.empty(1 << 28 if device.type == "cuda" else 1 << 26, device=device).fill_(1)
    target = torch.empty_like(source).fill_(0)
    return 2 * source.nbytes / 1e9 / _best(lambda: target.copy_(source), device)


def _best(call: Call, device: torch.device) -> float:
    return min(seconds_of(call, device) for _ in range(3))
