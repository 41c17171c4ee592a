"""What is said of workers that have other things installed, and what becomes of electrons."""

import asyncio
import logging
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import polars
import pytest

from atomizer_dask import Atomizer, ConductorError, DaskConductor, atom, grid
from atomizer_dask.atoms.pickling import dump_atom
from atomizer_dask.atoms.required_modules import required_modules_of
from atomizer_dask.conductors.dask.cluster.compatibility import Compatibility
from atomizer_dask.conductors.dask.cluster.environment import (
    Difference,
    Environment,
    Group,
    installed,
    table,
)
from atomizer_dask.conductors.dask.placement import Placement
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import METADATA, NO_WORKER

SECONDS = 120  # to start processes on a machine that does much else

pytestmark = pytest.mark.timeout(3 * SECONDS)

HIDING = """
import importlib.metadata, sys

HIDDEN = {hidden!r}

class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def version(name, found=importlib.metadata.version):
    if name in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

sys.meta_path.insert(0, Hider())
importlib.metadata.version = version
"""


@contextmanager
def worker_without(hidden, address, folder):
    """A worker in whose environment packages seem not to be installed."""
    preload = folder / "hiding.py"
    preload.write_text(HIDING.format(hidden=hidden))
    # Not as a command of dask, which imports this package for a command of its own.
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads=1"]
    worker = subprocess.Popen(
        [
            *command,
            "--no-nanny",
            "--no-dashboard",
            "--preload",
            preload,
            "--local-directory",
            folder,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        worker.kill()
        worker.wait()


def having(monkeypatch, **versions):
    """Have this process seem to have other versions of what is installed."""
    here = Environment.here()
    other = replace(here, versions={**here.versions, **versions})
    monkeypatch.setattr(Environment, "here", lambda: other)
    return here.versions


@atom(id="tests.increment")
def increment(x):
    return x + 1


@atom(id="tests.frames")
def frames(x):
    return polars.DataFrame({"x": [x]}).height


def table_among(events):
    """Return the first warning that lists workers."""
    for event in events:
        if event.level == "warning" and "environment" in event.message:
            return event.message
    raise AssertionError("the stream ended without a table")


# -- which modules an atom needs ------------------------------------------------------------------


def needs(function):
    definition = atom(function)
    return required_modules_of(definition, dump_atom(definition))


def test_several_may_look_at_an_environment_at_once(monkeypatch):
    def invalidate_caches():
        """Meet another thread that does the same, which CPython does not allow for."""
        raise KeyError("/usr/lib/python311.zip")

    monkeypatch.setattr("importlib.invalidate_caches", invalidate_caches)
    assert installed(["pytest"], ["polars", "there_is_no_such_module"])["missing"] == [
        "there_is_no_such_module"
    ]


def test_modules_that_an_atom_refers_to_are_needed():
    import yaml as renamed

    def uses(x):
        return renamed.safe_load(polars.__name__), logging.getLogger()

    assert {"yaml", "polars"} <= needs(uses).certain
    assert "logging" not in needs(uses).certain


def test_modules_imported_within_functions_are_needed():
    def called(x):
        import sklearn.base

        return sklearn.base

    def uses(x):
        return called(x)

    assert "sklearn" in needs(uses).certain


def test_module_that_an_atom_is_prepared_to_do_without_is_not_needed():
    def uses(x):
        try:
            import sklearn
        except ImportError:
            sklearn = None
        return sklearn

    assert "sklearn" in needs(uses).perhaps
    assert "sklearn" not in needs(uses).certain


def test_module_that_is_missing_here_too_is_not_asked_for():
    def uses(x):
        import only_on_the_nodes  # type: ignore[import-not-found]

        return only_on_the_nodes

    assert "only_on_the_nodes" not in needs(uses).certain | needs(uses).perhaps


# -- the table ------------------------------------------------------------------------------------


def test_table_groups_equal_workers_and_says_what_to_do():
    python, numpy = (
        Difference("Python", "3.12", "3.11", True),
        Difference("numpy", "2.1", "2.3.1", False),
    )
    groups = [
        Group((python, numpy), ("tcp://a:1", "tcp://a:2", "tcp://b:1"), ("a", "b")),
        Group((numpy,), ("tcp://c:1",), ("c",)),
    ]
    assert table(groups, 6).splitlines()[:6] == [
        "3 workers of 6 on a, b:",
        "  Python  3.12  here 3.11  (cannot work)",
        "  numpy   2.1   here 2.3.1",
        "1 worker of 6 on c:",
        "  numpy   2.1   here 2.3.1",
        f"Code that is pickled by one Python cannot be run by another: start the workers with the "
        f"Python of this process, {sys.executable} (dask-jobqueue: python=...), or with another "
        f"Python {sys.version_info.major}.{sys.version_info.minor}.",
    ]


def test_table_of_many_hosts_stays_short():
    hosts = tuple(f"node{n}" for n in range(200))
    group = Group((Difference("numpy", "2.1", "2.3", False),), hosts, hosts)
    first = table([group], 300).splitlines()[0]
    assert first.startswith("200 workers of 300 on node0, node1,")
    assert first.endswith("and 194 more hosts:")


# -- at connecting --------------------------------------------------------------------------------


@pytest.mark.dask
@pytest.mark.parametrize("name", ["Python", "atomizer_dask"])
def test_workers_that_cannot_work_are_told_of_before_the_first_electron(cluster, monkeypatch, name):
    there = having(monkeypatch, **{name: "0.0.other"})[name]
    with pytest.raises(
        ConductorError, match=rf"2 workers of 2 on (.|\n)*{name} +{there}"
    ) as caught:
        DaskConductor(cluster)
    assert "here 0.0.other  (cannot work)" in str(caught.value)


@pytest.mark.dask
def test_other_versions_are_one_warning(cluster, monkeypatch, caplog):
    there = having(monkeypatch, numpy="1.0", pandas="1.5")
    atomizer = Atomizer(DaskConductor(cluster), increment)
    events = atomizer.events()
    with atomizer:
        assert atomizer.send(increment, {"x": 1}).result(SECONDS).value() == 2
        atomizer.register(atom(id="tests.other")(lambda x: x))
    told = [event for event in [*events] if "environment" in event.message]
    assert [event.level for event in told] == ["warning"]
    assert f"numpy   {there['numpy']}" in told[0].message
    assert f"pandas  {there['pandas']}" in told[0].message
    logged = [one for one in caplog.records if "environment" in one.getMessage()]
    assert [one.levelname for one in logged] == ["WARNING"]


@pytest.mark.dask
def test_equal_environments_are_nothing_to_tell(cluster, caplog):
    atomizer = Atomizer(DaskConductor(cluster), increment)
    events = atomizer.events()
    with atomizer:
        atomizer.send(increment, {"x": 1}).result(SECONDS)
    assert not [event for event in [*events] if event.level == "warning"]
    assert not caplog.records


@pytest.mark.dask
def test_module_that_workers_lack_is_told_when_the_atom_is_registered(empty, tmp_path):
    with (
        worker_without(["polars"], empty.scheduler_address, tmp_path),
        DaskConductor(empty) as conductor,
        Atomizer(conductor) as atomizer,
    ):
        conductor.client.wait_for_workers(1, timeout=SECONDS)
        atomizer.register(increment)
        assert atomizer.send(increment, {"x": 1}).result(SECONDS).value() == 2
        with pytest.raises(ConductorError, match=r"module polars +missing +\(cannot work\)"):
            atomizer.register(frames)
        with pytest.raises(ConductorError, match=r"tests.frames imports them"):
            atomizer.map(frames, {"x": [1]})


# -- which workers a batch may go to --------------------------------------------------------------


class Metadata(dict):
    """A scheduler's, as far as it takes to know where a singleton lives."""

    async def get_metadata(self, keys, default):
        return self.get(tuple(keys), default)

    async def set_metadata(self, keys, value):
        self[tuple(keys)] = value


def chosen(unfit, *, version="1", home=None, stay=None, avoid=()):
    """Return which of the workers a, b and c a batch may go to, and whose state was lost."""
    scheduler, lost = Metadata(), []
    placement = Placement(
        SimpleNamespace(scheduler=scheduler),
        None,
        None,
        lambda batch, worker: lost.append(worker),
    )
    placement.workers = {*"abc"}
    placement.fitness = SimpleNamespace(unfit_for=lambda version: frozenset(unfit))
    batch = SimpleNamespace(
        version=version, terms=SimpleNamespace(min_seconds=0, worker=stay, excluded=tuple(avoid))
    )

    async def choose():
        if home is not None:
            await scheduler.set_metadata([METADATA, f"home:{version}"], home)
        return await placement.choose(batch, lambda: False)

    return asyncio.run(choose()), lost


@pytest.mark.parametrize(
    ("unfit", "terms", "those"),
    [
        ("", {}, set()),
        ("a", {}, {*"bc"}),
        ("abc", {}, {NO_WORKER}),
        ("ab", {"avoid": "c"}, {"c"}),
        ("a", {"avoid": "bc"}, {"b"}),
        ("abc", {"avoid": "c"}, {NO_WORKER}),
        ("", {"avoid": "c"}, {*"ab"}),
        ("a", {"stay": "b"}, {"b"}),
        ("a", {"stay": "gone"}, {*"bc"}),
        ("", {"stay": "gone"}, set()),
    ],
)
def test_another_attempt_is_kept_off_workers_that_cannot_work(unfit, terms, those):
    assert chosen(unfit, **terms) == (those, [])


@pytest.mark.parametrize("home", [None, "a", "b"])
def test_singleton_lives_where_it_can_work(home):
    assert chosen("ab", version="cluster:1", home=home) == ({"c"}, [])
    assert chosen("ab", version="cluster:1", home="gone") == ({"c"}, ["gone"])
    assert chosen("abc", version="cluster:1", home=home) == ({NO_WORKER}, [])


# -- workers that join later ----------------------------------------------------------------------


@pytest.mark.dask
@pytest.mark.parametrize(
    ("hidden", "are_sent_before"), [("atomizer_dask", False), ("polars", False), ("polars", True)]
)
def test_electrons_are_kept_off_workers_that_join_and_cannot_work(
    empty, tmp_path, hidden, are_sent_before
):
    with Atomizer(DaskConductor(empty), frames) as atomizer:
        events = atomizer.events()
        run = atomizer.map(frames, grid(x=range(50))) if are_sent_before else None
        with worker_without([hidden], empty.scheduler_address, tmp_path):
            found = table_among(events)
            assert "1 worker of 1" in found
            assert hidden in found
            run = run or atomizer.map(frames, grid(x=range(50)))
            assert run.state == "running", run.errors.to_string()
            empty.scale(1)
            assert run.wait(SECONDS).to_frame()["result"].tolist() == [1] * 50
            assert run.progress.failed == 0


@pytest.mark.dask
def test_worker_that_dies_before_it_could_be_looked_at_is_told_of(empty, tmp_path):
    with Atomizer(DaskConductor(empty), frames) as atomizer:
        events = atomizer.events()
        run = atomizer.map(frames, grid(x=range(50)))
        with worker_without(["atomizer_dask"], empty.scheduler_address, tmp_path):
            told = next(event for event in events if event.level == "warning")
        assert "where atomizer_dask is not installed" in told.message
        empty.scale(1)
        assert run.wait(SECONDS).to_frame()["result"].tolist() == [1] * 50


def test_workers_that_join_as_the_client_closes_are_looked_at_without_a_word():
    async def run(*_, **__):
        client.status, client.scheduler = "closed", None
        raise RuntimeError("ConnectionPool is closed")  # as Dask says it

    async def welcome_twice():
        fitness = Compatibility(client, "dask", told.append)
        await asyncio.gather(fitness.welcome({"tcp://a"}), fitness.welcome({"tcp://b"}))

    scheduler = SimpleNamespace(atomizer_broadcast=run)
    client, told = SimpleNamespace(status="running", scheduler=scheduler), []
    asyncio.run(welcome_twice())
    assert client.status == "closed"
    assert not told
