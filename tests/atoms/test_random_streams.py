import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask.atoms.random_streams import Positioned, RandomStream, philox, seed_of, uniform

ONES = 2**64 - 1
KEYS = st.integers(0, 2**128 - 1)
INDICES = st.integers(0, 2**64 - 1)


def numpys(stream, index):
    """NumPy's own generator, put at an electron's stream by nothing of ours."""
    counter = np.array([0, 0, index, stream.generation], dtype=np.uint64)
    key = np.array([stream.key % 2**64, stream.key // 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        (
            [0, 0, 0, 0],
            [0, 0],
            [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
        ),
        (
            [ONES, ONES, ONES, ONES],
            [ONES, ONES],
            [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
        ),
        (
            [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
            [0x452821E638D01377, 0xBE5466CF34E90C6C],
            [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, answer):
    words = [np.array([word, word], dtype=np.uint64) for word in counter]
    out = philox(words, key[0] + key[1] * 2**64)
    assert [word.tolist() for word in out] == [[word, word] for word in answer]


@given(key=KEYS, index=INDICES, generation=st.sampled_from([0, 1]))
def test_generator_of_an_electron_is_numpys_philox(key, index, generation):
    stream = RandomStream(key, generation)
    rng = Positioned().at(stream, index)
    assert rng.random(9).tolist() == numpys(stream, index).random(9).tolist()


@given(
    key=KEYS,
    start=st.integers(0, 2**64 - 20_000),
    skip=st.integers(0, 50),
    draws=st.one_of(st.integers(0, 12), st.integers(36, 44)),
)
def test_vectorised_uniform_is_numpys_philox(key, start, skip, draws):
    stream = RandomStream(key)
    indices = np.arange(start, start + 5, dtype=np.uint64)
    expected = [numpys(stream, start + n).random(skip + draws)[skip:] for n in range(5)]
    numbers = uniform(stream, indices, skip, draws)
    assert numbers.shape == (5, draws)
    assert numbers.tolist() == [row.tolist() for row in expected]


@pytest.mark.parametrize("draws", [3, 39, 40, 41])
def test_uniform_of_many_rows_does_not_depend_on_how_they_are_cut(draws):
    stream = RandomStream(11)
    indices = np.arange(10_000, dtype=np.uint64)
    whole = uniform(stream, indices, 2, draws)
    parts = [uniform(stream, part, 2, draws) for part in np.array_split(indices, 7)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert whole[9_999].tolist() == numpys(stream, 9_999).random(2 + draws)[2:].tolist()


def test_uniform_is_in_the_unit_interval_and_looks_uniform():
    numbers = uniform(RandomStream(3), np.arange(100_000, dtype=np.uint64), 0, 1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Five standard errors of the mean of a uniform variable.
    assert abs(numbers.mean() - 0.5) < 5 / np.sqrt(12 * 100_000)


def test_positioned_generator_starts_again_whatever_was_drawn_before():
    rng, stream = Positioned(), RandomStream(7)
    first = rng.at(stream, 3).random(5).tolist()
    rng.at(stream, 4).integers(0, 10, 3, dtype=np.uint32)  # leaves half a word behind
    rng.at(stream, 4).normal(size=3)
    assert rng.at(stream, 3).random(5).tolist() == first


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.integers(0, 100, 3, dtype=np.uint32).tolist(),
        lambda rng: rng.normal(size=3).tolist(),
        lambda rng: rng.permutation(10).tolist(),
    ],
    ids=["integers", "normal", "permutation"],
)
def test_any_distribution_is_repeatable(draw):
    rng = Positioned()
    first = draw(rng.at(RandomStream(7), 3))
    draw(rng.at(RandomStream(7), 9))
    assert draw(rng.at(RandomStream(7), 3)) == first
    assert draw(numpys(RandomStream(7), 3)) == first


def test_streams_differ_by_seed_index_and_generation():
    rng = Positioned()
    addresses = [(RandomStream(seed, g), n) for seed in range(5) for g in (0, 1) for n in range(20)]
    assert len({rng.at(*address).random() for address in addresses}) == len(addresses)


def test_streams_of_children_differ_from_each_other_and_from_their_parents():
    rng, root = Positioned(), RandomStream(7)
    families = [
        root,
        root.child(0),
        root.child(1),
        root.child(0).child(0),
        RandomStream(8).child(0),
    ]
    assert len({rng.at(family, n).random() for family in families for n in range(10)}) == 50


def test_child_is_the_same_each_time():
    assert RandomStream(7).child(3) == RandomStream(7).child(3)


def test_stream_of_an_id_is_its_own():
    assert RandomStream.of_id("a") == RandomStream.of_id("a")
    assert RandomStream.of_id("a") != RandomStream.of_id("b")


@pytest.mark.parametrize("seed", [0, 1, 2**128 - 1, np.int64(5), True])
def test_seed_may_be_any_integer_of_128_bits(seed):
    assert seed_of(seed) == int(seed)


def test_seed_is_random_where_not_given():
    assert seed_of(None) != seed_of(None)


@pytest.mark.parametrize("seed", [-1, 2**128])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="between 0 and"):
        seed_of(seed)


@pytest.mark.parametrize("seed", [1.5, "7", [1]])
def test_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(TypeError, match="must be an integer"):
        seed_of(seed)
