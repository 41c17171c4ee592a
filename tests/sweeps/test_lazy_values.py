import asyncio
import io
from concurrent.futures import Future

import dask
import dask.array
import dask.bag
import numpy as np
import pandas as pd
import pytest
from distributed import Client

from atomizer_dask import Atomizer, InvalidSweepError, MemoryConductor, atom, grid, zipped
from atomizer_dask.sweeps.lazy_values import check_values


@atom(id="tests.takes")
def takes(x):
    return type(x).__name__


async def soon():
    return 1


class AnswersToAnything:
    """As mocks and proxies do."""

    def __getattr__(self, name):
        return lambda *_, **__: True


@pytest.fixture
def values():
    """Values that are none, by what the refusal of them says to do."""
    coroutine, loop = soon(), asyncio.new_event_loop()
    with open(__file__, "rb") as binary, open(__file__) as text:
        yield {
            "compute": [dask.delayed(1), dask.array.ones(3), dask.bag.from_sequence([1])],
            "await": [coroutine, loop.create_future()],
            "result": [Future()],
            "list": [(n for n in [1]), map(int, "1"), zip([1]), enumerate([1])],
            "path": [binary, text],
        }
    coroutine.close()
    loop.close()


def test_what_is_no_value_is_refused_with_its_name_and_what_to_do(local, values):
    for what, those in values.items():
        for value in those:
            for sweep in (
                {"x": [1, value]},
                zipped(x=[1, value]),
                grid(x=[1, value]),
                [{"x": 1}, {"x": value}],
                pd.DataFrame({"x": pd.Series([1, value], dtype=object)}),
            ):
                with pytest.raises(InvalidSweepError, match=rf"value 1 of 'x' is .*{what}"):
                    local.map(takes, sweep)
            with pytest.raises(InvalidSweepError, match=rf"of 'x' is .*{what}"):
                local.send(takes, {"x": value})
            with pytest.raises(InvalidSweepError, match=rf"of 'x' is .*{what}"):
                local.map(takes, {"x": [[1, value]]})
            with pytest.raises(InvalidSweepError, match=rf"of 'x' is .*{what}"):
                local.map(takes, {"x": [{"inner": value}]})


def test_stream_that_yields_no_value_ends_its_run_with_what_to_do(local):
    run = local.map(takes, ({"x": x} for x in [1, dask.delayed(2)]))
    assert run.join(20)
    assert "compute it first" in str(run.error)
    assert run.progress.done == 1


@pytest.mark.parametrize(
    "sweep",
    [
        dask.delayed({"x": [1]}),
        dask.bag.from_sequence([{"x": 1}]),
        dask.array.ones(3),
        {"x": dask.array.ones(3)},
        {"x": dask.delayed([1, 2])},
        {"x": dask.bag.from_sequence([1])},
    ],
    ids=repr,
)
def test_sweep_that_is_not_computed_is_refused(local, sweep):
    with pytest.raises(InvalidSweepError, match="compute it first"):
        local.map(takes, sweep)


def test_frame_of_dask_is_refused(local):
    frames = pytest.importorskip("dask.dataframe")
    frame = frames.from_pandas(pd.DataFrame({"x": [1, 2]}), npartitions=1)
    for sweep in (frame, {"x": frame["x"]}):
        with pytest.raises(InvalidSweepError, match="compute it first"):
            local.map(takes, sweep)


def test_query_of_polars_is_refused(local):
    polars = pytest.importorskip("polars")
    with pytest.raises(InvalidSweepError, match=r"collect\(\)"):
        local.map(takes, polars.LazyFrame({"x": [1]}))


def test_outcome_of_an_electron_is_to_be_waited_for(local):
    first = local.send(takes, {"x": 1})
    with pytest.raises(InvalidSweepError, match=r"\.result\(\)\.value\(\)"):
        local.map(takes, {"x": [first]})


@pytest.mark.dask
def test_future_of_dask_is_to_be_gathered(cluster, local):
    with Client(cluster) as client:
        future = client.submit(sum, [1, 2])
        with pytest.raises(InvalidSweepError, match=r"client\.gather"):
            local.map(takes, {"x": [future]})


def test_whatever_is_a_value_is_taken(local):
    values = [1, "a", [1, 2], {"a": [1]}, (1,), np.ones(3), io.BytesIO(b"x"), io.StringIO("x")]
    values += [range(3), {1}, object, len, AnswersToAnything(), pd.Series([1]), None, b"x"]
    run = local.map(takes, {"x": values}).wait(20)
    assert run.to_frame()["result"].tolist() == [type(value).__name__ for value in values]


def test_atoms_that_send_are_refused_what_is_no_value():
    @atom(id="tests.sends_lazy")
    def sends(x, *, context):
        from atomizer_dask import Electron

        context.conductor.send(Electron("tests.takes", {"x": dask.delayed(1)}))

    with Atomizer(MemoryConductor(1), sends, takes) as atomizer:
        error = atomizer.send(sends, {"x": 1}).result(20).error
    assert "compute it first" in str(error)


class Unread(np.ndarray):
    """An array whose values are not looked at one by one."""

    def __iter__(self):
        raise AssertionError("its values were looked at")


@pytest.mark.parametrize("dtype", [float, int, bool, "float32", "complex", "M8[ns]", "U1"])
def test_columns_of_a_dtype_are_not_looked_at_value_by_value(dtype):
    check_values("x", np.zeros(3, dtype).view(Unread))
    with pytest.raises(AssertionError):
        check_values("x", np.zeros(3, object).view(Unread))
