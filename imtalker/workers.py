"""Work on several pieces at once, on a CPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Given, Made = TypeVar("Given"), TypeVar("Made")


class Workers:
    """`count` threads that each take a piece, and share the processor's cores.

    Small networks gain little from many cores at one operation: the cores wait for each other hundreds of times a
    frame, and the longer the more else runs beside them. Each at its own frame they do not.
    """

    def __init__(self, count: int):
        self.count = count
        self._pool = None if count == 1 else _pool(count)

    def map(self, function: Callable[[Given], Made], pieces: Iterable[Given]) -> Iterator[Made]:
        """`function` of every piece, in order, made while they are asked for and at most `count` pieces ahead."""
        if self._pool is None:
            yield from map(function, pieces)
            return
        under_way: deque[Future[Made]] = deque()
        try:
            for piece in pieces:
                under_way.append(self._pool.submit(function, piece))
                if len(under_way) > self.count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for piece in under_way:
                piece.cancel()


def _pool(count: int) -> ThreadPoolExecutor:
    cores, started = torch.get_num_threads(), threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(max(1, cores // count))
        started.wait()

    pool = ThreadPoolExecutor(count, "imtalker", initializer=start)
    for _ in range(count):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(cores)  # threads that begin later take the number that was last set, by whichever thread
    return pool
