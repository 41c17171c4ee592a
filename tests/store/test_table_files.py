"""Electrons of a file that are known from its metadata are those in its column."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atomizer_dask import Atomizer, MemoryConductor, atom, grid
from atomizer_dask.store import table_files
from atomizer_dask.store.table_files import read_columns, read_rows, write_table


def table(electrons):
    electrons = np.asarray(electrons, dtype=np.int64)
    return pa.table(
        {"electron": electrons, "x": electrons * 2.0, "attempts": electrons.astype(np.int32)},
        schema=pa.schema(
            [
                pa.field("electron", pa.int64(), nullable=False),
                pa.field("x", pa.float64(), metadata={"unit": "m"}),
                pa.field("attempts", pa.int32(), nullable=False),
            ],
            metadata={"of": "a test"},
        ),
    )


KINDS = {
    "all": range(10, 110),
    "one": [7],
    "none": [],
    "gaps": [1, 2, 4, 5, 9],
    "unordered": [3, 1, 2],
    "ends in order": [3, 5, 4, 6],
    "repeated": [1, 1, 2, 4],
    "negative": [-2, -1, 0],
    "large": range(2**40, 2**40 + 50),
    "backwards": range(50, 0, -1),
}


@pytest.fixture(params=[1000, 7], ids=["one group", "several groups"])
def group_rows(request, monkeypatch):
    monkeypatch.setattr(table_files, "GROUP_ROWS", request.param)


@pytest.mark.usefixtures("group_rows")
@pytest.mark.parametrize("electrons", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("columns", [["electron"], ["electron", "x"], ["x"], ["attempts", "none"]])
def test_columns_are_those_of_the_file(electrons, columns, tmp_path):
    path = str(tmp_path / "table.parquet")
    write_table(table(electrons), path)
    with pq.ParquetFile(path) as file:
        found = read_columns(file, columns)
        expected = file.read(columns=columns)
        assert found.equals(expected)
        assert found.schema.equals(expected.schema, check_metadata=True)
        assert read_columns(file, None).equals(table(electrons))


@pytest.mark.usefixtures("group_rows")
@pytest.mark.parametrize("electrons", KINDS.values(), ids=KINDS)
def test_rows_are_those_of_the_file(electrons, tmp_path):
    path = str(tmp_path / "table.parquet")
    whole = table(electrons)
    write_table(whole, path)
    mask = np.arange(len(whole)) % 9 == 3
    with pq.ParquetFile(path) as file:
        expected = whole.filter(pa.array(mask)).select(["electron", "x"])
        for where in (path, None):  # a local file, and one of an object store
            found = read_rows(file, ["electron", "x"], mask, where)
            assert found.equals(expected)
            assert found.schema.equals(expected.schema, check_metadata=True)


def test_a_group_without_its_first_electron_is_read(tmp_path):
    path = str(tmp_path / "table.parquet")
    write_table(table(range(10)).slice(1, 5), path)
    with pq.ParquetFile(path) as file:
        assert read_columns(file, ["electron"]).column(0).to_pylist() == [1, 2, 3, 4, 5]


def test_a_file_of_somebody_else_is_read(tmp_path):
    path = str(tmp_path / "table.parquet")
    pq.write_table(table([2, 4, 3]), path)  # statistics, and no order
    with pq.ParquetFile(path) as file:
        assert read_columns(file, ["electron"]).column(0).to_pylist() == [2, 4, 3]


def test_damage_is_found_in_electrons_that_frames_need_not_read(tmp_path):
    @atom
    def double(x):
        return 2 * x

    url = tmp_path / "store"
    with Atomizer(MemoryConductor(), double) as atomizer:
        atomizer.map(double, grid(x=range(1000)), store=url).wait(progress=False)
        (path,) = (url / "properties").iterdir()
        column = pq.ParquetFile(path).metadata.row_group(0).column(0)
        content = bytearray(path.read_bytes())
        content[column.data_page_offset + column.total_compressed_size - 2] ^= 0xFF
        path.write_bytes(content)
        run = atomizer.attach(url, drop_corrupted=True).wait(progress=False)
        assert [each.name[-len(path.name) :] for each in (url / "corrupted").iterdir()] == [
            path.name
        ]
        assert run.to_frame()["result"].tolist() == [2 * x for x in range(1000)]
