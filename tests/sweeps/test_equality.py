"""Inputs are the same by type and value, wherever any are compared."""

import itertools
import json
import pickle
import threading
from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import partial
from zoneinfo import ZoneInfo

import cloudpickle
import numpy as np
import pandas as pd
import pytest

from atomizer_dask import AtomizerError, Run, atom, grid, zipped
from atomizer_dask.sweeps.equality import alike, codes_of, key_of, same_columns

Point = namedtuple("Point", ["x", "y"])


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Model:
    layers: list
    rate: float = 0.1


class Awkward:
    """Compared by those who would break whoever compares them."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        raise RuntimeError("do not compare me")

    def __hash__(self):
        raise RuntimeError("do not hash me")

    def __bool__(self):
        raise RuntimeError("do not ask me")


class Node:
    def __init__(self, depth):
        self.next = self
        self.children = [Node(depth - 1)] * 2 if depth else []


def endless():
    values = [1]
    values.append(values)
    return values


# Each makes a value anew; no two are the same.
DISTINCT = {
    "int": lambda: 1,
    "float": lambda: 1.0,
    "bool": lambda: True,
    "complex": lambda: 1 + 0j,
    "int64": lambda: np.int64(1),
    "int8": lambda: np.int8(1),
    "float64": lambda: np.float64(1),
    "float32": lambda: np.float32(1),
    "bool_": lambda: np.bool_(True),
    "complex64": lambda: np.complex64(1),
    "longdouble": lambda: np.longdouble(1),
    "decimal": lambda: Decimal(1),
    "decimal_of_digits": lambda: Decimal("1.0"),
    "text": lambda: "1",
    "numpy_text": lambda: np.str_("1"),
    "bytes": lambda: b"1",
    "zero": lambda: 0.0,
    "negative_zero": lambda: -0.0,
    "numpy_zero": lambda: np.float64(0.0),
    "numpy_negative_zero": lambda: np.float64(-0.0),
    "none": lambda: None,
    "nan": lambda: float("nan"),
    "numpy_nan": lambda: np.float64("nan"),
    "nat": lambda: pd.NaT,
    "numpy_nat": lambda: np.datetime64("NaT", "ns"),
    "na": lambda: pd.NA,
    "tuple": lambda: (1, 2),
    "tuple_of_bool": lambda: (True, 2),
    "tuple_of_nan": lambda: (float("nan"), 2),
    "list": lambda: [1, 2],
    "point": lambda: Point(1, 2),
    "set": lambda: {1, 2},
    "set_of_floats": lambda: {1.0, 2.0},
    "frozenset": lambda: frozenset({1, 2}),
    "dict": lambda: {"a": 1},
    "dict_of_float": lambda: {"a": 1.0},
    "dict_of_nan": lambda: {"a": float("nan")},
    "array": lambda: np.array([1.0, 2.0]),
    "array_of_singles": lambda: np.array([1.0, 2.0], "f4"),
    "array_of_ints": lambda: np.array([1, 2]),
    "row": lambda: np.array([[1.0, 2.0]]),
    "array_of_nan": lambda: np.array([np.nan, 1.0]),
    "array_of_complex": lambda: np.array([complex(np.nan, 1)]),
    "array_of_objects": lambda: np.array([1, [2]], dtype=object),
    "array_of_texts": lambda: np.array(["a", "bc"]),
    "records": lambda: np.zeros(2, "i4,f8"),
    "record": lambda: np.zeros(2, "i4,f8")[0],
    "timestamp": lambda: pd.Timestamp("2020-01-01"),
    "timestamp_utc": lambda: pd.Timestamp("2020-01-01", tz="UTC"),
    "datetime": lambda: datetime(2020, 1, 1),
    "datetime_utc": lambda: datetime(2020, 1, 1, tzinfo=UTC),
    "datetime_berlin": lambda: datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    "datetime_hour": lambda: datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    "date": lambda: datetime(2020, 1, 1).date(),
    "time": lambda: time(1, 2),
    "timedelta": lambda: timedelta(1),
    "pandas_timedelta": lambda: pd.Timedelta(1, "D"),
    "days": lambda: np.datetime64("2020-01-01", "D"),
    "seconds": lambda: np.datetime64("2020-01-01", "s"),
    "interval": lambda: pd.Interval(0, 1),
    "interval_of_floats": lambda: pd.Interval(0.0, 1.0),
    "period": lambda: pd.Period("2020", "Y"),
    "red": lambda: Colour.RED,
    "blue": lambda: Colour.BLUE,
    "model": lambda: Model([1]),
    "model_of_float": lambda: Model([1.0]),
    "model_of_nan": lambda: Model([float("nan")]),
    "awkward": lambda: Awkward(1),
    "awkward_of_float": lambda: Awkward(1.0),
    "type": lambda: int,
    "builtin": lambda: len,
    "partial": lambda: partial(print, 1),
    "partial_of_float": lambda: partial(print, 1.0),
    "frame": lambda: pd.DataFrame({"a": [1, 2]}),
    "frame_of_floats": lambda: pd.DataFrame({"a": [1.0, 2.0]}),
    "series": lambda: pd.Series([1, 2]),
    "endless": endless,
    "range": lambda: range(3),
}


@pytest.mark.parametrize("name", DISTINCT)
def test_a_value_is_the_same_as_one_made_anew_or_read_back(name):
    make = DISTINCT[name]
    assert alike(make(), make())
    assert alike(make(), pickle.loads(cloudpickle.dumps(make())))
    assert alike([make()], [make()])
    assert alike({"a": (make(),)}, {"a": (make(),)})


def test_all_others_are_not_the_same():
    for (name, one), (other, two) in itertools.combinations(DISTINCT.items(), 2):
        assert not alike(one(), two()), (name, other)
    keys = {key_of(make()) for make in DISTINCT.values()}
    assert len(keys) == len(DISTINCT)


def test_the_same_in_another_order():
    assert alike({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert alike(np.asfortranarray(np.ones((2, 3))), np.ones((2, 3)))
    assert alike(np.arange(3, dtype=">i4"), np.arange(3, dtype="<i4"))
    assert not alike([1, 2], [2, 1])


def test_what_has_no_end_or_very_many_parts_can_be_compared():
    assert alike(Node(30), Node(30))
    assert not alike(Node(3), Node(4))
    assert alike(threading.Lock, threading.Lock)
    lock = threading.Lock()
    assert alike(lock, lock)
    assert not alike(lock, threading.Lock())


COLUMNS = {
    "ints": (np.arange(3), False),
    "numpy_ints": (np.arange(3), True),
    "small": (np.arange(3, dtype="i1"), True),
    "floats": (np.arange(3.0), False),
    "numpy_floats": (np.arange(3.0), True),
    "singles": (np.arange(3, dtype="f4"), True),
    "bools": (np.array([False, True, True]), False),
    "numpy_bools": (np.array([False, True, True]), True),
    "nan": (np.array([np.nan, -0.0, 0.0]), False),
    "days": (np.array([0, 1, 2], "M8[D]"), True),
    "seconds": (np.array([0, 1, 2], "M8[s]"), True),
    "timestamps": (np.array([0, 1, 2], "M8[s]"), False),
    "objects": (np.array([0, 1.0, True], dtype=object), False),
    "rows": (np.zeros((3, 2)), True),
    "texts": (pd.array(["0", "1", "2"]), False),
}


def test_columns_are_compared_as_their_values_are():
    for (name, one), (other, two) in itertools.product(COLUMNS.items(), repeat=2):
        scalars = one[1], two[1]
        assert same_columns(one[0], two[0], scalars=scalars) == (name == other), (name, other)
    assert same_columns(np.arange(3), range(3), scalars=(False, False))
    assert same_columns(range(3), pd.array([0, 1, 2], dtype="Int64"), scalars=(False, False))
    assert same_columns(np.arange(3, dtype="i2"), np.arange(3), scalars=(False, False))
    assert not same_columns(range(3), range(2), scalars=(False, False))


def test_codes_tell_values_apart():
    floats = np.array([np.nan, 0.0, -0.0, 1.0, -np.nan])
    assert codes_of([(floats, False)]).tolist() == [0, 1, 2, 3, 0]
    mixed = codes_of([(np.array([1, 0]), False), (np.array([1.0, 0.0]), False), (range(2), False)])
    assert mixed.tolist() == [0, 1, 2, 3, 1, 0]


# -- in a store ----------------------------------------------------------------------------------


def sweeps_in(store):
    return len(json.loads((store / "run.json").read_text())["sweeps"])


@atom(id="tests.kind")
def kind(v):
    return f"{type(v).__module__}.{type(v).__name__}"


def test_values_of_other_types_are_others_in_a_store(local, tmp_path):
    names = [n for n in DISTINCT if not n.startswith("partial")]
    options = {"store": tmp_path / "s", "allow_pickle": True}
    local.register(kind)
    for chosen in (names[::2], names, names[::-1]):
        values = [DISTINCT[name]() for name in chosen]
        for run in (
            local.map(kind, zipped(v=values), **options).wait(30),
            local.map(kind, zipped(v=[DISTINCT[name]() for name in chosen]), **options).wait(30),
            local.attach(**options).wait(30),
        ):
            told = [f"{type(v).__module__}.{type(v).__name__}" for v in values]
            assert run.to_frame()["result"].tolist() == told
    assert sweeps_in(options["store"]) == 3
    assert len(pd.read_parquet(tmp_path / "s" / "properties")) == len(names)


def test_a_stream_in_a_store_must_come_again_type_and_value(local, tmp_path):
    rows = [{"v": 1}, {"v": np.float32(1)}, {"v": (1, float("nan"))}, {"v": np.zeros(2)}]
    local.map(kind, iter(rows), store=tmp_path / "s").wait(30)
    again = local.map(kind, iter([*rows, {"v": 1.0}]), store=tmp_path / "s").wait(30)
    assert again.to_frame()["result"].tolist()[-1] == "builtins.float"
    assert again.progress.done == 5
    changed = local.map(kind, iter([{"v": True}, *rows[1:]]), store=tmp_path / "s")
    with pytest.raises(AtomizerError, match="a stream can be extended, not changed"):
        changed.wait(30)


def as_an_early_version_wrote(store):
    """Take out of a manifest how columns were given, which 0.1.0 did not keep."""
    path = store / "run.json"
    manifest = json.loads(path.read_text())
    for sweep in manifest["sweeps"]:
        sweep.pop("given", None)
        for axis in sweep.get("axes", ()):
            axis.pop("given", None)
    path.write_text(json.dumps(manifest))


EARLY = {
    "array": (np.linspace(0, 1, 3), np.linspace(0, 1, 5), 2),
    "ints": (np.arange(3), np.arange(4), 1),
    "list": ([1, 2], [1, 2, 3], 1),
    "ints_then_floats": ([1, 2], [1, 2, 2.5], 1),
    "objects": ([1, "all"], [1, "all", None], 1),
    "series": (pd.Series([1.5, 2]), pd.Series([1.5, 2, 3]), 1),
    "days": (np.array([0, 1], "M8[s]"), np.array([0, 1, 2], "M8[s]"), 1),
    "rows": (np.zeros((2, 2)), np.ones((2, 2)), 2),
}


@pytest.mark.parametrize("make", [grid, zipped])
@pytest.mark.parametrize(("first", "second", "new"), EARLY.values(), ids=EARLY.keys())
def test_rows_of_an_early_store_are_found_again(local, tmp_path, first, second, new, make):
    local.register(kind)
    store = tmp_path / "s"
    before = local.map(kind, make(v=first), store=store).wait(30).to_frame()
    as_an_early_version_wrote(store)
    assert local.attach(store).wait(30).to_frame().equals(before)
    assert local.map(kind, make(v=first), store=store).wait(30).to_frame().equals(before)
    assert sweeps_in(store) == 1
    for _ in range(2):
        run = local.map(kind, make(v=second), store=store).wait(30)
        assert run.progress.done == len(second)
        assert sweeps_in(store) == 2
        rows = pd.read_parquet(store / "properties")
        assert sorted(rows["electron"]) == list(range(len(first) + new))
    assert Run.open(store).to_frame().equals(run.to_frame())
