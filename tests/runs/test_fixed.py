"""Values that are the same for all electrons: fixed ones, and axes of one large array."""

import copy
import functools
import json
import resource
import sys
import threading
import time

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from atomizer_dask import (
    Atom,
    Atomizer,
    InvalidPayloadError,
    InvalidSweepError,
    MemoryConductor,
    RegistrationError,
    Run,
    StoreChangedError,
    UnpicklableError,
    atom,
    grid,
    zipped,
)
from atomizer_dask.sweeps.columns import bytes_within

SECONDS = 60
TABLE = np.arange(300_000.0).reshape(3, -1)  # 2.4 MB
SMALL = np.arange(3.0)


@atom(id="tests.looked.up")
def looked_up(i, table, factor=1):
    return float(table.flat[i]) * factor


@atom(id="tests.vector.looked.up", vectorized=True)
def looked_up_at_once(i, table):
    return table.ravel()[i]


@atom(id="tests.with.context")
def with_context(i, table, *, context):
    return table[0] + context.attempt + i


@atom(id="tests.written.to")
def written_to(i, table):
    table[0] = i


class Remembering(Atom):
    def process(self, context, conductor, electron):
        return 1


@pytest.mark.parametrize("table", [TABLE, SMALL, TABLE.T], ids=["large", "small", "transposed"])
def test_fixed_values_are_given_to_all_electrons(atomizer, table):
    run = atomizer.map(looked_up, grid(i=range(3)), fixed={"table": table, "factor": 2})
    frame = run.wait(SECONDS).to_frame()
    assert list(frame) == ["i", "result"]
    assert frame["result"].tolist() == [2 * each for each in table.flat[:3]]
    assert (run.fixed["table"] == table).all()
    assert run.fixed["factor"] == 2
    described = {"table": frame.attrs["fixed"]["table"], "factor": 2}
    assert "float64" in described["table"]
    assert frame.attrs["fixed"] == run.provenance["fixed"] == described
    json.dumps(run.provenance)
    assert run.verify(2)["different"].tolist() == [0]
    assert run.replay(f"{run.id}-2") == 2 * table.flat[2]


def test_partial_means_the_same(atomizer):
    for given in (
        functools.partial(looked_up, table=TABLE),
        functools.partial(functools.partial(looked_up.function, factor=1), table=TABLE),
    ):
        run = atomizer.map(given, grid(i=range(3))).wait(SECONDS)
        assert run.to_frame()["result"].tolist() == [0.0, 1.0, 2.0]
        assert (run.fixed["table"] == TABLE).all()
    by_position = functools.partial(with_context, 5)
    frame = atomizer.map(by_position, zipped(table=[SMALL])).wait(SECONDS).to_frame()
    assert frame["result"].tolist() == [6.0]


def test_vectorised_atoms_and_contexts_and_children_of_processes(atomizer):
    fixed = {"table": TABLE}
    frame = atomizer.map(looked_up_at_once, grid(i=range(5)), fixed=fixed).wait(SECONDS).to_frame()
    assert frame["result"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    run = atomizer.map(with_context, grid(i=range(3)), fixed={"table": SMALL}, timeout=30)
    assert run.wait(SECONDS).to_frame()["result"].tolist() == [1.0, 2.0, 3.0]
    run = atomizer.map(looked_up, grid(i=range(3)), fixed=fixed, timeout=30)
    assert run.wait(SECONDS).to_frame()["result"].tolist() == [0.0, 1.0, 2.0]


def test_sent_electrons_have_them_too(atomizer):
    sent = [atomizer.send(looked_up, {"i": i}, fixed={"table": TABLE}) for i in range(5)]
    assert [future.result(SECONDS).value() for future in sent] == [0.0, 1.0, 2.0, 3.0, 4.0]
    changed = TABLE.copy()
    one = atomizer.send(looked_up, {"i": 0}, fixed={"table": changed}).result(SECONDS)
    changed[0, 0] = 7.0
    other = atomizer.send(looked_up, {"i": 0}, fixed={"table": changed}).result(SECONDS)
    assert [one.value(), other.value()] == [0.0, 7.0]


@pytest.mark.parametrize(
    ("table", "way"),
    [
        *((table, way) for table in (TABLE, SMALL) for way in ("fixed", "partial", "child")),
        (TABLE, "axis"),  # a small value of an axis is a copy for each electron
    ],
)
def test_array_that_all_share_is_read_only(atomizer, table, way):
    before = table.copy()
    given, sweep, options = written_to, grid(i=range(1, 4)), {}
    if way == "partial":
        given = functools.partial(written_to, table=table)
    elif way == "axis":
        sweep = grid(i=range(1, 4), table=[table])
    else:
        options["fixed"] = {"table": table}
    if way == "child":
        options["timeout"] = 30
    run = atomizer.map(given, sweep, **options).wait(SECONDS)
    assert run.progress.failed == 3
    assert set(run.errors["message"]) == {"assignment destination is read-only"}
    assert (table == before).all()
    assert table.flags.writeable


def test_axis_of_one_large_array_is_one_object_in_the_frame(atomizer):
    for sweep in (grid(i=range(50), table=[TABLE]), grid(table=[TABLE], i=range(50))):
        frame = atomizer.map(looked_up, sweep).wait(SECONDS).to_frame()
        assert list(frame) == [*sweep.names, "result"]
        assert frame["result"].tolist() == [float(i) for i in range(50)]
        assert len({id(table) for table in frame["table"]}) == 1
        assert (frame["table"][0] == TABLE).all()
    run = atomizer.map(looked_up, grid(i=range(3), table=[TABLE]), timeout=30).wait(SECONDS)
    assert run.replay(f"{run.id}-2") == 2.0
    assert run.verify(2)["different"].tolist() == [0]


def test_failed_electrons_of_such_an_axis_are_tried_again(atomizer):
    run = atomizer.map(looked_up, grid(i=[0, 10**9], table=[TABLE])).wait(SECONDS)
    assert run.progress.failed == 1
    assert run.retry().wait(SECONDS).progress.failed == 1
    assert not [event for event in run.events if "not what it was" in event.message]


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"tabel": 1}, r"unknown 'tabel' \(did you mean 'table'\?\)"),
        ({"i": 1}, "'i' is fixed, with a value for all electrons"),
        ([1], r"fixed must be a mapping of the atom's parameters to values, got \[1\]"),
        ({1: 2}, "fixed must be a mapping"),
    ],
)
def test_bad_fixed_values_are_an_error_at_once(local, fixed, message):
    for call in (local.map, local.send):
        with pytest.raises((InvalidPayloadError, TypeError), match=message):
            call(looked_up, {"i": [1]}, fixed=fixed)


def test_context_and_atoms_in_class_form_cannot_be_fixed(local):
    with pytest.raises(InvalidPayloadError, match=r"'context' of .* is filled in"):
        local.map(with_context, grid(i=[1]), fixed={"context": 1})
    with pytest.raises(InvalidPayloadError, match="attributes of an instance"):
        local.map(Remembering, grid(i=[1]), fixed={"table": 1})
    with pytest.raises(RegistrationError, match="no atom 'unknown' is registered"):
        local.send("unknown", {"i": 1}, fixed={"table": 1})


@pytest.mark.dask
def test_what_cannot_travel_is_named(dask):
    with (
        Atomizer(dask) as atomizer,
        pytest.raises(UnpicklableError, match=r"the fixed value 'table' \(lock\)"),
    ):
        atomizer.map(looked_up, grid(i=[1]), fixed={"table": threading.Lock()})


def test_store_has_fixed_values_once_and_goes_on_with_them(atomizer, tmp_path):
    store, fixed = tmp_path / "store", {"table": TABLE, "factor": 3}
    atomizer.map(looked_up, grid(i=range(200)), fixed=fixed, store=store).wait(SECONDS)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert TABLE.nbytes < size < 1.2 * TABLE.nbytes
    run = atomizer.map(looked_up, grid(i=range(300)), fixed=fixed, store=store).wait(SECONDS)
    assert run.to_frame()["result"].tolist() == [3.0 * i for i in range(300)]
    atomizer.register(looked_up)
    attached = atomizer.attach(store).wait(SECONDS)
    assert attached.fixed["factor"] == 3
    assert (attached.fixed["table"] == TABLE).all()
    opened = Run.open(store)
    assert opened.fixed["factor"] == 3
    assert opened.to_frame().attrs["fixed"] == opened.provenance["fixed"]
    with pytest.raises(StoreChangedError, match=r"tests.looked.up \(fixed factor\): 3 -> 4"):
        atomizer.map(looked_up, grid(i=[0]), fixed={**fixed, "factor": 4}, store=store)


def test_fixed_values_in_a_pickle_of_somebody_else_are_not_read(local, tmp_path):
    store = tmp_path / "store"
    with Atomizer(MemoryConductor(2), looked_up) as atomizer:
        atomizer.map(looked_up, grid(i=[1]), fixed={"table": TABLE}, store=store).wait(SECONDS)
        manifest = json.loads((store / "run.json").read_text())
        manifest["atom"]["signature"] = "of somebody else"
        (store / "run.json").write_text(json.dumps(manifest))
        with pytest.raises(RegistrationError, match="fixed values of table, in a pickle"):
            atomizer.attach(store)
        run = atomizer.attach(store, allow_pickle=True).wait(SECONDS)
        assert (run.fixed["table"] == TABLE).all()


def test_axis_of_one_large_array_is_in_the_store_once(atomizer, tmp_path):
    store = tmp_path / "store"
    atomizer.map(looked_up, grid(i=range(200), table=[TABLE]), store=store).wait(SECONDS)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert TABLE.nbytes < size < 1.2 * TABLE.nbytes
    for count in (300, 300, 250):
        sweep = grid(i=range(count), table=[TABLE])
        run = atomizer.map(looked_up, sweep, store=store).wait(SECONDS)
        assert run.to_frame()["result"].tolist() == [float(i) for i in range(count)]
    atomizer.register(looked_up)
    other = atomizer.map(looked_up, grid(i=range(3), table=[-TABLE]), store=store).wait(SECONDS)
    assert other.to_frame()["result"].tolist() == [0.0, -1.0, -2.0]
    assert len(Run.open(store).to_frame()) == 3
    attached = atomizer.attach(store).wait(SECONDS)
    assert attached.to_frame()["result"].tolist() == [0.0, -1.0, -2.0]


def test_memory_does_not_grow_with_electrons(tmp_path):
    table = np.ones(10_000_000)  # 80 MB
    with Atomizer(MemoryConductor(2), looked_up) as atomizer:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        store = tmp_path / "store"
        for count in (100, 200):
            sweep = grid(i=range(count), table=[table])
            run = atomizer.map(looked_up, sweep, store=store).wait(SECONDS)
            assert len(run.to_frame()) == count
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 10 * table.nbytes


def test_explorer_has_no_control_for_them(local):
    explorer = local.explore(looked_up, fixed={"table": TABLE}, i=(0, 5)).wait(SECONDS)
    assert list(explorer.controls) == ["i", "factor"]
    assert explorer.result == TABLE.flat[explorer.controls["i"].value]


def test_parameter_that_is_called_fixed_has_a_control(local):
    @atom(id="tests.fixed.parameter")
    def with_fixed(fixed=3):
        return fixed

    assert local.explore(with_fixed, fixed=(1, 5)).wait(SECONDS).result == 3


def test_frames_in_fixed_values_are_shared(atomizer):
    @atom(id="tests.of.frame")
    def of_frame(i, frame):
        return float(frame["a"].iloc[i])

    frame = pd.DataFrame({"a": np.arange(200_000.0)})
    run = atomizer.map(of_frame, grid(i=range(3)), fixed={"frame": frame}).wait(SECONDS)
    assert run.to_frame()["result"].tolist() == [0.0, 1.0, 2.0]


def test_array_that_changes_after_map_is_what_it_was_then(atomizer):
    table = np.zeros(300_000)
    runs = []
    for number in range(3):
        table[:] = number
        runs.append(atomizer.map(slowly, grid(i=range(4)), fixed={"table": table}))
    table[:] = -1
    for number, run in enumerate(runs):
        assert run.wait(SECONDS).to_frame()["result"].tolist() == [number] * 4
        assert run.replay(f"{run.id}-1") == number
    sent = []
    for number in range(3):
        table[:] = number
        sent.append(atomizer.send(slowly, {"i": 0}, fixed={"table": table}))
    table[:] = -1
    assert [future.result(SECONDS).value() for future in sent] == [0, 1, 2]


@atom(id="tests.slowly")
def slowly(i, table):
    time.sleep(0.05)
    return float(table[0])


def test_threads_that_send_with_their_own_values_get_these(local):
    @atom(id="tests.given")
    def given(i, k):
        return k

    wrong = []

    def send(k):
        sent = [local.send(given, {"i": i}, fixed={"k": k}) for i in range(500)]
        wrong.extend(f for f in sent if f.result(SECONDS).value() != k)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=send, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_output_with_the_name_of_a_constant_is_never_lost(atomizer, tmp_path):
    @atom(id="tests.named.alike")
    def named_alike(i, table):
        return {"table": float(table.flat[i]), "x": i}

    store = tmp_path / "store"
    for table, expected in ((TABLE, 0.0), (TABLE + 1, 1.0), (TABLE, 0.0)):
        run = atomizer.map(named_alike, grid(i=range(4), table=[table]), store=store)
        frame = run.wait(SECONDS).to_frame()
        assert frame["result_table"].tolist() == [expected + i for i in range(4)]
        opened = Run.open(store).to_frame()
        assert opened["result_table"].tolist() == frame["result_table"].tolist()


def test_masked_arrays_that_differ_in_their_masks_alone_are_different(local, tmp_path):
    @atom(id="tests.filled")
    def filled(i, table):
        return float(np.ma.filled(table, -1)[i])

    store = tmp_path / "store"
    for masked, expected in ((0, [-1.0, 1.0, 2.0]), (1, [0.0, -1.0, 2.0])):
        table = np.ma.masked_array(np.arange(200_000.0), np.arange(200_000) == masked)
        sweep = grid(i=range(3), table=[table])
        run = local.map(filled, sweep, store=store, allow_pickle=True).wait(SECONDS)
        assert run.to_frame()["result"].tolist() == expected


def test_store_of_a_constant_is_extended_by_other_kinds_of_sweeps(local, tmp_path):
    store = tmp_path / "store"
    for sweep in (
        grid(i=range(9), table=[TABLE]),
        zipped(i=[1, 2], table=[TABLE, TABLE]),
        grid(i=range(9), table=[TABLE]),
        zipped(i=[1, 20], table=[TABLE, -TABLE]),
    ):
        run = local.map(looked_up, sweep, store=store).wait(SECONDS)
    assert run.to_frame()["result"].tolist() == [1.0, -20.0]
    texts = np.array(["a", "b"] * 100_000, dtype=object)
    picked = atom(id="tests.picked")(lambda i, table: table[i])
    for count in (3, 4):
        run = local.map(
            picked, grid(i=range(count), table=[texts]), store=tmp_path / "texts", allow_pickle=True
        ).wait(SECONDS)
        assert run.to_frame()["result"].tolist() == ["a", "b", "a", "b"][:count]


def test_store_says_which_fixed_values_it_has_now(local, tmp_path):
    plain = atom(id="tests.plain")(lambda i, k=0: k)
    for number, fixed in enumerate(({"k": 1}, {"k": 2}, None, {"k": 3})):
        store = tmp_path / "store"
        run = local.map(plain, grid(i=[number]), fixed=fixed, store=store, accept_changes=True)
        run.wait(SECONDS)
        opened = Run.open(store)
        assert dict(opened.fixed) == opened.provenance["fixed"] == (fixed or {})
        local.register(plain)
        assert local.attach(store).wait(SECONDS).fixed == (fixed or {})
    partly = functools.partial(looked_up, factor=3)
    local.register(partly)
    local.map(partly, grid(i=[1]), fixed={"table": TABLE}, store=tmp_path / "two").wait(SECONDS)
    assert local.attach(tmp_path / "two").wait(SECONDS).fixed.keys() == {"factor", "table"}


def test_partials_that_mean_nothing_are_refused(local):
    class Scaled(Atom):
        def process(self, context, conductor, electron):
            return 1

    def by_name(a, *, b):
        return a

    for partial, message in (
        (functools.partial(Scaled, 3), "only the parameters of a function can be fixed"),
        (functools.partial(by_name, 1, 2), "gives 2 values by position"),
        (functools.partial(lambda context, x: x, 5), "gives 1 values by position"),
    ):
        with pytest.raises(RegistrationError, match=message):
            local.map(partial, grid(b=[1]))


def test_folder_that_is_set_in_this_process_is_that_of_children(local, tmp_path, configure):
    configure({"large-values.folder": str(tmp_path)})
    run = local.map(looked_up, grid(i=range(3)), fixed={"table": TABLE + 5}, timeout=30)
    assert run.wait(SECONDS).to_frame()["result"].tolist() == [5.0, 6.0, 7.0]


def cell(number):
    cells = [np.zeros(5000) for _ in range(3)]
    cells[1][2500] = number
    return pd.DataFrame({"a": cells})


def with_unit(unit):
    frame = pd.DataFrame({"a": [1]})
    frame.attrs["unit"] = unit
    return frame


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (cell(1.0), cell(7.0)),
        (pd.DataFrame({"a": [1, "x"]}), pd.DataFrame({"a": ["1", "x"]})),
        (pd.DataFrame({"a": [1, True]}, dtype=object), pd.DataFrame({"a": [1, 1]}, dtype=object)),
        (pd.DataFrame({"a": [[1.0]]}), pd.DataFrame({"a": [[np.float64(1.0)]]})),
        (pd.Series([1, "x"]), pd.Series(["1", "x"])),
        (pd.Index([1, "x"]), pd.Index(["1", "x"])),
        (pd.DataFrame({"a": [1]}, index=[(1, "x")]), pd.DataFrame({"a": [1]}, index=[(1, "y")])),
        (with_unit("m"), with_unit("km")),
        (pd.Series(["a"], dtype="category"), pd.Series(pd.Categorical(["a"], ["a", "b"]))),
        (
            pd.Series(pd.Categorical(["a"], ["a", "b"])),
            pd.Series(pd.Categorical(["a"], ["a", "b"], ordered=True)),
        ),
        (pd.Series([0.0]), pd.Series([-0.0])),
        (pd.Series([0], dtype="Sparse[int]"), pd.Series([1], dtype="Sparse[int]")),
        (pd.Series(pd.period_range("2020", periods=2, freq="D")),) * 2,
    ],
    ids=str,
)
def test_a_changed_table_is_another_atom_for_a_store(local, tmp_path, one, other):
    def kind(i, table):
        return type(table).__name__

    local.map(kind, grid(i=[1]), fixed={"table": one}, store=tmp_path / "s").wait(SECONDS)
    same = copy.deepcopy(one)
    local.map(kind, grid(i=[1, 2]), fixed={"table": same}, store=tmp_path / "s").wait(SECONDS)
    if one is not other:
        with pytest.raises(StoreChangedError):
            local.map(kind, grid(i=[1]), fixed={"table": other}, store=tmp_path / "s")


def test_partials_of_what_must_be_computed_first_are_refused(local, tmp_path):
    path = tmp_path / "file"
    path.write_text("text")
    with path.open() as file:
        for value, message in ((dask.delayed(1), "graph"), (file, "give its path")):
            with pytest.raises(InvalidSweepError, match=message):
                local.map(functools.partial(double_of, table=value), grid(i=[1]))


def double_of(i, table):
    return 2 * i


def test_a_mask_that_changed_between_two_sends_counts(local):
    def total(i, table):
        return float(table.sum())

    table = np.ma.masked_array(np.ones(10), mask=np.zeros(10, bool))
    assert local.send(total, {"i": 0}, fixed={"table": table}).result(SECONDS).value() == 10
    table[0] = np.ma.masked
    assert local.send(total, {"i": 0}, fixed={"table": table}).result(SECONDS).value() == 9


MIB = 2**20
LARGE = {
    "masked": np.ma.masked_less(np.arange(MIB / 4), 3),
    "record": np.rec.array(np.zeros(MIB // 4, dtype=[("a", "f8")])),
    "objects": np.array([np.zeros(MIB // 4), None], dtype=object),
    "frame": pd.DataFrame({"a": np.zeros(MIB // 4)}),
    "series": pd.Series(np.zeros(MIB // 4)),
    "arrow": pa.table({"a": np.zeros(MIB // 4)}),
    "text": "e" * (2 * MIB),
    "bytes": bytes(2 * MIB),
    "bytearray": bytearray(2 * MIB),
    "list": [0.0] * (MIB // 4),
    "dict": {"a": np.zeros(MIB // 4)},
}


@atom(id="tests.change")
def change(i, t):
    """Change an input as one can, and return how it was."""
    before = brief_of(t)
    if isinstance(t, list):
        t.append(1)
    elif isinstance(t, bytearray):
        t[0] = 7
    elif isinstance(t, dict):
        t["a"] = None
    elif isinstance(t, pd.DataFrame):
        t["b"] = 1
    elif isinstance(t, np.ndarray) and t.flags.writeable:
        t[0] = t[1]
    return before


def brief_of(t):
    if isinstance(t, pa.Table):
        part = t.column_names
    else:
        part = list(t) if isinstance(t, dict | pd.DataFrame) else t[:1]
    return f"{type(t).__name__} {len(t)} {part!r}"[:80]


@pytest.mark.parametrize("isolation", ["", "process"])
@pytest.mark.parametrize("kind", LARGE)
def test_axis_of_one_large_value_is_an_input_of_which_each_electron_has_its_own(
    atomizer, kind, isolation
):
    value = LARGE[kind]
    before = brief_of(value)
    changing = atom(id="tests.change", isolation=isolation)(change.function)
    run = atomizer.map(changing, grid(i=range(20), t=[value])).wait(SECONDS)
    assert run.sweep.constants(MIB).keys() == {"t"}
    frame = run.to_frame()
    assert set(frame["result"]) == {before}
    assert len({id(each) for each in frame["t"]}) == 1
    assert brief_of(value) == before


@pytest.mark.parametrize("kind", ["text", "bytes", "list"])
def test_axis_of_one_large_value_is_in_the_store_once_and_can_be_extended(local, tmp_path, kind):
    def number(i, t):
        return i + len(t)

    value, store = LARGE[kind], tmp_path / "store"
    local.map(number, grid(i=range(3), t=[value]), store=store).wait(SECONDS)
    run = local.map(number, grid(i=range(6), t=[value]), store=store).wait(SECONDS)
    assert run.to_frame()["result"].tolist() == [i + len(value) for i in range(6)]
    size = sum(path.stat().st_size for path in store.rglob("*.parquet"))
    assert size < 2.5 * bytes_within(value)
    assert Run.open(store).to_frame()["t"].iloc[5] == value
