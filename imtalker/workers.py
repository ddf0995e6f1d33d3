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

    def begin(self, function: Callable[[], Made]) -> Future[Made]:
        """`function`, beside what this thread does next; where there is one worker only, at once."""
        if self._pool is not None:
            return self._pool.submit(function)
        done: Future[Made] = Future()
        try:
            done.set_result(function())
        except Exception as error:
            done.set_exception(error)
        return done

    def map(self, function: Callable[[Given], Made], pieces: Iterable[Given]) -> Iterator[Made]:
        """`function` of every piece, in order, made while they are asked for and at most `count` pieces ahead. A worker
        who calls it makes them itself."""
        if self._pool is None or at_work():
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


def at_work() -> bool:
    """Whether this thread is one of some workers', and its core the only one that it should take."""
    return getattr(_here, "at_work", False)


_here = threading.local()


def _pool(count: int) -> ThreadPoolExecutor:
    cores = max(1, torch.get_num_threads() // count)

    def start() -> None:
        torch.set_num_threads(cores)
        _here.at_work = True

    return ThreadPoolExecutor(count, "imtalker", initializer=start)
