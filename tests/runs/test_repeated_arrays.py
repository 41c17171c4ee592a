"""A large array that many rows of a sweep share: one in memory and in the frame."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import Run, atom, grid, zipped

SECONDS = 60
ROWS = 40
ITEMS = 250_000  # 2 MB of floats


@atom(id="tests.writes")
def writes(i, table):
    table[0] += i  # its own copy
    return float(table[0])


@atom(id="tests.shape", vectorized=True)
def first_of(i, table):
    assert table.shape == (len(i), ITEMS)
    return table[:, 0] + i


def as_zipped(table):
    return zipped(i=range(ROWS), table=[table] * ROWS)


def as_records(table):
    return [{"i": i, "table": table} for i in range(ROWS)]


def as_stream(table):
    return iter(as_records(table))


def as_frame(table):
    return pd.DataFrame({"i": range(ROWS), "table": [table] * ROWS})


KINDS = [as_zipped, as_records, as_stream, as_frame]


@pytest.fixture
def table():
    return np.full(ITEMS, 0.5)


@pytest.mark.parametrize("make", KINDS)
def test_one_array_of_many_rows_is_copied_once(make, table, atomizer):
    tracemalloc.start()
    try:
        run = atomizer.map(writes, make(table)).wait(SECONDS)
        frame = run.to_frame()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < ROWS / 2 * table.nbytes  # batches under way have copies of their own
    assert len(set(map(id, frame["table"]))) == 1
    assert frame["result"].tolist() == [0.5 + i for i in range(ROWS)]
    assert table[0] == frame["table"][0][0] == 0.5


@pytest.mark.parametrize("make", [as_zipped, as_records, as_stream])
def test_vectorised_atoms_are_given_a_stack(make, table, atomizer):
    frame = atomizer.map(first_of, make(table)).wait(SECONDS).to_frame()
    assert frame["result"].tolist() == [0.5 + i for i in range(ROWS)]


def test_vectorised_atoms_are_given_a_stack_of_an_axis_too(table, atomizer):
    run = atomizer.map(first_of, grid(i=range(2), table=[table, table])).wait(SECONDS)
    assert run.to_frame()["result"].tolist() == [0.5, 0.5, 1.5, 1.5]


def test_several_arrays_each_lie_once_in_the_frame(atomizer):
    one, other = np.zeros(ITEMS), np.ones(ITEMS)
    run = atomizer.map(writes, zipped(i=range(6), table=[one, other] * 3)).wait(SECONDS)
    assert len(set(map(id, run.to_frame()["table"]))) == 2
    assert run.to_frame()["result"].tolist() == [0, 2, 2, 4, 4, 6]


def test_an_array_that_a_stream_changes_between_rows_is_not_taken_for_the_same(atomizer):
    def rows():
        table = np.zeros(ITEMS)
        for i in range(5):
            table[0] = 10 * i
            yield {"i": i, "table": table}

    frame = atomizer.map(writes, rows()).wait(SECONDS).to_frame()
    assert frame["result"].tolist() == [0, 11, 22, 33, 44]
    assert [table[0] for table in frame["table"]] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("make", KINDS)
def test_a_store_gives_the_same_sweep_back(make, table, atomizer, tmp_path):
    atomizer.map(writes, make(table), store=tmp_path / "run").wait(SECONDS)
    again = atomizer.map(writes, make(table), store=tmp_path / "run").wait(SECONDS)
    assert again.to_frame()["result"].tolist() == [0.5 + i for i in range(ROWS)]
    stored = Run.open(tmp_path / "run").to_frame()
    assert stored["result"].tolist() == [0.5 + i for i in range(ROWS)]
    assert all(np.array_equal(one, table) for one in stored["table"])


def test_the_same_sweep_again_writes_no_file(table, atomizer, tmp_path):
    def files():
        run = atomizer.map(writes, as_zipped(table), store=tmp_path / "run").wait(SECONDS)
        assert run.state == "finished"
        return sorted(path.name for path in (tmp_path / "run" / "sweep").iterdir())

    assert files() == files() == files()


def test_large_inputs_that_differ_are_not_copied_for_the_frame(atomizer):
    arrays = [np.full(ITEMS, float(i)) for i in range(4)]
    run = atomizer.map(writes, grid(i=[1], table=arrays)).wait(SECONDS)
    run = atomizer.map(writes, zipped(i=range(4), table=arrays)).wait(SECONDS)
    one, other = run.to_frame()["table"], run.to_frame()["table"]
    assert [each[0] for each in one] == [0, 1, 2, 3]
    assert all(np.shares_memory(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match="read-only"):
        one[0][0] = 1
