"""What stands between pika and the socket: reads and writes of many messages at a time."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, frame, spec
from pika.adapters.utils.io_services_utils import _AsyncTransportBase

from atomizer_dask.conductors.amqp.pika_connection import (
    READ_BYTES,
    _Protocol,
    _Transport,
    end_of_frame,
    readable,
)

BAD_DATE = b"\x20\x00" + b"\x00\x00\x00\x0b" + b"\x01dT" + b"\xff" * 8  # a header of year 6e11


def header(properties, channel=1, size=2):
    return frame.Header(channel, size, properties).marshal()


def header_of(encoded, channel=1, size=2):
    """Return the frame of a header with properties as somebody else has encoded them."""
    bare = header(BasicProperties(), channel, size)
    content = bare[7:-3] + encoded
    return bare[:3] + len(content).to_bytes(4, "big") + content + b"\xce"


def delivery(body=b"{}", **properties):
    method = spec.Basic.Deliver("ctag1.x", 7, True, "", "queue")
    frames = [frame.Method(1, method), frame.Header(1, len(body), BasicProperties(**properties))]
    return b"".join(one.marshal() for one in (*frames, frame.Body(1, body)))


def test_the_size_of_a_read_is_where_it_was_in_the_version_that_this_was_written_against():
    assert _AsyncTransportBase._MAX_RECV_BYTES < READ_BYTES


@given(st.integers(0, 40))
def test_frames_end_where_pika_says(cut):
    data = delivery()
    one = frame.decode_frame(data)[0]
    assert end_of_frame(b"x" * cut + data, cut) == cut + one
    assert end_of_frame(data[: one - 1], 0) is None


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"content_type": "application/json"},
        {"content_type": "application/json", "delivery_mode": 2},
        {"content_type": "application/json", "headers": {"atomizer-kind": "timeout", "n": 1}},
        {"content_type": "text/plain", "message_id": "é", "timestamp": 10},
    ],
)
def test_properties_that_pika_reads_stay_as_they_are(properties):
    whole = header(BasicProperties(**properties))
    assert readable(whole) is whole


@pytest.mark.parametrize(
    "encoded",
    [
        BAD_DATE,
        b"\x90\x00\x10application/json",  # says that there is a mode, and has none
        b"\x20\x00\x00\x00\x00\x03\x01d?",  # a header of no known type
    ],
)
def test_properties_that_pika_cannot_read_are_left_out(encoded):
    left = readable(header_of(encoded, channel=5, size=9))
    assert left == header(BasicProperties(), channel=5, size=9)
    _, read = frame.decode_frame(left)
    assert (read.channel_number, read.body_size) == (5, 9)


@given(st.lists(st.integers(0, 300)))
def test_pika_is_given_whole_frames_however_they_arrive(cuts):
    data = delivery() + delivery(b"x" * 100, delivery_mode=2) + frame.Heartbeat().marshal()
    given_ = []
    pika = SimpleNamespace(data_received=given_.append)
    protocol = _Protocol(pika, wrap=None)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    for start, stop in pairwise(edges):
        if stop > start:
            protocol.data_received(data[start:stop])
    assert b"".join(given_) == data
    assert [frame.decode_frame(one)[0] for one in given_] == list(map(len, given_))
    assert len(given_) == 7


def test_a_broker_of_another_protocol_is_heard():
    given_ = []
    protocol = _Protocol(SimpleNamespace(data_received=given_.append), wrap=None)
    protocol.data_received(b"AMQP\x00\x01\x00\x00")
    assert given_ == [b"AMQP\x00\x01\x00\x00"]


def test_what_comes_up_in_one_turn_of_the_loop_is_one_write():
    written, turns = [], []
    socket = SimpleNamespace(write=written.append, get_write_buffer_size=lambda: 5)
    transport = _Transport(socket, SimpleNamespace(add_callback_threadsafe=turns.append))
    transport.write(b"one")
    transport.write(b"two")
    assert (written, transport.get_write_buffer_size()) == ([], 11)
    for turn in turns:
        turn()
    transport.emit()  # nothing is left
    assert written == [b"onetwo"]
