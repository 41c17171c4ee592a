import asyncio
import threading
from concurrent.futures import CancelledError, as_completed, wait
from datetime import UTC, datetime

import pytest

from atomizer_dask import ConductorError, Properties
from atomizer_dask.future import ElectronFuture

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def properties(result=None):
    return Properties("E", "A", NOW, NOW, result=result)


def finish(*futures):
    ElectronFuture.start_all(futures)
    ElectronFuture.finish_all([*futures], [properties(n) for n in range(len(futures))])


def test_result_is_the_properties():
    future = ElectronFuture()
    finish(future)
    assert future.result(1) == properties(0)
    assert future.exception(1) is None
    assert future.done()


def test_result_wakes_when_another_thread_finishes_it():
    future = ElectronFuture()
    finisher = threading.Thread(target=finish, args=[future])
    finisher.start()
    assert future.result(10) == properties(0)
    finisher.join()


def test_result_times_out():
    with pytest.raises(TimeoutError):
        ElectronFuture().result(0.01)
    with pytest.raises(TimeoutError):
        ElectronFuture().exception(0.01)


def test_whoever_comes_while_futures_finish_misses_nothing():
    futures = [ElectronFuture() for _ in range(5000)]
    called, got = [], []

    def wait_for_each():
        got.extend(future.result(10).result for future in futures)

    def call_back_from_each():
        for future in futures:
            future.add_done_callback(called.append)

    others = [
        threading.Thread(target=act, daemon=True) for act in (wait_for_each, call_back_from_each)
    ]
    for other in others:
        other.start()
    for start in range(0, len(futures), 100):
        finish(*futures[start : start + 100])
    for other in others:
        other.join(20)
    assert got == [n % 100 for n in range(5000)]
    assert sorted(map(id, called)) == sorted(map(id, futures))


def test_future_is_either_cancelled_or_finished_however_close_these_are():
    futures = [ElectronFuture() for _ in range(5000)]
    cancelled = []
    canceller = threading.Thread(target=lambda: cancelled.extend(f.cancel() for f in futures))
    canceller.start()
    started = ElectronFuture.start_all(futures)
    running = [future for future, runs in zip(futures, started, strict=True) if runs]
    ElectronFuture.finish_all(running, [properties(n) for n in range(len(running))])
    canceller.join()
    assert [future.cancelled() for future in futures] == cancelled
    assert [not runs for runs in started] == cancelled


def test_futures_that_share_a_condition_finish_each_for_itself():
    condition = threading.Condition()
    first, second = ElectronFuture(condition), ElectronFuture(condition)
    finish(first)
    assert first.result(1) == properties(0)
    with pytest.raises(TimeoutError):
        second.result(0.01)


def test_exception_is_what_kept_it_from_being_carried_out():
    future = ElectronFuture()
    future.set_exception(ConductorError("gone"))
    with pytest.raises(ConductorError, match="gone"):
        future.result(1)
    assert isinstance(future.exception(1), ConductorError)


def test_pending_future_can_be_cancelled_and_is_not_started():
    future = ElectronFuture()
    assert future.cancel()
    assert ElectronFuture.start_all([future]) == [False]
    with pytest.raises(CancelledError):
        future.result(1)


def test_started_future_can_no_longer_be_cancelled():
    future = ElectronFuture()
    assert ElectronFuture.start_all([future]) == [True]
    assert not future.cancel()


def test_callbacks_are_called_once_with_the_future():
    before, called = ElectronFuture(), []
    before.add_done_callback(called.append)
    finish(before)
    before.add_done_callback(called.append)
    assert called == [before, before]


def test_wait_and_as_completed_take_many():
    futures = [ElectronFuture(threading.Condition()) for _ in range(5)]
    finisher = threading.Thread(target=finish, args=futures)
    finisher.start()
    assert set(as_completed(futures, 10)) == set(futures)
    assert wait(futures, 10).not_done == set()
    finisher.join()


def test_future_can_be_awaited():
    async def main():
        future = ElectronFuture()
        finisher = threading.Thread(target=finish, args=[future])
        finisher.start()
        outcome = await future
        finisher.join()
        return outcome

    assert asyncio.run(main()) == properties(0)


@pytest.mark.parametrize(
    "block",
    [
        lambda future: future.result(0.01),
        lambda future: future.exception(0.01),
        lambda future: list(as_completed([future], 0.01)),
        lambda future: wait([future], 0.01).done.pop(),
    ],
    ids=["result", "exception", "as_completed", "wait"],
)
def test_whoever_is_about_to_wait_says_so(block):
    told = []
    future = ElectronFuture(about_to_wait=lambda: told.append(1))
    with pytest.raises((TimeoutError, KeyError)):
        block(future)
    assert told == [1]


def test_nobody_waits_for_what_is_done():
    told = []
    future = ElectronFuture(about_to_wait=lambda: told.append(1))
    finish(future)
    future.result()
    assert told == []
