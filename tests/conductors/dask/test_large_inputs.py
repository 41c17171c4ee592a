"""Large inputs of batches: by digest, and without warnings that nobody can act on."""

import warnings

import numpy as np
import pytest

from atomizer_dask import Atomizer, atom, grid, zipped
from atomizer_dask.execution.packing import Packed, pack

SECONDS = 60
TABLES = [np.full(300_000, float(number)) for number in range(3)]  # 2.4 MB each


@atom(id="tests.first")
def first(i, table):
    table[1] = i  # of a copy
    return float(table[0]) + 10 * i


@pytest.mark.dask
@pytest.mark.parametrize("order", ["inner", "outer", "columns"])
@pytest.mark.parametrize("has_store", [False, True])
def test_large_values_of_an_axis_arrive_as_they_are(dask, tmp_path, order, has_store):
    axes = {"i": range(4), "table": TABLES}
    sweep = {
        "inner": grid(**axes),
        "outer": grid(**dict(reversed(axes.items()))),
        "columns": zipped(i=range(3), table=TABLES),
    }[order]
    options = {"store": tmp_path / "store"} if has_store else {}
    with warnings.catch_warnings(), Atomizer(dask) as atomizer:
        warnings.simplefilter("error")
        frame = atomizer.map(first, sweep, **options).wait(SECONDS).to_frame()
    expected = [table[0] + 10 * i for i, table in zip(frame["i"], frame["table"], strict=True)]
    assert frame["result"].tolist() == expected
    assert [table[1] for table in TABLES] == [0.0, 1.0, 2.0]


@pytest.mark.dask
def test_large_batch_warns_nobody(dask):
    with warnings.catch_warnings(), Atomizer(dask) as atomizer:
        warnings.simplefilter("error")
        large = [np.zeros(2_000_000)] * 2  # 16 MB: Dask warns from 10 on
        assert len(atomizer.map(first, zipped(i=[1, 2], table=large)).wait(SECONDS).to_frame()) == 2


def test_packed_values_lie_in_files_once():
    packed = pack({"a": TABLES[1], "b": TABLES[1].copy(), "c": np.arange(1000.0)})
    small, files = packed.with_files()
    assert len(small.large) == 2
    assert len({file.digest for file in files}) == 1
    assert small.nbytes == packed.nbytes
    again = Packed.of(small.whole())
    assert len(again.whole()) < 20_000
    loaded = again.load()
    assert (loaded["a"] == TABLES[1]).all()
    assert loaded["c"].tolist() == list(range(1000))
    loaded["a"][0] = 7  # a map of its own
    assert loaded["b"][0] == 1
    assert again.load()["a"][0] == 1
    del files, loaded
    with pytest.raises(FileNotFoundError, match=r"an input \(2 MiB\) is not on this host any more"):
        again.load()
