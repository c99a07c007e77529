"""Processes that die, hang or fail cost one item; the results stay in order."""

import dataclasses
import multiprocessing
import os
import signal
import time

import pytest

from dinov2_jax.data.tools import process_pool


@dataclasses.dataclass(frozen=True)
class Hostile:
    killed: tuple[int, ...] = ()
    hangs: tuple[int, ...] = ()
    exits: tuple[int, ...] = ()
    raises: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    slow: int = -1

    def __call__(self, item):
        if item in self.killed:
            os.kill(os.getpid(), signal.SIGSEGV)
        if item in self.hangs:
            time.sleep(1000)
        if item in self.exits:
            os._exit(7)
        if item in self.raises:
            raise KeyError(item)
        if item in self.stops:
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.2)
        if item == self.slow:
            time.sleep(0.5)
        return item * item, os.getpid()


def test_only_hostile_items_are_lost():
    work = Hostile(killed=(10, 29), hangs=(5,), exits=(28,))
    results = list(process_pool.in_order(work, range(3, 60), processes=2, seconds=8))
    assert [item for item, _ in results] == list(range(3, 60))
    lost = {
        item: result.reason
        for item, result in results
        if isinstance(result, process_pool.Lost)
    }
    assert lost == {
        5: "took longer than 8 s",
        10: "the decoder was killed by SIGSEGV",
        28: "the decoder's process ended with code 7",
        29: "the decoder was killed by SIGSEGV",
    }
    good = [(item, result) for item, result in results if item not in lost]
    assert all(result[0] == item * item for item, result in good)
    assert os.getpid() not in {result[1] for _, result in good}


def test_order_with_a_slow_item_and_few_ahead(monkeypatch):
    monkeypatch.setattr(process_pool, "_AHEAD", 4)
    work = Hostile(slow=1)
    results = process_pool.in_order(work, range(40), processes=2)
    assert [result[0] for _, result in results] == [i * i for i in range(40)]


def test_time_in_which_all_were_stopped_does_not_count(monkeypatch):
    monkeypatch.setattr(process_pool, "_STOPPED", 1.0)
    work = Hostile(stops=(1,))
    results = process_pool.in_order(work, range(2), processes=1, seconds=3.0)
    assert next(results)[1][0] == 0
    time.sleep(3.2)  # as if this process was stopped, too
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGCONT)
    assert next(results)[1][0] == 1


def test_nothing_to_do_and_no_processes():
    assert list(process_pool.in_order(Hostile(), range(0), processes=2)) == []
    results = list(process_pool.in_order(Hostile(), range(3), processes=0))
    assert results == [(i, (i * i, os.getpid())) for i in range(3)]


def test_mistakes_are_not_hidden():
    with pytest.raises(KeyError):
        list(process_pool.in_order(Hostile(raises=(2,)), range(5), processes=1))


def test_leaving_early_ends_the_processes():
    results = process_pool.in_order(Hostile(), range(100), processes=1)
    _, (_, process) = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
