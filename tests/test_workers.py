"""Pieces of work side by side: in order, not too far ahead, and an error of one reaches who asked."""

import threading
import time

import pytest

from imtalker.workers import Workers, at_work


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order_and_not_too_far_ahead(count):
    begun = []

    def slow(k):
        begun.append(k)
        time.sleep(0.02 * (k % 2))
        return k * k

    made = Workers(count).map(slow, range(10))
    assert begun == []
    for k, value in enumerate(made):
        assert value == k * k and max(begun) <= k + count


def test_pieces_are_worked_on_at_the_same_time():
    both = threading.Barrier(2, timeout=10)
    assert len(list(Workers(2).map(lambda k: both.wait(), range(4)))) == 4


def test_an_error_reaches_who_asked_and_the_workers_go_on():
    workers = Workers(2)

    def picky(k):
        if k == 2:
            raise ValueError("no twos")
        return k

    made = workers.map(picky, range(5))
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ValueError, match="no twos"):
        next(made)
    assert list(workers.map(picky, [3, 4])) == [3, 4]


def test_workers_know_that_they_are():
    assert list(Workers(2).map(lambda _: at_work(), range(4))) == [True] * 4 and not at_work()


@pytest.mark.parametrize("count", [1, 2])
def test_something_is_done_beside(count):
    workers = Workers(count)
    begun = threading.Event()
    beside = workers.begin(lambda: begun.set() or at_work())
    assert begun.wait(2) and beside.result() == (count > 1)
    with pytest.raises(ZeroDivisionError):
        workers.begin(lambda: 1 / 0).result()


def test_a_worker_who_asks_for_workers_is_not_waiting_for_itself():
    workers = Workers(2)
    inside = lambda n: list(workers.map(lambda k: 10 * n + k, range(3)))
    assert list(workers.map(inside, range(4))) == [[10 * n + k for k in range(3)] for n in range(4)]
