"""What is kept of what electrons print: at first all, then the first and the last of each."""

import threading

import numpy as np
import pytest

from atomizer_dask.console.printed import LEFT_OUT, LOGGED, STDERR, STDOUT, Printed, join_printed
from atomizer_dask.console.recorder import Allowance, Recorder, muted


class Batch:
    """A loop that executes electrons, each of which prints."""

    def __init__(self, of_electron=1000, of_batch=10_000, **more):
        self.ended = []
        self.recorder = Recorder(Allowance(of_electron, of_batch), **more)
        self.recorder.runs(lambda: len(self.ended), self.ended)
        self.stdout = self.recorder.writer(STDOUT, through=pytest.fail)
        self.stderr = self.recorder.writer(STDERR, through=pytest.fail)

    def print(self, *texts):
        for text in texts:
            self.stdout(text)
            self.stdout("\n")

    def end(self):
        self.ended.append(0.0)

    def texts(self, stop=None):
        printed = self.recorder.until(len(self.ended) if stop is None else stop)
        if printed is None:
            return []
        return [(line.electron, line.text) for line in printed.lines()]


def test_lines_have_the_electron_that_printed_them():
    batch = Batch()
    batch.print("a", "b")
    batch.end()
    batch.end()
    batch.print("c")
    batch.end()
    assert batch.texts() == [(0, "a"), (0, "b"), (2, "c")]


def test_lines_without_an_end_belong_to_their_electron():
    batch = Batch()
    for _ in range(3):
        batch.stdout(".")
        batch.stdout(".")
        batch.end()
    assert batch.texts() == [(0, ".."), (1, ".."), (2, "..")]


def test_streams_that_take_turns_make_whole_lines():
    batch = Batch()
    batch.stdout("out ")
    batch.stderr("err ")
    batch.stdout("goes on\n")
    batch.stderr("too\n")
    batch.end()
    lines = list(batch.recorder.until(1).lines())
    assert [(line.stream, line.text) for line in lines] == [
        ("stdout", "out goes on"),
        ("stderr", "err too"),
    ]


def test_of_a_progress_bar_the_last_state_is_shown():
    batch = Batch()
    for done in range(100):
        batch.stdout(f"\r{done} %")
    batch.stdout("\n")
    batch.end()
    assert batch.texts() == [(0, "99 %")]


def test_levels_of_records():
    batch = Batch()
    batch.recorder.write(LOGGED + 30, "careful\n")
    batch.end()
    (line,) = batch.recorder.until(1).lines()
    assert (line.stream, line.level, line.text) == ("logging", "WARNING", "careful")


def test_of_one_that_prints_much_the_first_and_the_last_are_kept():
    batch = Batch(of_electron=10_000)
    batch.print(*(f"{number:04}" for number in range(10_000)))
    batch.end()
    batch.print("after")
    batch.end()
    lines = list(batch.recorder.until(2).lines())
    (gap,) = (number for number, line in enumerate(lines) if line.source == LEFT_OUT)
    kept = [line.text for line in lines if line.source == STDOUT]
    assert kept[: gap + 1][-1] > kept[gap - 1]
    assert [kept[0], kept[-2], kept[-1]] == ["0000", "9999", "after"]
    left_out = 50_000 - sum(len(text) + 1 for text in kept[:-1])
    assert lines[gap].text == f"[{left_out:,} characters are not kept]"
    assert sum(map(len, kept)) <= 10_000


def test_one_text_that_is_very_long_is_cut():
    batch = Batch(of_electron=5000)
    batch.print("a" * 1_000_000 + "z")
    batch.end()
    lines = list(batch.recorder.until(1).lines())
    assert lines[0].source == LEFT_OUT
    assert lines[1].text.endswith("az")
    assert len(lines[1].text) <= 5000


def test_beyond_what_a_batch_may_keep_all_is_counted_but_the_last_of_failures():
    batch = Batch(of_electron=100, of_batch=1000)
    batch.recorder.has_failed = {500}.__contains__
    for number in range(1000):
        batch.print(f"{number:09}")
        batch.end()
    lines = list(batch.recorder.until(1000).lines())
    kept = [line for line in lines if line.source == STDOUT]
    counted = [line for line in lines if line.source == LEFT_OUT]
    assert "000000500" in [line.text for line in kept]
    assert len(kept) <= 102
    assert len(counted) == 2  # before and after the failure
    characters = sum(int(line.text.split()[0][1:].replace(",", "")) for line in counted)
    assert characters + 10 * len(kept) == 10_000


def test_what_has_been_reported_does_not_come_again():
    batch = Batch()
    batch.print("a")
    batch.end()
    batch.print("b")
    found = []
    thread = threading.Thread(target=lambda: found.append(batch.recorder.until(1)))
    thread.start()
    thread.join()
    assert [line.text for line in found[0].lines()] == ["a"]
    batch.print("c")
    batch.end()
    later = batch.recorder.until(2).of_offsets(1, 2)
    assert [line.text for line in later.lines()] == ["b", "c"]


def test_nothing_is_recorded_where_nothing_may_be_kept_or_it_is_muted():
    dropped = Batch(of_electron=0, of_batch=0)
    dropped.print("a")
    dropped.end()
    assert dropped.texts() == []
    batch = Batch()
    with muted(batch.recorder):
        batch.print("again")
    batch.print("once")
    batch.end()
    assert batch.texts() == [(0, "once")]


def test_lines_are_shown_as_they_come_and_none_in_halves():
    shown, seen = [], threading.Event()

    def show(pieces):
        shown.extend(pieces)
        seen.set()

    recorder = Recorder(Allowance(1000, 1000, is_live=True), show)
    recorder.runs(lambda: 7, ())
    write = recorder.writer(STDOUT, through=pytest.fail)
    write("whole\n")
    assert seen.wait(10)
    write("half")
    recorder.show()
    assert "".join(piece[3] for piece in shown) == "whole\n"
    recorder.show(is_last=True)
    assert "".join(piece[3] for piece in shown) == "whole\nhalf"
    assert {piece[0] for piece in shown} == {7}


@pytest.fixture
def printed():
    return Printed.of([(1, 10, STDOUT, "a\n"), (1, 11, STDOUT, "bb\n"), (4, 12, STDERR, "ccc")])


def texts(printed):
    return [(line.electron, line.text) for line in printed.lines()]


def test_parts_of_what_was_printed(printed):
    assert texts(printed.of_offsets(0, 2)) == [(1, "a"), (1, "bb")]
    assert texts(printed.of_offsets(2, 9)) == [(4, "ccc")]
    assert printed.of_offsets(2, 4) is None
    assert texts(printed.where(np.array([True, False, True]))) == [(1, "a"), (4, "ccc")]
    assert printed.where(np.zeros(3, dtype=bool)) is None


def test_joined_and_moved(printed):
    both = join_printed([None, printed, printed.moved(10)])
    assert texts(both) == [*texts(printed), (11, "a"), (11, "bb"), (14, "ccc")]
    assert join_printed([None]) is None
