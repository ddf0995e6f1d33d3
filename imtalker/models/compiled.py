"""Networks as CUDA graphs: a batch is one launch, not hundreds, for which a GPU would wait.

A graph has fixed shapes and fixed places in memory. So there is one for each of a few batch sizes, made when it is
first wanted; a batch of another size is drawn in several, the last padded. What all of a batch share, the source, has
one place too, into which another source is copied when it changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

WASTE = 4 / 3  # a batch is padded up to so many times its size


def batch_sizes(most: int) -> list[int]:
    """1, 4, 16, … and `most`."""
    return sorted({most, *(4**k for k in range(10) if 4**k < most)})


def portions(count: int, sizes: list[int]) -> list[tuple[int, int]]:
    """`count` rows as (rows, batch size) of graphs, few and with little padding."""
    parts = []
    while count:
        size = min((size for size in sizes if count <= size <= WASTE * count), default=0)
        size = size or max(size for size in sizes if size <= count)
        parts.append((min(count, size), size))
        count -= parts[-1][0]
    return parts


class Graphs:
    """function(shared, batch (n, …)) -> (n, …) as CUDA graphs of batch sizes up to `most`.

    shared: a tensor, or dataclasses and lists of tensors, of the same shapes in every call, or None. May be called from
    any thread; calls take turns.
    """

    def __init__(self, function: Callable[[Any, Tensor], Tensor], most: int):
        self._function, self._sizes = function, batch_sizes(most)
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._given = self._held = self._pool = None
        self._lock = threading.Lock()

    @property
    def captured(self) -> list[int]:
        """Batch sizes of the graphs made so far."""
        return sorted(self._captured)

    def __call__(self, shared: Any, batch: Tensor) -> Tensor:
        with self._lock, torch.cuda.device(batch.device), torch.inference_mode(False), torch.no_grad():
            if self._given is not shared:
                self._take(shared)
            made, first = [], 0
            for rows, size in portions(len(batch), self._sizes):
                made.append(self._run(batch[first : first + rows], size))
                first += rows
            return torch.cat(made) if len(made) > 1 else made[0]

    def _take(self, shared: Any) -> None:
        if self._held is None:
            self._held = _copied(shared)
        for own, new in zip(_tensors(self._held), _tensors(shared), strict=True):
            own.copy_(new)
        self._given = shared  # kept, so that no other object can be taken for it

    def _run(self, batch: Tensor, size: int) -> Tensor:
        if size not in self._captured:
            self._captured[size] = self._capture(batch.new_zeros(size, *batch.shape[1:]))
        graph, input, output = self._captured[size]
        input[: len(batch)].copy_(batch)
        graph.replay()
        return output[: len(batch)].clone()  # the next graph may use its memory

    def _capture(self, input: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        now, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True  # convolutions are chosen once
        try:
            beside.wait_stream(now)
            with torch.cuda.stream(beside):
                for _ in range(2):  # kernels are compiled and chosen
                    self._function(self._held, input)
            now.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
                output = self._function(self._held, input)
        finally:
            torch.backends.cudnn.benchmark = before
        self._pool = self._pool or graph.pool()  # one for all: they never run at once
        return graph, input, output


def _tensors(x: Any) -> list[Tensor]:
    if x is None:
        return []
    if isinstance(x, Tensor):
        return [x]
    parts = x if isinstance(x, (list, tuple)) else [getattr(x, field.name) for field in fields(x)]
    return [tensor for part in parts for tensor in _tensors(part)]


def _copied(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clone()
    if isinstance(x, (list, tuple)):
        return type(x)(_copied(part) for part in x)
    if is_dataclass(x):
        return replace(x, **{field.name: _copied(getattr(x, field.name)) for field in fields(x)})
    return x
