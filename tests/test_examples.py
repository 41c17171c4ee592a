"""The examples run from the command line, and their numbers are right."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster

EXAMPLES = Path(__file__).parent.parent / "examples"
ISING = ("ising", "--temperatures=1.5,5.0", "--sizes=16", "--replicas=4", "--sweeps=400")
BOOTSTRAP = ("bootstrap", "--resamples=2000")
PARALLEL = ("embarrassingly_parallel", "--rows=500", "--seconds=2")
PI = ("pi", "--tosses=10_000_000")


@pytest.fixture(scope="module")
def scheduler():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


def ended(example, *options):
    command = [sys.executable, EXAMPLES / f"{example}.py", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def output_of(example, *options):
    done = ended(example, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers_after(label, output):
    """Return the numbers in the line that begins with a label."""
    line = re.search(rf"^ *{re.escape(label)}(.*)$", output, re.MULTILINE)
    assert line, output
    return [float(text.replace(",", "")) for text in re.findall(r"[-+]?\d[\d.,]*", line[1])]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_help_says_what_it_shows(path):
    shown = " ".join(output_of(path.stem, "--help").split())
    assert path.read_text().removeprefix('"""').partition("\n")[0] in shown
    assert "--scheduler ADDRESS" in shown
    assert "--seed" in shown


@pytest.mark.dask
def test_ising_is_near_the_exact_solution(scheduler):
    scipy = pytest.importorskip("scipy.special")
    output = output_of(*ISING, "--scheduler", scheduler)

    _, m, _, cold, _, onsager = numbers_after("1.5 ", output)
    assert onsager == pytest.approx(0.98650, abs=1e-4)
    assert m == pytest.approx(onsager, abs=0.005)

    _, m, _, hot, _, onsager = numbers_after("5 ", output)
    assert onsager == 0
    assert 0 < m < 0.1

    for temperature, energy in ((1.5, cold), (5.0, hot)):
        # Onsager's internal energy (1944), with the parameter k**2 that SciPy wants.
        bond = 2 / temperature
        elliptic = scipy.ellipk((2 * np.sinh(bond) / np.cosh(bond) ** 2) ** 2)
        exact = -(1 + 2 / np.pi * (2 * np.tanh(bond) ** 2 - 1) * elliptic) / np.tanh(bond)
        assert energy == pytest.approx(exact, abs=0.01)


@pytest.mark.dask
def test_ising_names_the_critical_temperature(scheduler):
    output = output_of("ising", "--sizes=4", "--replicas=2", "--sweeps=5", "--scheduler", scheduler)
    assert "2.2692" in output


@pytest.mark.dask
def test_bootstrap_interval_holds_the_estimate_and_is_scipys(scheduler):
    output = output_of(*BOOTSTRAP, "--scheduler", scheduler)
    (estimate,) = numbers_after("correlation", output)
    low, high, resamples = numbers_after("95 % interval", output)
    theirs = re.findall(r"SciPy says +([\d.]+)(?: to ([\d.]+))?", output)

    assert estimate == pytest.approx(0.5865, abs=1e-4)
    assert low < estimate < high
    assert resamples == 2000
    assert (low, high) == pytest.approx(tuple(map(float, theirs[0])), abs=0.02)
    assert numbers_after("standard error", output)[0] == pytest.approx(float(theirs[1][0]), rel=0.2)


@pytest.mark.dask
def test_parallel_gives_one_total_for_each_row(scheduler):
    output = output_of(*PARALLEL, "--seed=3", "--scheduler", scheduler)
    inputs = np.random.default_rng(3).random((500, 4))
    rows = np.array([numbers_after(f"{row} ", output) for row in range(5)])

    assert output.startswith("500 rows, 0 of them failed")
    assert rows[:, :4] == pytest.approx(inputs[:5], abs=1e-4)
    assert rows[:, 4] == pytest.approx(inputs[:5].sum(axis=1), abs=1e-4)
    (mean,) = numbers_after("mean of the totals", output)
    assert mean == pytest.approx(inputs.sum(axis=1).mean(), abs=1e-4)


@pytest.mark.dask
def test_parallel_is_faster(scheduler):
    output = output_of(*PARALLEL, "--scheduler", scheduler)
    assert numbers_after("one after the other", output)[0] == pytest.approx(2, rel=0.3)
    assert numbers_after("speed-up", output)[0] > 1.2


@pytest.mark.dask
def test_pi_is_within_its_error(scheduler):
    output = output_of(*PI, "--scheduler", scheduler)
    inside, tosses = map(int, re.findall(r"\d+", output.partition(" darts")[0].replace(",", "")))
    pi, error = numbers_after("pi", output)

    assert tosses == 10_000_000
    assert "0 were lost" in output
    assert pi == pytest.approx(4 * inside / tosses, abs=1e-8)
    assert error == pytest.approx(1.6424 / np.sqrt(tosses), rel=0.01)
    assert abs(pi - np.pi) < 5 * error
    assert numbers_after("off by", output)[0] == pytest.approx((pi - np.pi) / error, abs=0.01)


@pytest.mark.dask
@pytest.mark.parametrize(
    ("command", "results"),
    [
        pytest.param(ISING, r".+", id="ising"),
        pytest.param(BOOTSTRAP, r".+", id="bootstrap"),
        pytest.param(PARALLEL, r"^\d (?: +[\d.]+){5}", id="embarrassingly_parallel"),
        pytest.param(PI, r"^pi.*|.*hit the circle", id="pi"),
    ],
)
def test_same_seed_same_numbers_on_any_cluster(command, results, scheduler):
    def numbers(*options):
        return re.findall(results, output_of(*command, *options), re.MULTILINE)

    there = numbers("--seed=1", "--scheduler", scheduler)
    assert there
    assert there == numbers("--seed=1")
    assert there != numbers("--seed=2", "--scheduler", scheduler)


def test_ising_refuses_a_checkerboard_that_does_not_close():
    done = ended("ising", "--sizes=15")
    assert done.returncode == 2
    assert "even number" in done.stderr


@pytest.mark.dask
def test_survival_goes_on_where_its_process_was_killed(scheduler, tmp_path):
    store = f"--store={tmp_path / 'walks'}"
    output = output_of("survival", "--replicas=2000", store, "--scheduler", scheduler)
    assert "died of signal 9" in output
    done, total = numbers_after("in its store are", output)
    assert 0.33 * total <= done <= total == 6000
    assert numbers_after("then", output) == [6000, 6000]
    assert numbers_after("result", output)[:4] == [50, 50, 0, 0]
    assert numbers_after("extended:", output) == [6000, 12000]
    for half_width in (10, 20, 40):
        steps, exact = numbers_after(f"{half_width} ", output)
        assert steps == pytest.approx(exact, rel=0.05)


@pytest.mark.amqp
@pytest.mark.dask
def test_rabbitmq_tells_what_the_books_do_and_what_failed(broker, queue, scheduler):
    options = (f"--amqp={broker.url}", f"--queue={queue}", f"--scheduler={scheduler}")
    output = output_of("rabbitmq", *options, "--seed=1")
    for people, known in ((10, 0.1169), (23, 0.5073), (40, 0.8912), (57, 0.9901)):
        share, exact = numbers_after(f"{people} ", output)
        assert exact == known
        assert share == pytest.approx(exact, abs=0.02)
    assert "-1 people: exception, ValueError: negative dimensions" in output
    assert output_of("rabbitmq", *options, "--seed=1") == output
    assert output_of("rabbitmq", *options, "--seed=2") != output


def test_rabbitmq_says_where_no_broker_is():
    pytest.importorskip("pika")
    done = ended("rabbitmq", "--amqp=amqp://user:secret@127.0.0.1:1")
    assert done.returncode == 1
    assert "amqp://127.0.0.1:1/" in done.stderr
    assert "check that RabbitMQ runs there" in done.stderr
    assert "secret" not in done.stderr
