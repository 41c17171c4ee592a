import io
import json
import logging
import warnings

import pytest

from atomizer_dask.cli.node_log import NodeLog, logging_to_stderr
from atomizer_dask.conductors.status import QueueStatus
from atomizer_dask.errors import AtomizerError
from atomizer_dask.events import Event


@pytest.fixture
def log():
    return NodeLog(io.StringIO())


def lines(log):
    return [json.loads(line) for line in log._file.getvalue().splitlines()]


def test_a_line_has_a_time_a_level_an_event_and_no_empty_facts(log):
    log.line("serving", atom="add", electron="", threads=0, other=None)
    (line,) = lines(log)
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "event": "serving", "atom": "add", "threads": 0}


def test_what_has_no_json_form_is_told_as_text(log):
    log.line("odd", value={1}, text="two\nlines and \ud800")
    assert [line["value"] for line in lines(log)] == ["{1}"]


def test_events_of_atoms_are_left_out_unless_they_warn(log):
    log.event(Event("tossed", atom_id="montecarlopi.MonteCarlo"))
    log.event(Event("joined", conductor_id="dask"))
    log.event(Event("hot", atom_id="oven", level="warning"))
    assert [line["event"] for line in lines(log)] == ["joined", "hot"]


def test_of_many_errors_few_are_told_and_the_others_counted(log):
    for number in range(1000):
        log.error(AtomizerError(Event(f"failed {number}"), ValueError("no")))
    log.health(QueueStatus("connected", "amqp://host/", "queue"), threads=2)
    log.health(QueueStatus("connected", "amqp://host/", "queue"), threads=2)
    *told, health, later = lines(log)
    assert 10 <= len(told) < 1000
    assert len(told) + health["suppressed"] == 1000
    assert "suppressed" not in later
    assert told[0]["internal"] == "ValueError: no"


def test_health_tells_the_rate_since_the_last_one(log):
    log.health(QueueStatus("connected", "amqp://host/", "queue", answered=50), threads=2)
    log.health(QueueStatus("connected", "amqp://host/", "queue", answered=50), threads=2)
    first, second = lines(log)
    assert first["rate"] > 0
    assert second["rate"] == 0
    assert first["answered"] == second["answered"] == 50


def test_long_texts_are_cut(log):
    log.text("x" * 10_000)
    log.event(Event("y" * 10_000, level="warning", electron_id="z" * 10_000))
    assert all(len(json.dumps(line)) < 1000 for line in lines(log))


def test_what_libraries_log_and_python_warns_of_is_json_and_undone_afterwards(capfd):
    logger = logging.getLogger("some.library")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    with logging_to_stderr():
        logger.warning('a "quoted" %s', "word")
        try:
            raise ValueError("on purpose")
        except ValueError:
            logger.exception("failed")
        logging.getLogger("pika.adapters.base_connection").error("told by the conductor")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("take care", UserWarning, stacklevel=1)
    assert logger.handlers == [handler]
    logger.removeHandler(handler)
    told = {line["event"]: line for line in map(json.loads, capfd.readouterr().err.splitlines())}
    assert set(told) == {"some.library", "py.warnings"}
    assert told["some.library"]["level"] == "error"
    assert "ValueError: on purpose" in told["some.library"]["message"]
    assert "take care" in told["py.warnings"]["message"]
