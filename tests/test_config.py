import os
import re
import subprocess
import sys
from pathlib import Path

import configuration_page
import dask.config
import jsonschema
import pytest
import yaml

import atomizer_dask
from atomizer_dask import Atomizer, ConfigurationError, MemoryConductor, atom
from atomizer_dask.conductors.batch_size import Sizing
from atomizer_dask.config import check, rules, sections, setting, target

HERE = Path(atomizer_dask.__file__).parent
DEFAULTS = yaml.safe_load((HERE / "atomizer.yaml").read_text())
SCHEMA = yaml.safe_load((HERE / "atomizer-schema.yaml").read_text())
KINDS = {"string", "integer", "number", "null"}


def in_a_process(code, tmp_path, text=None, **variables):
    """Run code with a configuration of its own, and return what it printed."""
    folder = tmp_path / "dask"
    folder.mkdir(exist_ok=True)
    if text is not None:
        (folder / "atomizer.yaml").write_text(text)
    ours = {n: v for n, v in os.environ.items() if not n.startswith("DASK_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**ours, "DASK_CONFIG": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PROBLEM = """
import atomizer_dask
try:
    atomizer_dask.Atomizer()
except atomizer_dask.ConfigurationError as error:
    print(error)
"""


def test_schema_is_one_and_the_defaults_obey_it():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(DEFAULTS, SCHEMA)


def test_schema_and_defaults_have_the_same_settings():
    listed = SCHEMA["properties"]["atomizer"]["properties"]
    assert {s: set(those["properties"]) for s, those in listed.items()} == {
        s: set(those) for s, those in DEFAULTS["atomizer"].items()
    }
    assert list(listed) == list(DEFAULTS["atomizer"])


def test_every_setting_is_described_and_has_types_that_are_checked():
    assert len(rules()) > 20
    for rule in rules().values():
        assert rule.description.endswith("."), rule.name
        assert rule.read, rule.name
        assert set(rule.types) <= KINDS, rule.name
        assert rule.form in ("", "duration", "byte-size"), rule.name
    assert all(text.endswith(".") for text in sections().values())


def test_schema_uses_no_word_that_is_not_checked():
    words = {
        word
        for section in SCHEMA["properties"]["atomizer"]["properties"].values()
        for own in section["properties"].values()
        for word in own
    }
    assert words <= {
        "type", "format", "enum", "minimum", "exclusiveMinimum", "maximum", "minLength",
        "description", "x-read"
    }  # fmt: skip


@pytest.mark.parametrize("name", rules())
def test_every_setting_is_read_somewhere(name):
    texts = [path.read_text() for path in HERE.rglob("*.py")]
    assert any(f'setting("{name}")' in text for text in texts)


def test_every_setting_that_is_read_exists():
    found = {
        name
        for path in HERE.rglob("*.py")
        for name in re.findall(r'\bsetting\("([^"]+)"\)', path.read_text())
    }
    assert found == set(rules())


def test_the_page_is_what_is_made_from_yaml_and_schema():
    assert configuration_page.PAGE.read_text() == configuration_page.page(), "make docs"


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("map.timeout", "2 minutes", 120.0),
        ("map.timeout", 3, 3.0),
        ("map.timeout", None, None),
        ("batches.largest", "64 KiB", 65536),
        ("batches.largest", 5e6, 5_000_000),
        ("batches.per-second", 50, 50.0),
        ("quarantine.culprits", 4.0, 4),
        ("amqp.queue", "atoms", "atoms"),
    ],
)
def test_a_setting_is_given_as_what_it_means(name, given, meant):
    with dask.config.set({f"atomizer.{name}": given}):
        check()
        assert setting(name) == meant
        assert type(setting(name)) is type(meant)


def test_underscores_are_as_good_as_hyphens():
    with dask.config.set({"atomizer.map.max_attempts": 5}):
        check()
        assert setting("map.max-attempts") == 5


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("map.timeout", "30 parsecs", "seconds, above 0, or a text such as '30s'"),
        ("map.timeout", 0, "seconds, above 0"),
        ("map.timeout", True, "seconds, above 0"),
        ("map.timeout", float("nan"), "seconds, above 0"),
        ("map.backoff", "-1s", "seconds, at least 0"),
        ("map.backoff", None, "seconds, at least 0"),
        ("map.on-failure", "retyr", "'fail' or 'retry' or 'requeue'"),
        ("map.max-attempts", 0, "a whole number, at least 1, or null"),
        ("map.max-attempts", 2.5, "a whole number, at least 1, or null"),
        ("batches.largest", "6 parsecs", "bytes, at least 1, or a text such as '64 KiB'"),
        ("batches.largest", "MiB", "bytes, at least 1"),
        ("batches.largest", "1e400", "bytes, at least 1"),
        ("batches.prefetch", float("inf"), "a number, above 0"),
        ("batches.prefetch", "2", "a number, above 0"),
        ("batches.shortest", [1], "seconds, above 0"),
        ("quarantine.memory-share", 1.5, "a number, above 0 and at most 1"),
        ("amqp.max-in-flight", 10**6, "a whole number, at least 1 and at most 65,535"),
        ("amqp.queue", 7, "a text; put it in quotes"),
        ("amqp.queue", "", "a text"),
    ],
)
def test_a_setting_that_makes_no_sense_is_told_with_what_was_expected(name, given, expected):
    with dask.config.set({f"atomizer.{name}": given}):
        for use in (check, lambda: setting(name)):
            with pytest.raises(ConfigurationError) as caught:
                use()
            assert f"atomizer.{name} is {given!r}, expected {expected}" in str(caught.value)
            assert "dask.config.set" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"atomizer.map.timout": 3}, "timout is no setting (did you mean atomizer.map.timeout?)"),
        ({"atomizer.bathces": {"shortest": 1}}, "did you mean atomizer.batches.shortest?"),
        ({"atomizer.map.prefetch": 3}, "did you mean atomizer.batches.prefetch?"),
        ({"atomizer.quite-something": 3}, "atomizer.quite-something is no setting; it comes"),
        ({"atomizer.panel": 3}, "atomizer.panel is 3, expected a section with some of refresh"),
        ({"atomizer.panel.refresh": {"seconds": 3}}, "panel.refresh.seconds is no setting"),
        ({"atomizer": 3}, "atomizer is 3, expected its sections: connection, "),
    ],
)  # fmt: skip
def test_what_is_no_setting_is_told_with_the_nearest_one(given, told):
    with dask.config.set(given), pytest.raises(ConfigurationError) as caught:
        Atomizer()
    assert told in str(caught.value)


def test_all_problems_are_told_at_once():
    given = {"atomizer.map.timeout": "soon", "atomizer.panel.refresh": 0}
    with dask.config.set(given), pytest.raises(ConfigurationError) as caught:
        check()
    assert "atomizer.map.timeout" in str(caught.value)
    assert "atomizer.panel.refresh" in str(caught.value)


@pytest.mark.parametrize("make", [Atomizer, MemoryConductor])
def test_it_is_checked_where_an_atomizer_or_a_conductor_is_made(make):
    with dask.config.set({"atomizer.map.timout": 3}), pytest.raises(ConfigurationError):
        make()
    make().close()


def test_an_import_does_not_fail_on_a_typo_and_the_first_use_names_the_file(tmp_path):
    told = in_a_process(PROBLEM, tmp_path, "atomizer:\n  map:\n    timout: 3s\n")
    assert "atomizer.map.timout is no setting (did you mean atomizer.map.timeout?)" in told
    assert f"it comes from {tmp_path}/dask/atomizer.yaml: correct it there" in told


def test_a_variable_of_the_environment_is_named(tmp_path):
    told = in_a_process(PROBLEM, tmp_path, DASK_ATOMIZER__BATCHES__PER_SECOND="fast")
    assert "atomizer.batches.per-second is 'fast', expected a number, above 0" in told
    assert "it comes from DASK_ATOMIZER__BATCHES__PER_SECOND in the environment" in told


def test_a_variable_that_sets_nothing_is_told(tmp_path):
    told = in_a_process(PROBLEM, tmp_path, DASK_ATOMIZER_MAP_TIMEOUT="3s")
    assert "DASK_ATOMIZER_MAP_TIMEOUT in the environment sets nothing" in told
    assert "DASK_ATOMIZER__MAP__TIMEOUT" in told


READ = "from atomizer_dask.config import check, setting; check(); print(setting({!r}))"


def test_files_and_the_environment_override_in_this_order(tmp_path):
    text = "atomizer:\n  map:\n    timeout: 3s\n    max-attempts: 7\n"
    both = {"DASK_ATOMIZER__MAP__TIMEOUT": "5s"}
    assert in_a_process(READ.format("map.timeout"), tmp_path, text, **both) == "5.0"
    assert in_a_process(READ.format("map.max-attempts"), tmp_path, text, **both) == "7"
    assert in_a_process(READ.format("map.backoff"), tmp_path, text, **both) == "0.0"


def test_a_section_of_which_all_is_commented_out_has_its_defaults(tmp_path):
    assert in_a_process(READ.format("map.on-failure"), tmp_path, "atomizer:\n  map:\n") == "fail"
    assert in_a_process(READ.format("map.on-failure"), tmp_path, "atomizer:\n") == "fail"


def test_the_defaults_are_put_where_users_look_commented_out(tmp_path):
    in_a_process("import atomizer_dask", tmp_path)
    text = (tmp_path / "dask" / "atomizer.yaml").read_text()
    assert yaml.safe_load(text) is None
    assert "#     timeout: null" in text
    in_a_process("import atomizer_dask", tmp_path, "atomizer:\n  map:\n    timeout: 3s\n")
    assert "3s" in (tmp_path / "dask" / "atomizer.yaml").read_text()  # never written over


def test_a_target_is_an_address_or_a_scheduler_file(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/ada")
    for given, meant in {
        None: None,
        "tcp://head:8786": "tcp://head:8786",
        "head:8786": "head:8786",
        "scheduler.json": Path("scheduler.json"),
        "~/scheduler": Path.home() / "scheduler",
        "$SCRATCH/scheduler.json": Path("/scratch/ada/scheduler.json"),
    }.items():
        with dask.config.set({"atomizer.connection.target": given}):
            assert target() == meant


# -- what is made afterwards --------------------------------------------------------------------


@atom
def failing(x, *, context):
    raise ValueError(context.attempt)


@atom
def whose_process(x):
    return os.getpid()


def test_a_run_has_what_is_configured_when_it_is_made(local, configure):
    local.register(failing)
    configure({"map.on-failure": "retry", "map.max-attempts": 4, "map.backoff": "1ms"})
    run = local.map(failing, {"x": [1, 2]}).wait(60)
    assert run.errors["attempts"].tolist() == [4, 4]
    run = local.map(failing, {"x": [1]}, on_failure="fail", max_attempts=1).wait(60)
    assert run.errors["attempts"].tolist() == [1]


def test_a_configured_timeout_counts_unless_another_is_given(local, configure):
    local.register(whose_process)
    configure({"map.timeout": "60s"})
    assert local.map(whose_process, {"x": [1]}).wait(60).to_frame()["result"][0] != os.getpid()
    run = local.map(whose_process, {"x": [1]}, timeout=float("inf")).wait(60)
    assert run.to_frame()["result"][0] == os.getpid()


def test_batches_follow_what_is_configured(configure):
    configure({"batches.shortest": "2s", "batches.first": 1, "batches.largest": "1 kB"})
    sizing = Sizing(row_bytes=100)
    assert sizing.next(remaining=10**6, threads=2).seconds == 1
    sizing.learn(electrons=1000, seconds=1.0)
    configure({"batches.shortest": "9s"})
    size = sizing.next(remaining=10**6, threads=2)
    assert (size.electrons, size.seconds) == (10, 2)


def test_streams_of_events_keep_as_many_as_configured(local, configure):
    configure({"events.buffer": 2})
    events = local.events()
    for message in "abc":
        local.emit(atomizer_dask.Event(message))
    assert (len(events), events.dropped) == (2, 1)
