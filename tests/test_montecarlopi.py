import math

import numpy as np
import pytest

from atomizer_dask import Atomizer, Electron, ElectronError, atom
from atomizer_dask import montecarlopi as application
from atomizer_dask.montecarlopi import MonteCarlo, Toss, count_inside, standard_error


def test_ids_are_those_of_the_go_application():
    assert MonteCarlo.id == "montecarlopi.MonteCarlo"
    assert Toss.id == "montecarlopi.Toss"


def test_estimate_is_within_five_standard_errors(conductor):
    with Atomizer(conductor, MonteCarlo, Toss) as atomizer:
        result = atomizer.send(MonteCarlo, {"tosses": 200_000}, id="pi-1").result().value()
    assert result.keys() == {"in", "tosses", "errors", "pi"}
    assert result["tosses"] == 200_000
    assert result["errors"] == 0
    assert result["pi"] == 4 * result["in"] / 200_000
    assert abs(result["pi"] - math.pi) < 5 * standard_error(result["in"], 200_000)


def test_estimate_has_the_same_bits_on_every_conductor(conductor):
    # Several children, so that their order of completion could matter.
    with Atomizer(conductor, MonteCarlo, Toss) as atomizer:
        frame = atomizer.map(MonteCarlo, {"tosses": [5_000_000, 1000]}, seed=7).wait().to_frame()
    assert frame["in"].tolist() == [3926301, 808]


def test_a_toss_is_one_unless_told_otherwise(conductor):
    with Atomizer(conductor, Toss) as atomizer:
        one = [atomizer.send(Toss).result().value()["value"] for _ in range(20)]
        many = atomizer.send(Electron(Toss.id, {"tosses": 10_000})).result().value()["value"]
    assert set(one) <= {0, 1}
    assert 7000 < many < 8500


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"tosses": 0}, "0 is not a valid toss"),
        ({"tosses": "many"}, "expected a payload"),
        (None, "expected a payload"),
    ],
)
def test_a_bad_payload_is_answered(conductor, payload, message):
    with Atomizer(conductor, MonteCarlo, Toss) as atomizer:
        properties = atomizer.send(MonteCarlo, payload).result()
    assert message in properties.error.message
    with pytest.raises(ElectronError, match=message):
        properties.value()


def test_failed_tosses_are_counted_as_errors(conductor):
    @atom(id="montecarlopi.Toss")
    def broken(tosses=1):
        raise RuntimeError("lost the darts")

    with Atomizer(conductor, MonteCarlo, broken) as atomizer:
        result = atomizer.send(MonteCarlo, {"tosses": 10}).result().value()
    assert result["errors"] == 10
    assert result["in"] == 0
    assert math.isnan(result["pi"])


def test_counting_in_groups_draws_what_counting_at_once_would(monkeypatch):
    monkeypatch.setattr(application, "_AT_ONCE", 8)
    got = count_inside(np.random.default_rng(1), 20)
    rng = np.random.default_rng(1)
    expected = 0
    for size in (8, 8, 4):
        x, y = rng.random(size), rng.random(size)
        expected += int((x * x + y * y <= 1).sum())
    assert got == expected
