import collections
import dataclasses
import enum
import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from stored_columns import ANY

from atomizer_dask.conductors.amqp.wire.json_writer import FormError, to_text

MOMENT = datetime(2026, 1, 31, 12, 0, 0, 120_000)
NANOSECONDS = pd.Timestamp("2026-01-31T12:00:00.123456789")
TWO = timezone(timedelta(hours=2))
Point = collections.namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = "red"
    BOTH = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Name(enum.StrEnum):
    ADA = "ada"


@dataclasses.dataclass
class Sample:
    x: object
    label: str = "a"


class Socket:
    pass


class Broken(collections.UserDict):
    def items(self):
        raise OSError("the disk is gone")


def form(value, **limits):
    text = to_text(value, **limits)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def refusal(value, **limits):
    with pytest.raises(FormError) as caught:
        to_text(value, **limits)
    return str(caught.value)


FORMS = [
    # plain
    (None, None),
    ({"a": [1, 2.5, None, True, "ä"]}, {"a": [1, 2.5, None, True, "ä"]}),
    (float("nan"), None),
    ([float("inf"), -float("inf"), 1.0], [None, None, 1.0]),
    ((1, (2,)), [1, [2]]),
    (Point(1, np.int8(2)), [1, 2]),
    ([Point(1, 2)], [[1, 2]]),
    (range(3), [0, 1, 2]),
    (collections.deque([1]), [1]),
    ({"a": 1}.values(), [1]),
    ({"b": 1, "a": 1}.keys(), ["a", "b"]),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset("ab"), ["a", "b"]),
    (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    (collections.UserDict(a=np.int8(1)), {"a": 1}),
    # keys
    ({1: "a", 2.5: "b", False: "c", None: "d"}, {"1": "a", "2.5": "b", "false": "c", "null": "d"}),
    ({np.int64(4): 1, np.float32(0.5): 2, np.str_("x"): 3}, {"4": 1, "0.5": 2, "x": 3}),
    ({Level.HIGH: 1, Name.ADA: 2}, {"3": 1, "ada": 2}),
    # NumPy scalars
    (np.int64(-5), -5),
    (np.uint64(2**64 - 1), 2**64 - 1),
    (np.float64(1.5), 1.5),
    (np.float64("nan"), None),
    ([np.float64("inf")], [None]),
    (np.float16(0.5), 0.5),
    (np.longdouble(1.5), 1.5),
    (np.longdouble("nan"), None),
    (np.bool_(True), True),
    (np.str_("x"), "x"),
    (np.bytes_(b"x"), "eA=="),
    (np.complex64(1 + 2j), {"real": 1.0, "imag": 2.0}),
    (np.clongdouble(1j), {"real": 0.0, "imag": 1.0}),
    # NumPy arrays
    (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
    (np.array([[1.5, np.nan], [np.inf, -np.inf]]), [[1.5, None], [None, None]]),
    (np.array([True, False]), [True, False]),
    (np.array(["a", "bc"]), ["a", "bc"]),
    (np.array(["a", "bc"], dtype=np.dtypes.StringDType()), ["a", "bc"]),
    (np.array([b"x"]), ["eA=="]),
    (np.array(5), 5),
    (np.array(np.nan), None),
    (np.zeros((2, 0)), [[], []]),
    (np.array([]), []),
    (np.array([1j, complex("nan")]), [{"real": 0.0, "imag": 1.0}, {"real": None, "imag": 0.0}]),
    (np.array([{"a": np.int8(1)}, None, (1,)], dtype=object), [{"a": 1}, None, [1]]),
    (np.broadcast_to(np.float32(2), (2,)), [2.0, 2.0]),
    (np.longdouble([1, np.nan]), [1.0, None]),
    # times
    (MOMENT, "2026-01-31T12:00:00.12"),
    (MOMENT.replace(microsecond=0), "2026-01-31T12:00:00"),
    (MOMENT.replace(tzinfo=UTC), "2026-01-31T12:00:00.12Z"),
    (MOMENT.replace(tzinfo=TWO), "2026-01-31T12:00:00.12+02:00"),
    (MOMENT.replace(tzinfo=ZoneInfo("Europe/London")), "2026-01-31T12:00:00.12Z"),
    (MOMENT.replace(1850, tzinfo=ZoneInfo("Europe/Berlin")), "1850-01-31T11:06:32.12Z"),
    (NANOSECONDS, "2026-01-31T12:00:00.123456789"),
    (NANOSECONDS.tz_localize("UTC"), "2026-01-31T12:00:00.123456789Z"),
    (NANOSECONDS.tz_localize(TWO), "2026-01-31T12:00:00.123456789+02:00"),
    (pd.NaT, None),
    (np.datetime64("2026-01-31T12:00:00.120"), "2026-01-31T12:00:00.12"),
    (np.datetime64("2026-01-31T12"), "2026-01-31T12:00:00"),
    (np.datetime64("2026-01"), "2026-01-01"),
    (np.datetime64("2026-01-31"), "2026-01-31"),
    (np.datetime64("1970-01-31T12:00:00.123456789123", "ps"), "1970-01-31T12:00:00.123456789"),
    (np.datetime64("NaT"), None),
    (np.array(["2026-01-31T12:00", "NaT"], "M8[ns]"), ["2026-01-31T12:00:00", None]),
    (np.array([["2026-01-31"]], "M8[D]"), [["2026-01-31"]]),
    (np.array([1], "M8[25s]"), ["1970-01-01T00:00:25"]),
    (np.array([[]], "M8[ns]"), [[]]),
    (date(2026, 1, 31), "2026-01-31"),
    (time(12, 30, tzinfo=UTC), "12:30:00+00:00"),
    (timedelta(days=1, microseconds=1), 86_400 * 10**9 + 1000),
    (timedelta(seconds=-1), -(10**9)),
    (timedelta.max, (timedelta.max // timedelta(microseconds=1)) * 1000),
    (pd.Timedelta(5, "ns"), 5),
    (pd.Timedelta(-5, "ns"), -5),
    (np.timedelta64(3, "h"), 3 * 3600 * 10**9),
    (np.timedelta64(10**9, "W"), 10**9 * 7 * 86_400 * 10**9),
    (np.timedelta64(2500, "ps"), 2),
    (np.timedelta64("NaT"), None),
    (np.array([[1, "NaT"]], "m8[25us]"), [[25_000, None]]),
    # missing
    (pd.NA, None),
    (np.ma.masked, None),
    (np.ma.array([1, 2], mask=[0, 1]), [1, None]),
    (np.ma.array([1.5, 2, np.nan], mask=[0, 1, 0]), [1.5, None, None]),
    (np.ma.array(["a", "b"], mask=[1, 0]), [None, "b"]),
    (np.ma.array(["2026-01-31", "2026-02-01"], "M8[D]", mask=[0, 1]), ["2026-01-31", None]),
    (np.ma.array([1, 2], "m8[us]", mask=[0, 1]), [1000, None]),
    # pandas
    (pd.Series([1, 2], index=["x", "y"]), [1, 2]),
    (pd.Series([1.5, np.nan]), [1.5, None]),
    (pd.Series([1, None], dtype="Int64"), [1, None]),
    (pd.Series([True, None], dtype="boolean"), [True, None]),
    (pd.Series(["a", None]), ["a", None]),
    (pd.Series(["a", None], dtype="string"), ["a", None]),
    (pd.Series(["u", "v", None], dtype="category"), ["u", "v", None]),
    (pd.Series([np.arange(2), None]), [[0, 1], None]),
    (pd.Series(pd.to_datetime(["2026-01-31", None])), ["2026-01-31T00:00:00", None]),
    (pd.Series(pd.to_datetime(["2026-01-31", None], utc=True)), ["2026-01-31T00:00:00Z", None]),
    (pd.Series(pd.to_timedelta([1, None], "s")), [10**9, None]),
    (pd.Index([1, 2]), [1, 2]),
    (pd.MultiIndex.from_tuples([(1, "a")]), [[1, "a"]]),
    (pd.array([1, None], dtype="Int8"), [1, None]),
    (pd.DataFrame({"a": [1, 2], "b": ["x", None]}), {"a": [1, 2], "b": ["x", None]}),
    (pd.DataFrame({"a": [1]}, index=["x"]), {"index": ["x"], "a": [1]}),
    (pd.DataFrame({"a": [1]}, index=pd.Index([5], name="n")), {"n": [5], "a": [1]}),
    (pd.DataFrame({"a": [1]}, index=pd.RangeIndex(1, name="n")), {"n": [0], "a": [1]}),
    (pd.DataFrame({"a": [1]}, index=pd.RangeIndex(1, 2)), {"index": [1], "a": [1]}),
    (
        pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_tuples([(1, 2)], names=["n", None])),
        {"n": [1], "level_1": [2], "a": [1]},
    ),
    (pd.DataFrame({0: [1]}), {"0": [1]}),
    (pd.DataFrame(), {}),
    # others
    (b"ab", "YWI="),
    (bytearray(b"ab"), "YWI="),
    (memoryview(b"ab"), "YWI="),
    (memoryview(b"abcd")[::2], "YWM="),
    (Decimal("1.50"), 1.5),
    (Decimal("12345678901234567890"), 12345678901234567890),
    (Decimal("1E+20"), 10**20),
    (Decimal("0E+99999"), 0),
    (Decimal("NaN"), None),
    (Decimal("Infinity"), None),
    (1 - 2j, {"real": 1.0, "imag": -2.0}),
    (Colour.RED, "red"),
    (Colour.BOTH, [1, 2]),
    (Level.HIGH, 3),
    ([Name.ADA], ["ada"]),
    (Sample(np.int8(1)), {"x": 1, "label": "a"}),
    (Sample([Sample(None)]), {"x": [{"x": None, "label": "a"}], "label": "a"}),
    (Path("a/b"), "a/b"),
    (PurePosixPath("/x"), "/x"),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
]


@pytest.mark.parametrize(("value", "expected"), FORMS)
def test_every_documented_form(value, expected):
    for found in (form(value), form([value])[0], form({"a": {"b": value}})["a"]["b"]):
        assert found == expected
        assert json.dumps(found) == json.dumps(expected)


def test_order_of_keys_is_kept_and_text_is_compact():
    assert to_text({"b": 1, "a": [1, 2]}) == '{"b":1,"a":[1,2]}'
    assert to_text({"b": np.int8(1), "a": "ä"}) == '{"b":1,"a":"ä"}'


def test_index_comes_first():
    assert to_text(pd.DataFrame({"a": [1]}, index=["x"])) == '{"index":["x"],"a":[1]}'


def test_sets_that_cannot_be_sorted_are_arrays_too():
    assert sorted(map(str, form({1, "a"}))) == ["1", "a"]


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (Socket(), "value", "Socket"),
        ({"a": [1, 2, 3, Socket()]}, 'value["a"][3]', "Socket"),
        ({1: {"b": (0, {Socket})}}, 'value["1"]["b"][1][0]', "type"),
        (Sample(x=[Socket()]), 'value["x"][0]', "Socket"),
        (np.array([None, Socket()]), "value[1]", "Socket"),
        (pd.DataFrame({"c": [0, Socket()]}), 'value["c"][1]', "Socket"),
        (pd.Series([pd.Period("2026", "Y")]), "value[0]", "Period"),
        ((x for x in "ab"), "value", "generator"),
        ([len], "value[0]", "builtin_function_or_method"),
        (Sample, "value", "type"),
    ],
)
def test_what_has_no_form_is_named_with_its_path(value, path, kind):
    assert refusal(value).startswith(
        f"{path} is of type {kind}, which has no JSON form; convert it"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({(1, 2): 1}, "value has the key (1, 2), a tuple; a key must be a text"),
        ([{float("nan"): 1}], "value[0] has the key nan"),
        ({date(2026, 1, 1): np.int8(1)}, "a date"),
        ({1: "a", "1": "b"}, 'value has two keys that are "1" in JSON'),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), 'two keys that are "a"'),
        (pd.DataFrame({"index": [1]}, index=["x"]), 'two keys that are "index"'),
        (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), "an array with fields"),
        (np.timedelta64(1, "M"), "no fixed number of nanoseconds"),
        (Decimal("1E+400"), "too large for a float"),
        ([10**5000], "4300 digits"),
        (Broken(), "OSError: the disk is gone"),
    ],
)
def test_what_cannot_be_written_right_is_an_error(value, message):
    assert message in refusal(value)


def endless_dict():
    value = {}
    value["a"] = value
    return value


def endless_list():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize("make", [endless_dict, endless_list])
@pytest.mark.parametrize("depth", [64, 10**6])
def test_what_holds_itself_is_an_error(make, depth):
    assert "or holds itself" in refusal(make(), depth=depth)
    assert "or holds itself" in refusal([np.int8(1), make()], depth=depth)


def test_what_holds_itself_by_an_array_is_an_error():
    array = np.empty(1, dtype=object)
    array[0] = array
    assert "or holds itself" in refusal(array)
    sample = Sample(None)
    sample.x = sample
    assert "or holds itself" in refusal(sample)


def test_depth_counts_the_dimensions_of_arrays():
    assert form(np.zeros((1, 1)), depth=2) == [[0.0]]
    assert "more than 1 levels deep" in refusal(np.zeros((1, 1)), depth=1)
    assert form(5, depth=0) == 5
    for value in ([], {}, set(), np.zeros(0), pd.Series([], dtype="Int64"), pd.DataFrame()):
        assert form(value, depth=1) in ([], {})
        assert "levels deep" in refusal(value, depth=0)


@pytest.mark.parametrize(
    "value",
    [
        range(10**12),
        np.broadcast_to(0, 10**12),
        np.zeros((10**10, 0)),
        {"x": np.broadcast_to(0.5, (10**5, 10**5))},
        pd.RangeIndex(10**5),
    ],
    ids=["range", "array", "empty rows", "matrix", "index"],
)
def test_what_has_too_many_values_is_an_error_before_it_is_written(value):
    assert "holds more than 10,000 values" in refusal(value, most=10_000)


def test_what_is_shared_many_times_over_is_an_error():
    for seed in ([1], [np.int8(1)]):
        value = seed
        for _ in range(60):
            value = [value, value]
        assert "holds more than" in refusal(value, most=10_000)


@given(ANY)
def test_any_value_has_a_form_or_is_told(value):
    try:
        form(value)
    except FormError as error:
        assert str(error).startswith("value")  # noqa: PT017 - either may happen
