"""What atoms print, log and warn of: with the electron that did, and in no cell by itself."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pandas as pd
import pytest

from atomizer_dask import Atomizer, MemoryConductor, Run, atom, grid

SECONDS = 60


@atom(id="tests.says")
def says(i):
    print("hello", i)
    print("oh", i, file=sys.stderr)
    logging.getLogger("tests.mine").warning("careful %d", i)
    warnings.warn(f"number {i}", stacklevel=1)
    sys.stdout.buffer.write(b"bytes\n")
    sys.stdout.write("no end")
    if i == 1:
        raise ValueError("one")
    return i


LINES = [
    ("stdout", "", "hello 0"),
    ("stderr", "", "oh 0"),
    ("logging", "WARNING", "tests.mine: careful 0"),
    ("warnings", "WARNING", "UserWarning: number 0"),
    ("stdout", "", "bytes"),
    ("stdout", "", "no end"),
]


@atom(id="tests.counts", vectorized=True)
def counts(i):
    print("rows", len(i))
    return i


@atom(id="tests.child", isolation="process")
def child(i):
    print("from a child", i)
    return i


@atom(id="tests.fails.once")
def fails_once(i, context):
    print("attempt", context.attempt)
    if context.attempt == 1:
        raise ValueError
    return i


def lines_of(run, row):
    output = run.output
    mine = output[(output["row"] == row) & ~output["text"].str.startswith("  warnings.warn")]
    return [
        (stream, level, text.rpartition(".py:")[2].partition(": ")[2] if ".py:" in text else text)
        for stream, level, text in zip(mine["stream"], mine["level"], mine["text"], strict=True)
    ]


def test_all_of_it_is_kept_and_nothing_lands_here(atomizer, capsys):
    run = atomizer.map(says, grid(i=range(3))).wait(SECONDS)
    assert lines_of(run, 0) == LINES
    assert set(run.output["row"]) == {0, 1, 2}
    assert str(run.output["time"].dtype) == "datetime64[ns, UTC]"
    assert run.output_of(2).startswith("hello 2\noh 2\n")
    captured = capsys.readouterr()
    assert "hello" not in captured.out
    assert "careful" not in captured.err
    assert run.errors["printed"][1].endswith("bytes\nno end")


def test_handlers_that_are_no_terminal_get_records_all_the_same(caplog):
    with Atomizer(MemoryConductor()) as atomizer:
        atomizer.map(says, grid(i=[0])).wait(SECONDS)
    assert "careful 0" in caplog.text


def test_other_threads_print_as_before(capsys):
    begun, go_on = threading.Event(), threading.Event()

    @atom(id="tests.waits")
    def waits(i):
        begun.set()
        print("inside")
        return go_on.wait(SECONDS)

    before = sys.stdout
    with Atomizer(MemoryConductor()) as atomizer:
        run = atomizer.map(waits, grid(i=[0]))
        assert begun.wait(SECONDS)
        print("outside")
        with contextlib.redirect_stdout(io.StringIO()) as redirected:
            print("redirected")
        go_on.set()
        run.wait(SECONDS)
    assert capsys.readouterr().out == "outside\n"
    assert redirected.getvalue() == "redirected\n"
    assert run.output["text"].tolist() == ["inside"]
    assert sys.stdout is before


def test_what_an_atom_puts_in_place_of_the_handling_of_records_stays(monkeypatch):
    monkeypatch.setattr(logging.Logger, "callHandlers", before := logging.Logger.callHandlers)

    @atom(id="tests.replaces")
    def replaces(i):
        logging.Logger.callHandlers = theirs

    def theirs(self, record):
        before(self, record)

    with Atomizer(MemoryConductor(1)) as atomizer:
        atomizer.map(replaces, grid(i=[1])).wait(SECONDS)
    assert logging.Logger.callHandlers is theirs


def test_a_handler_that_an_atom_adds_prints_nothing_here_later_either(capsys):
    logger = logging.getLogger("tests.added")

    @atom(id="tests.adds")
    def adds(i):
        if not logger.handlers:
            logger.addHandler(logging.StreamHandler())
        logger.warning("number %d", i)

    try:
        with Atomizer(MemoryConductor(1)) as atomizer:
            runs = [atomizer.map(adds, grid(i=range(2))).wait(SECONDS) for _ in range(2)]
    finally:
        logger.handlers.clear()
    for run in runs:
        assert run.output["text"].tolist() == ["tests.added: number 0", "tests.added: number 1"]
    assert "number" not in capsys.readouterr().err


def test_an_atom_may_redirect_what_it_prints_itself():
    @atom(id="tests.redirects")
    def redirects(i):
        with contextlib.redirect_stdout(io.StringIO()) as file:
            print("mine")
        return file.getvalue()

    with Atomizer(MemoryConductor(1)) as atomizer:
        run = atomizer.map(redirects, grid(i=range(3))).wait(SECONDS)
    assert run.to_frame()["result"].tolist() == ["mine\n"] * 3
    assert run.output.empty


def test_slices_print_as_their_first_electron(atomizer):
    run = atomizer.map(counts, grid(i=range(100))).wait(SECONDS)
    output = run.output
    assert output["row"][0] == 0
    assert output["row"].is_unique  # what is executed once more is not recorded
    assert sum(int(text.split()[1]) for text in output["text"]) == 100


def test_child_processes(atomizer):
    run = atomizer.map(child, grid(i=range(4))).wait(SECONDS)
    assert run.output["text"].tolist() == [f"from a child {i}" for i in range(4)]
    assert run.output["row"].tolist() == [0, 1, 2, 3]


@atom(id="tests.dies", isolation="process")
def dies(i):
    print("alive", i)
    print("ünd auch 漢字", i)
    if i == 3:
        os._exit(1)
    return i


def test_the_last_words_of_an_electron_that_kills_its_process(atomizer):
    run = atomizer.map(dies, grid(i=range(6))).wait(SECONDS)
    assert run.errors["kind"].tolist() == ["killed"]
    assert run.errors["printed"][3] == "alive 3\nünd auch 漢字 3"
    assert run.output["row"].tolist() == [each for row in range(6) for each in (row, row)]


def test_the_last_words_of_an_electron_whose_time_is_up(atomizer):
    @atom(id="tests.hangs")
    def hangs(i):
        print("hanging", i)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        while i == 1:
            time.sleep(60)  # no exception can be raised in it

    run = atomizer.map(hangs, grid(i=range(3)), timeout=0.5).wait(SECONDS)
    assert run.errors["printed"].tolist() == ["hanging 1"]
    assert run.output["text"].tolist() == ["hanging 0", "hanging 1", "hanging 2"]


def test_all_attempts(atomizer):
    run = atomizer.map(fails_once, grid(i=range(3)), on_failure="retry").wait(SECONDS)
    assert run.output["text"].tolist() == ["attempt 1", "attempt 2"] * 3
    assert run.output["attempt"].tolist() == [1, 2] * 3


def test_rows_have_the_labels_of_the_frame(atomizer):
    frame = pd.DataFrame({"i": [5, 6]}, index=["a", "b"])
    run = atomizer.map(child, frame).wait(SECONDS)
    assert run.output["row"].tolist() == ["a", "b"]
    assert run.output_of("b") == "from a child 6\n"
    with pytest.raises(KeyError):
        run.output_of("c")


def test_nothing_printed_is_an_empty_frame(atomizer):
    run = atomizer.map(atom(lambda i: i, id="tests.silent"), grid(i=[1])).wait(SECONDS)
    assert list(run.output) == ["row", "time", "stream", "level", "text", "attempt"]
    assert run.output.empty
    assert run.output_of(0) == ""


def test_a_store_keeps_it_over_all_processes(atomizer, tmp_path):
    store = tmp_path / "run"
    run = atomizer.map(says, grid(i=range(3)), store=store).wait(SECONDS)
    opened = Run.open(store)
    assert opened.output.equals(run.output)
    assert opened.errors["printed"][1].endswith("no end")
    more = atomizer.map(says, grid(i=range(5)), store=store, seed=run.seed).wait(SECONDS)
    assert set(more.output["row"]) == {0, 1, 2, 3, 4}
    assert more.output_of(0) == run.output_of(0)
    assert Run.open(store).output.equals(more.output)


def test_a_store_that_prints_nothing_has_no_folder_for_it(atomizer, tmp_path):
    silent = atom(lambda i: i, id="tests.silent")
    atomizer.map(silent, grid(i=[1]), store=tmp_path / "run").wait(SECONDS)
    assert not (tmp_path / "run" / "output").exists()


def test_drop_keeps_nothing(atomizer, capsys):
    run = atomizer.map(says, grid(i=range(3)), output="drop").wait(SECONDS)
    assert run.output.empty
    assert capsys.readouterr().out == ""


def test_stream_shows_it_as_it_comes(atomizer, capsys):
    run = atomizer.map(says, grid(i=range(3)), output="stream").wait(SECONDS)
    atomizer.wait(SECONDS)
    captured = capsys.readouterr()
    assert set(captured.out.splitlines()) >= {"[0] hello 0", "[2] no end"}
    assert "[0] WARNING tests.mine: careful 0" in captured.err.splitlines()
    assert lines_of(run, 0) == LINES


def test_a_bad_option_is_refused(atomizer):
    with pytest.raises(ValueError, match="output is 'loud', expected one of 'keep'"):
        atomizer.map(says, grid(i=[1]), output="loud")


def test_more_than_a_run_may_keep_is_counted(configure):
    configure({"output.of-run": 2000, "output.of-electron": 200})

    @atom(id="tests.chatters")
    def chatters(i):
        print("x" * 99)

    with Atomizer(MemoryConductor(1)) as atomizer:
        run = atomizer.map(chatters, grid(i=range(1000))).wait(SECONDS)
    output = run.output
    kept = output["text"].str.startswith("x")
    left = output["text"][~kept].str.extract(r"\[([\d,]+) char")[0].str.replace(",", "")
    assert kept.sum() < 100
    assert left.astype(int).sum() + 100 * kept.sum() == 100_000


def test_a_forked_process_of_an_atom_prints_where_the_worker_does(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from atomizer_dask import Atomizer, MemoryConductor, atom, grid\n"
        "@atom\n"
        "def forks(i):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        print('from a fork', flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "with Atomizer(MemoryConductor(1), forks) as atomizer:\n"
        "    atomizer.map(forks, grid(i=[1])).wait(60, progress=False)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "from a fork\n"
