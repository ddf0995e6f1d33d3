"""What a CUDA device does faster than by stock operators, where triton is installed (as PyTorch for CUDA brings it).

Attention is the same operators as on a CPU, `cpu.attend_and_match` and `cpu.attend_in_windows`; maps are channels-last.
Inputs may be half precision; sums are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cpu import _attended, _attended_in_windows, _library

CHANNELS_LAST = torch.channels_last

_library.define("blur(Tensor x, int padding, float total, Tensor? gain, Tensor? bias, float slope) -> Tensor")
_library.define("activate(Tensor x, Tensor? gain, Tensor? bias, Tensor? add, float slope) -> Tensor")


_there: bool | None = None  # not a cached function: torch.compile would look into it


def _triton() -> bool:
    try:  # a second: only for those networks that want it
        from . import kernels  # noqa: F401
    except ImportError:  # not there, or not for this Python
        return False
    return torch.cuda.get_device_capability() >= (8, 0)


def runs(x: Tensor) -> bool:
    """Whether these operators are for tensors such as x."""
    global _there
    if not x.is_cuda or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    if _there is None:
        _there = _triton()
    return _there


def _power(n: int) -> int:
    """The next power of two, at least 16: what a matrix product of a block is made of."""
    return max(16, 1 << (n - 1).bit_length())


def _blocks(n: int, block: int) -> int:
    return -(-n // block)


@torch.library.impl(_library, "attend_and_match", "CUDA")
def _attend_and_match(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    from . import kernels

    attended, matched = _attended(queries, keys, values)
    q, k, v, out = (x if x.ndim == 4 else x[None] for x in (queries, keys, values, attended))
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    (sources, heads, rows, width), cells = q.shape, k.shape[2]
    sums, d, half = q.new_empty(sources, heads, rows, dtype=torch.float32), _power(width), q.dtype != torch.float32
    strides = [x.stride()[:3] for x in (q, k, v, out)]
    with torch.cuda.device_of(q):
        block = (128, 64) if half else (64, 32)
        whole = cells % block[1] == 0 and d == width
        kernels.attend[_blocks(rows, block[0]), sources * heads](
            q, k, v, out, sums, rows, cells, heads, *strides[0], *strides[1], *strides[2], *strides[3],
            WIDTH=width, D=d, ROWS=block[0], CELLS=block[1], WHOLE=whole, num_warps=4, num_stages=3)  # fmt: skip
        block = (64, 128) if half else (32, 32)
        whole = cells % block[1] == 0 and d == width
        kernels.match[_blocks(rows, block[0]), sources](
            q, k, sums, matched, rows, cells, *strides[0], *strides[1], HEADS=heads,
            WIDTH=width, D=d, ROWS=block[0], CELLS=block[1], WHOLE=whole, num_warps=4, num_stages=2)  # fmt: skip
    return attended, matched


@torch.library.impl(_library, "attend_in_windows", "CUDA")
def _attend_in_windows(qkv: Tensor, order: Tensor, biases: Tensor, which: Tensor) -> Tensor:
    from . import kernels

    qkv, attended = qkv.contiguous(), _attended_in_windows(qkv, order, biases, which)
    batch, tokens, _, heads, width = qkv.shape
    images = 4 if batch > 4 else 1
    with torch.cuda.device_of(qkv):
        kernels.attend_in_windows[len(order) * heads, _blocks(batch, images)](
            qkv, order, biases, which, attended, batch, tokens, width**-0.5, *biases.stride(), HEADS=heads,
            WIDTH=width, D=_power(width), T=order.shape[1], IMAGES=images, num_warps=4, num_stages=2)  # fmt: skip
    return attended


@torch.library.register_fake("imtalker::blur", lib=_library)
def _blurred(x: Tensor, padding: int, total: float, gain: Tensor | None, bias: Tensor | None, slope: float) -> Tensor:
    b, channels, *size = x.shape
    height, width = (n + 2 * padding - 3 for n in size)
    return x.new_empty(b, height, width, channels).permute(0, 3, 1, 2)


@torch.library.impl(_library, "blur", "CUDA")
def _blur(x: Tensor, padding: int, total: float, gain: Tensor | None, bias: Tensor | None, slope: float) -> Tensor:
    from . import kernels

    out, x = _blurred(x, padding, total, gain, bias, slope), x.contiguous(memory_format=CHANNELS_LAST)
    b, channels, height, width = out.shape
    block = min(64, _power(channels))
    pixels = 2048 // block
    with torch.cuda.device_of(x):
        kernels.blur[_blocks(b * height * width, pixels), _blocks(channels, block)](
            x, None if gain is None else gain.contiguous(), bias, out, b * height * width, *x.shape[2:], height, width,
            padding, total / 64, slope, CHANNELS=channels, PIXELS=pixels, BLOCK=block)  # fmt: skip
    return out


@torch.library.register_fake("imtalker::activate", lib=_library)
def _activated(x: Tensor, gain: Tensor | None, bias: Tensor | None, add: Tensor | None, slope: float) -> Tensor:
    return torch.empty_like(x, memory_format=CHANNELS_LAST)


@torch.library.impl(_library, "activate", "CUDA")
def _activate(x: Tensor, gain: Tensor | None, bias: Tensor | None, add: Tensor | None, slope: float) -> Tensor:
    from . import kernels

    out = _activated(x, gain, bias, add, slope)
    x, add = (None if t is None else t.contiguous(memory_format=CHANNELS_LAST) for t in (x, add))
    channels, block = x.shape[1], 1024
    with torch.cuda.device_of(x):
        kernels.activate[_blocks(x.numel(), block),](
            x, None if gain is None else gain.contiguous(), bias, add, out, x.numel(), x[0].numel(), slope,
            CHANNELS=channels, BLOCK=block)  # fmt: skip
    return out


def blur(x: Tensor, padding: int, total: float = 1.0, gain: Tensor | None = None, bias: Tensor | None = None,
         slope: float = 1.0) -> Tensor:  # fmt: skip
    """(B, C, H, W) filtered by [1, 3, 3, 1] x [1, 3, 3, 1] of sum `total`, then as `activate`: one pass over the map,
    where a depth-wise convolution of half precision takes many times that."""
    return torch.ops.imtalker.blur(x, padding, total, gain, bias, slope)


def activate(x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None, add: Tensor | None = None,
             slope: float = 1.0) -> Tensor:  # fmt: skip
    """leaky_relu(x * gain + bias + add) of a map (B, C, H, W), gain (B, C), bias (C,), add as x: one pass over it."""
    return torch.ops.imtalker.activate(x, gain, bias, add, slope)
