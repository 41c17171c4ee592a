"""The frames of a message are those that pika makes, and read as pika reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, frame, spec

from atomizer_dask.conductors.amqp.frames import delivered, end_of_frame, published

CHANNELS = st.integers(1, 65_535)
NAMES = st.text(min_size=1, max_size=60)
BODIES = st.binary(min_size=1, max_size=300)
MODES = st.sampled_from([None, 1, 2])


def _frames(channel, method, properties, body, *, parts=1):
    made = [frame.Method(channel, method), frame.Header(channel, len(body), properties)]
    size = -(-len(body) // parts) or 1
    made += [frame.Body(channel, body[at : at + size]) for at in range(0, len(body), size)]
    return b"".join(one.marshal() for one in made)


def _delivery(channel=1, consumer="ctag1.x", tag=7, body=b"{}", parts=1, **properties):
    properties = {"content_type": "application/json", **properties}
    method = spec.Basic.Deliver(consumer, tag, True, "", "queue")
    return _frames(channel, method, BasicProperties(**properties), body, parts=parts)


@given(CHANNELS, NAMES, BODIES, st.booleans())
def test_a_message_is_written_as_pika_writes_it(channel, queue, body, persistent):
    properties = BasicProperties("application/json", delivery_mode=2 if persistent else None)
    method = spec.Basic.Publish(exchange="", routing_key=queue, mandatory=True)
    expected = _frames(channel, method, properties, body)
    assert published(channel, queue, body, persistent=persistent) == expected


@given(CHANNELS, NAMES, st.integers(1, 2**64 - 1), MODES, BODIES, BODIES, BODIES)
def test_a_delivery_is_read_wherever_it_stands(channel, consumer, tag, mode, body, before, after):
    data = _delivery(channel, consumer, tag, body, delivery_mode=mode)
    message = delivered(before + data + after, len(before))
    assert message == (len(before) + len(data), channel, consumer.encode(), tag, mode, body)


@given(st.data())
def test_what_is_not_there_as_a_whole_is_no_delivery(data):
    whole = _delivery()
    assert delivered(whole[: data.draw(st.integers(0, len(whole) - 1))], 0) is None


@pytest.mark.parametrize(
    "unusual",
    [
        _delivery(headers={"atomizer-kind": "timeout"}),
        _delivery(content_type=None),
        _delivery(message_id="x"),
        _delivery(body=b""),
        _delivery(body=b"in two frames", parts=2),
        frame.Heartbeat().marshal() * 20,
        frame.Method(1, spec.Basic.Ack(5, True)).marshal() * 3,
        _frames(1, spec.Basic.Return(312, "NO_ROUTE", "", "q"), BasicProperties(), b"body"),
    ],
)
def test_what_is_not_as_usual_is_left_to_pika(unusual):
    assert delivered(unusual, 0) is None


@given(st.binary(max_size=120))
def test_garbage_is_no_delivery(garbage):
    assert delivered(garbage, 0) is None


@given(st.data())
def test_a_damaged_delivery_is_read_as_something_or_not_at_all(data):
    whole = bytearray(_delivery(body=b'{"value":1}', delivery_mode=2))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    message = delivered(bytes(whole), 0)
    assert message is None or message.end <= len(whole)


@given(st.integers(0, 40))
def test_frames_end_where_pika_says(cut):
    data = _delivery()
    one = frame.decode_frame(data)[0]
    assert end_of_frame(b"x" * cut + data, cut) == cut + one
    assert end_of_frame(data[: one - 1], 0) is None
