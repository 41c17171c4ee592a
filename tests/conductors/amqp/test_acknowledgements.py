import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask.conductors.amqp.acknowledgements import Acks

# What becomes of a delivery: acknowledged, returned by us, or returned before we saw it.
FATES = st.lists(st.sampled_from(["done", "done", "done", "returned", "missed"]), max_size=40)


class Channel:
    """What the broker knows of the deliveries of a channel, and refuses."""

    def __init__(self, count):
        self.open = set(range(1, count + 1))
        self.acknowledged = []

    def ack(self, upto, others):
        if upto:
            assert upto in self.open  # else the broker closes the channel
            self._settle([tag for tag in self.open if tag <= upto])
        for tag in others:
            assert tag in self.open
            self._settle([tag])

    def _settle(self, tags):
        self.open.difference_update(tags)
        self.acknowledged += tags


@given(FATES, st.data())
def test_each_delivery_is_acknowledged_once_in_whatever_order_they_are_done(fates, data):
    acks, channel = Acks(), Channel(len(fates))
    for tag, fate in enumerate(fates, 1):
        if fate == "missed":
            channel.open.discard(tag)
        else:
            acks.arrived(tag)
    tags = [tag for tag, fate in enumerate(fates, 1) if fate != "missed"]
    done = []
    for tag in data.draw(st.permutations(tags)):
        if fates[tag - 1] == "returned":
            acks.settle(tag)
            channel.open.discard(tag)
        else:
            acks.add(tag)
            done.append(tag)
        if data.draw(st.booleans()):
            channel.ack(*acks.flush())
            assert sorted(channel.acknowledged) == sorted(done)
    channel.ack(*acks.flush())
    assert sorted(channel.acknowledged) == sorted(done)
    assert not channel.open - {t for t in channel.open if fates[t - 1] == "missed"}


@given(FATES)
def test_what_is_done_in_order_is_acknowledged_at_once(fates):
    acks = Acks()
    for tag, fate in enumerate(fates, 1):
        if fate != "missed":
            acks.arrived(tag)
            acks.settle(tag) if fate == "returned" else acks.add(tag)
    done = [tag for tag, fate in enumerate(fates, 1) if fate == "done"]
    assert acks.flush() == (done[-1] if done else 0, [])


def test_nothing_done_is_nothing_to_acknowledge():
    acks = Acks()
    acks.arrived(1)
    assert acks.flush() == (0, [])
    acks.add(1)
    assert acks.flush() == (1, [])
    assert acks.flush() == (0, [])


def test_what_is_done_takes_no_memory_while_one_from_before_is_in_hand():
    acks = Acks()
    acks.arrived(1)
    tracemalloc.start()
    try:
        for tag in range(2, 50_000):
            acks.arrived(tag)
            acks.add(tag)
            assert acks.flush() == (0, [tag])
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    acks.add(1)
    assert acks.flush() == (1, [])
