"""The driver over a carrier of the test's own, which may give back, repeat and fail."""

import random
import threading

import numpy as np
import pytest

from atomizer_dask import ConductorError
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.conductors.dispatcher import Dispatcher
from atomizer_dask.conductors.driver import Driver
from atomizer_dask.conductors.reports import Arrived, GivenBack, Lost
from atomizer_dask.execution.batch import Batch, Origin
from atomizer_dask.execution.outcome import Column, Outcome
from atomizer_dask.sweeps.inputs import Columns


class Numbers:
    """The electrons 0 to `count`; it notes what becomes of each."""

    grows = False

    def __init__(self, count):
        self.pending = [(0, count)]
        self.delivered = []
        self.error = None
        self.deaths = []
        self.failures = []
        self.ended = threading.Event()
        self.count = count

    def waiting(self):
        return sum(stop - start for start, stop in self.pending)

    def take(self, size, key):
        start, stop = self.pending.pop()
        if stop - start > size.electrons:
            self.pending.append((start + size.electrons, stop))
            stop = start + size.electrons
        data = Columns({"x": range(start, stop)}, stop - start)
        return Batch(
            key,
            "atom",
            None,
            data,
            range(start, stop),
            RandomStream(0),
            Origin(),
            seconds=size.seconds,
        )

    def give_back(self, batch, start, stop, terms):
        first = batch.positions.start
        self.pending.append((first + start, first + stop))
        self.deaths.append(terms.deaths)

    def deliver(self, batch, outcome, *, last):
        first = batch.positions.start
        told = list(range(first + outcome.first, first + outcome.stop))
        self.delivered += told
        if len(outcome.failed):
            self.failures += outcome.failures
        elif told:
            assert outcome.results["result"].values.tolist() == told
        if len(self.delivered) >= self.count:
            self.ended.set()

    def fail(self, error):
        self.error = error
        self.ended.set()


class Carrier:
    """Answers at once; `answer` says how."""

    threads = 3

    def __init__(self, answer):
        self.answer = answer
        self.carried = []

    def submit(self, batch, post):
        self.carried.append(len(batch))
        self.answer(batch, post)


def arrived(batch, kept=None):
    kept = len(batch) if kept is None else kept
    values = np.arange(batch.positions.start, batch.positions.start + kept)
    results = {"result": Column(values)}
    ends = np.arange(1, kept + 1) / 1000
    return Arrived(batch.key, Outcome(kept, results, [], [], [], 0, ends, None, "w"))


def drive(source, answer):
    errors = []
    dispatcher = Dispatcher("test", errors.append)
    driver = Driver(Carrier(answer), dispatcher, source)
    dispatcher.post(driver.pump)
    assert source.ended.wait(30), errors
    dispatcher.close()
    assert errors == []
    return driver


def test_every_electron_is_delivered():
    source = Numbers(1000)
    driver = drive(source, lambda batch, post: post(arrived(batch)))
    assert sorted(source.delivered) == list(range(1000))
    assert driver.idle
    assert driver.leased == 0


def test_what_is_given_back_is_delivered_once():
    chance, source = random.Random(1), Numbers(5000)

    def answer(batch, post):
        kept = chance.randint(1, len(batch))
        if kept < len(batch) and chance.random() < 0.7:
            post(GivenBack(batch.key, kept))
        post(arrived(batch, kept))

    driver = drive(source, answer)
    assert sorted(source.delivered) == list(range(5000))
    assert driver.leased == 0


def test_batch_that_arrives_twice_is_delivered_once():
    source = Numbers(1000)

    def answer(batch, post):
        post(arrived(batch))
        post(arrived(batch))
        post(GivenBack(batch.key, 0))

    drive(source, answer)
    assert sorted(source.delivered) == list(range(1000))


def test_what_was_given_back_and_ran_again_is_delivered_once():
    """Dask runs a batch anew after its worker died, although part of it had been given back."""
    source = Numbers(1000)

    def answer(batch, post):
        post(GivenBack(batch.key, (len(batch) + 1) // 2))
        post(arrived(batch))

    drive(source, answer)
    assert sorted(source.delivered) == list(range(1000))


def test_electrons_of_which_none_ran_are_sent_again():
    first, source = [True], Numbers(100)

    def answer(batch, post):
        post(arrived(batch, 0 if first else None))
        first.clear()

    drive(source, answer)
    assert sorted(source.delivered) == list(range(100))


def test_lost_batch_fails_the_source_once():
    source = Numbers(100)
    error = ConductorError("gone")
    driver = drive(source, lambda batch, post: post(Lost(batch.key, error)))
    assert source.error is error
    assert driver.idle
    assert source.delivered == []


def test_carrier_that_refuses_fails_the_source():
    source = Numbers(100)

    def answer(batch, post):
        raise ConductorError("closed")

    drive(source, answer)
    assert "closed" in str(source.error)


def test_no_more_batches_are_under_way_than_the_window():
    source, carrier = Numbers(10**6), Carrier(lambda batch, post: None)
    dispatcher = Dispatcher("test", lambda error: None)
    driver = Driver(carrier, dispatcher, source)
    dispatcher.post(driver.pump)
    dispatcher.close()
    assert 3 <= len(carrier.carried) <= 6
    assert driver.leased == sum(carrier.carried)


# -- the dispatcher ------------------------------------------------------------------------------


def test_dispatcher_does_things_in_order():
    done = []
    dispatcher = Dispatcher("test", done.append)
    for n in range(100):
        dispatcher.post(lambda n=n: done.append(n))
    dispatcher.close()
    assert done == list(range(100))


def test_action_that_raises_is_reported_and_the_others_go_on():
    errors, done = [], []
    dispatcher = Dispatcher("test", errors.append)
    dispatcher.post(lambda: 1 / 0)
    dispatcher.post(lambda: done.append(1))
    dispatcher.close()
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert done == [1]


def test_what_is_posted_for_later_is_done_in_the_order_of_time():
    done, ended = [], threading.Event()
    dispatcher = Dispatcher("test", done.append)

    def post():
        dispatcher.post_later(0.02, lambda: (done.append("late"), ended.set()))
        dispatcher.post_later(0.01, lambda: done.append("early"))
        done.append("now")

    dispatcher.post(post)
    assert ended.wait(30)
    dispatcher.close()
    assert done == ["now", "early", "late"]


def test_dispatcher_can_be_closed_from_its_own_thread():
    closed = threading.Event()
    dispatcher = Dispatcher("test", lambda error: None)
    dispatcher.post(lambda: (dispatcher.close(), closed.set()))
    assert closed.wait(30)


@pytest.mark.parametrize("threads", [0, 1])
def test_electrons_wait_for_a_worker_to_come(threads):
    source, carrier = Numbers(10), Carrier(lambda batch, post: post(arrived(batch)))
    carrier.threads = threads  # Dask queues what no worker is there for
    dispatcher = Dispatcher("test", lambda error: None)
    dispatcher.post(Driver(carrier, dispatcher, source).pump)
    assert source.ended.wait(30)
    dispatcher.close()
