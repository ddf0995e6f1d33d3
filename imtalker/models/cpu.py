"""What a CPU does faster than by stock operators, where numba is installed to compile the loops between them.

Each is one operator to PyTorch, so that it is counted and followed like any other. Float32.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..workers import Workers, at_work

Piece = TypeVar("Piece")
THREADS = torch.get_num_threads()  # of the thread that loads this: others may be told of less


@cache
def _numba() -> bool:
    try:  # half a second: only for those networks that want it
        from . import loops  # noqa: F401
    except ImportError:  # not there, or not for this Python or NumPy
        return False
    return True


def compiles(x: Tensor) -> bool:
    """Whether these operators are for tensors such as x. Imports numba: ask last."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and _numba()


@cache
def _workers(threads: int) -> Workers:
    return Workers(threads)


def side_by_side(function: Callable[[Piece], None], pieces: list[Piece]) -> None:
    """`function` of every piece, on as many threads as this one may use, each with a core to itself."""
    left = iter(pieces)

    def work(_: int = 0) -> None:
        for piece in left:  # whoever is free takes the next
            function(piece)

    if THREADS == 1 or len(pieces) == 1 or at_work():
        return work()
    for _ in _workers(THREADS).map(work, range(THREADS)):
        pass


# ------------------------------------------------------------------------------------------------- minimal filtering


class Filtering(NamedTuple):
    """A convolution in one dimension with few multiplications: outputs (m,) = output @ ((kernel @ taps) * (tile @ x)).

    Each matrix has a row for each of its results. A tile x is the part of the input that m outputs see.
    """

    tile: np.ndarray  # (p, n)
    kernel: np.ndarray  # (p, r)
    output: np.ndarray  # (m, p)


# Where polynomials are evaluated; infinity comes as the last. Chosen for the least rounding error (a half of that of 0,
# 1, -1, 2, -2) among those that are exact in binary; pairs keep the matrices' rows short.
POINTS = {4: (0.0, 1.0, -1.0), 5: (0.0, 1.0, -1.0, 2.0), 6: (0.0, 0.75, -0.75, 1.5, -1.5)}


def cook_toom(outputs: int, taps: int) -> Filtering:
    """m + r - 1 products instead of m · r (S. Winograd: Arithmetic Complexity of Computations, 1980)."""
    n = outputs + taps - 1
    points = POINTS[n]
    tile, kernel, output = np.zeros((n, n)), np.zeros((n, taps)), np.zeros((outputs, n))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        tile[i, :-1] = np.poly(others)[::-1]
        kernel[i] = point ** np.arange(taps) / np.prod([point - other for other in others])
        output[:, i] = point ** np.arange(outputs)
    tile[-1], kernel[-1, -1], output[-1, -1] = np.poly(points)[::-1], 1, 1
    return Filtering(tile, kernel, output)


def every_second(outputs: int) -> Filtering:
    """Three taps at every second place: two of them on the even places, one on the odd, are a convolution each."""
    even, m = cook_toom(outputs, 2), outputs + 1
    tile, kernel = np.zeros((m + outputs, m + outputs)), np.zeros((m + outputs, 3))
    tile[:m, 0::2], tile[m:, 1::2] = even.tile, np.eye(outputs)
    kernel[:m, 0::2], kernel[m:, 1] = even.kernel, 1
    return Filtering(tile, kernel, np.concatenate([even.output, np.eye(outputs)], 1))


def sparse(matrix: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of what is not zero, (rows, most) each, as `loops` wants them."""
    columns, values = np.zeros((len(matrix), most), np.int64), np.zeros((len(matrix), most), np.float32)
    for i, row in enumerate(matrix):
        (places,) = row.nonzero()
        columns[i, : len(places)], values[i, : len(places)] = places, row[places]
    return columns, values


class MinimalConv(nn.Module):
    """A wide 3 x 3 convolution, bias and leaky ReLU, with fewer multiplications: of stride 1, 2.25 times fewer where a
    tile makes 2 x 2 outputs, 4 times where it makes 4 x 4; of stride 2, 1.8 times. The kernel takes 16/9, 4 or 9 times
    its memory.

    Tiles of the input are transformed, multiplied by the transformed kernel and transformed back (A. Lavin, S. Gray:
    Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308). Relative difference from the plain one:
    2e-6. Always computed in float32, whatever comes: half precision is not enough for the transforms.
    """

    TILES = 128  # transformed at once by a thread: what its cache holds, and enough rows for matrix products

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int, slope: float, outputs: int = 4):
        super().__init__()
        filtering = cook_toom(outputs, 3) if stride == 1 else every_second(outputs)
        self.outputs, self.count = outputs, len(filtering.tile)
        self.products = Products(transformed(weight, np.kron(filtering.kernel, filtering.kernel)))
        self.bias = nn.Parameter(weight.new_zeros(len(weight)) if bias is None else bias.detach().clone(), False)
        self.stride, self.padding, self.slope = stride, padding, slope
        self.tile, self.output = sparse(filtering.tile, 4), sparse(filtering.output, 5)
        self.number = next(_numbers)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'); `add`, of the same shape, is added before the leaky ReLU."""
        _layers[self.number] = self  # here, not once: of copies, which share the number, one may be gone
        x, add = (None if t is None else t.float().contiguous(memory_format=torch.channels_last) for t in (x, add))
        return torch.ops.imtalker.convolve(x, add, self.number).to(self.bias.dtype)

    def tiles(self, length: int) -> int:
        """How many make so many outputs."""
        return -(-length // self.outputs)

    def run(self, x: Tensor, add: Tensor | None, out: Tensor) -> None:
        from . import loops

        (b, _, height, width), channels = out.shape, x.shape[1]
        down, across = self.tiles(height), self.tiles(width)
        rows = max(1, min(self.TILES // across, down // THREADS))
        multiply = self.products.of(rows * across)
        pixels, made, more = (None if t is None else t.permute(0, 2, 3, 1).numpy() for t in (x, out, add))
        more = np.empty((b, 0, 0, 0), np.float32) if more is None else more
        bias, slope = self.bias.float().numpy(), np.float32(self.slope)

        def strip(place: tuple[int, int]) -> None:
            k, first = place[0], min(place[1], down - rows)  # all of one size: the last ones overlap
            grid = (rows, across, self.count, self.count)
            with torch.inference_mode():
                tiles = torch.empty(*grid, channels)
                loops.tiles_of(pixels[k], first, self.outputs * self.stride, self.padding, *self.tile, tiles.numpy())
                products = multiply(tiles.view(rows * across, -1)).view(*grid, -1)
                loops.outputs_of(products.numpy(), first, *self.output, bias, slope, more[k], made[k])

        side_by_side(strip, [(k, first) for k in range(b) for first in range(0, down, rows)])


def transformed(weight: Tensor, kernel: np.ndarray) -> Tensor:
    """(outputs, inputs, 3, 3) times kernel (n, 9): (n, outputs, inputs). In float64, a few outputs at a time."""
    result = torch.empty(len(kernel), *weight.shape[:2])
    for rows, part in zip(result.split(64, 1), weight.detach().cpu().split(64)):
        rows.copy_(torch.einsum("nk,oik->noi", torch.from_numpy(kernel), part.double().flatten(2)))
    return result


class Products:
    """n matrices (O, C), multiplied with n vectors each of T tiles."""

    GEOMETRY = [0, 0], [1, 1], [1, 1]  # padding, stride, dilation

    def __init__(self, matrices: Tensor):
        self._count, _, inputs = matrices.shape
        # As a grouped convolution of one pixel oneDNN does it a fifth to a half faster than a batched product, once the
        # matrices are arranged for so many tiles
        self._packs = torch.backends.mkldnn.is_available()
        self._packed = 0, matrices.reshape(-1, inputs, 1, 1).to_mkldnn() if self._packs else matrices

    def of(self, tiles: int) -> Callable[[Tensor], Tensor]:
        """What multiplies so many tiles: (T, n·C) to (T, n·O)."""
        if not self._packs:
            return self._batched
        if self._packed[0] != tiles:
            kernel, inputs = self._packed[1], self._count * self._packed[1].shape[1]
            kernel = torch._C._nn.mkldnn_reorder_conv2d_weight(
                kernel, *self.GEOMETRY, self._count, [1, inputs, tiles, 1])  # fmt: skip
            self._packed = tiles, kernel
        return partial(self._convolved, self._packed[1])

    def _convolved(self, kernel: Tensor, tiles: Tensor) -> Tensor:
        tiles = tiles.view(1, len(tiles), 1, -1).permute(0, 3, 1, 2)
        products = torch.ops.mkldnn._convolution_pointwise(
            tiles, kernel, None, *self.GEOMETRY, self._count, "none", [], "")  # fmt: skip
        return products.permute(0, 2, 3, 1).flatten(0, 2)

    def _batched(self, tiles: Tensor) -> Tensor:
        products = tiles.unflatten(1, (self._count, -1)).transpose(0, 1) @ self._packed[1].transpose(1, 2)
        return products.transpose(0, 1).flatten(1)


# --------------------------------------------------------------------------------------------------------- operators
#
# They take tensors and numbers; kernels that oneDNN has arranged are neither, so layers go by number.

_layers: weakref.WeakValueDictionary[int, MinimalConv] = weakref.WeakValueDictionary()
_numbers = itertools.count()
_library = torch.library.Library("imtalker", "DEF")
_library.define("convolve(Tensor x, Tensor? add, int layer) -> Tensor")
_library.define("attend_in_windows(Tensor qkv, Tensor order, Tensor biases, Tensor which) -> Tensor")
_library.define("attend_and_match(Tensor queries, Tensor keys, Tensor values) -> (Tensor, Tensor)")


def _shape(x: torch.Size, conv: MinimalConv) -> tuple[int, int, int, int]:
    """(B, H', W', C') of the outputs for inputs (B, C, H, W)."""
    return x[0], *((n + 2 * conv.padding - 3) // conv.stride + 1 for n in x[2:]), len(conv.bias)


@torch.library.register_fake("imtalker::convolve", lib=_library)
def _made(x: Tensor, add: Tensor | None, layer: int) -> Tensor:
    return x.new_empty(_shape(x.shape, _layers[layer])).permute(0, 3, 1, 2)


@torch.library.impl(_library, "convolve", "CPU")
def _(x: Tensor, add: Tensor | None, layer: int) -> Tensor:
    out = _made(x, add, layer)
    _layers[layer].run(x, add, out)
    return out


@torch.library.register_fake("imtalker::attend_and_match", lib=_library)
def _attended(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), queries.new_empty(queries.shape[1], dtype=torch.long)


ROWS = 128  # of a piece of work: enough pieces that threads end together


@torch.library.impl(_library, "attend_and_match", "CPU")
def _(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    from . import loops

    attended, match = _attended(queries, keys, values)
    q, a, m = queries.contiguous().numpy(), attended.numpy(), match.numpy()
    k, v = (x.transpose(1, 2).contiguous().numpy() for x in (keys, values))

    def piece(begin: int) -> None:
        rows = slice(begin, begin + ROWS)
        loops.attend(q[:, rows], k, v, a[:, rows], m[rows])

    side_by_side(piece, list(range(0, len(m), ROWS)))
    return attended, match


@torch.library.register_fake("imtalker::attend_in_windows", lib=_library)
def _attended_in_windows(qkv: Tensor, order: Tensor, biases: Tensor, which: Tensor) -> Tensor:
    return qkv.new_empty(qkv[:, :, 0].shape)


WINDOWS = 16  # of a piece of work


@torch.library.impl(_library, "attend_in_windows", "CPU")
def _(qkv: Tensor, order: Tensor, biases: Tensor, which: Tensor) -> Tensor:
    from . import loops

    attended = _attended_in_windows(qkv, order, biases, which)
    x, o, b, w, a = (t.contiguous().numpy() for t in (qkv, order, biases, which, attended))
    scale = np.float32(qkv.shape[-1] ** -0.5)

    def piece(place: tuple[int, int]) -> None:
        k, windows = place[0], slice(place[1], place[1] + WINDOWS)
        loops.attend_in_windows(x[k], o[windows], b, w[windows], scale, a[k])

    side_by_side(piece, [(k, begin) for k in range(len(x)) for begin in range(0, len(o), WINDOWS)])
    return attended


def attend_in_windows(qkv: Tensor, order: Tensor, biases: Tensor, which: Tensor) -> Tensor:
    """Attention (B, N, h, d) inside windows of the N tokens of a map, qkv (B, N, 3, h, d).

    order: the tokens of each window, (n, T). which: (n,), the bias of each, of biases (m, h, T, T), keys before
    queries. T and d are multiples of 4.
    """
    return torch.ops.imtalker.attend_in_windows(qkv, order, biases, which)


def attend_and_match(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (h, R, d) of queries (h, R, d), scaled, to keys and values (h, N, d); also the cell of the greatest
    weight, mean over heads, of each row: (R,) int64. R and d are multiples of 4."""
    return torch.ops.imtalker.attend_and_match(queries, keys, values)


def convolve_flop(x: torch.Size, add: torch.Size | None, layer: int, **_) -> int:
    """Operations of the products; those of the transforms are additions, a tenth of these and less."""
    conv = _layers[layer]
    b, height, width, channels = _shape(x, conv)
    return 2 * b * conv.tiles(height) * conv.tiles(width) * conv.count**2 * x[1] * channels


def attend_flop(queries: torch.Size, keys: torch.Size, values: torch.Size, **_) -> int:
    return 4 * math.prod(queries) * keys[1]


def attend_in_windows_flop(qkv: torch.Size, order: torch.Size, *_, **__) -> int:
    return 4 * math.prod(qkv) // 3 * order[1]
