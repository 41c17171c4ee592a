import asyncio
import pickle
import threading
from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest

from atomizer_dask import Event, Stream

IMG = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ({}, "message"),
        ({"electron_id": "E"}, "[eid:E] message"),
        ({"atom_id": "A"}, "[aid:A] message"),
        ({"conductor_id": "C"}, "[cid:C] message"),
        ({"electron_id": "E", "atom_id": "A"}, "[aid:A | eid:E] message"),
        ({"electron_id": "E", "conductor_id": "C"}, "[cid:C | eid:E] message"),
        ({"atom_id": "A", "conductor_id": "C"}, "[cid:C | aid:A] message"),
        (
            {"electron_id": "E", "atom_id": "A", "conductor_id": "C"},
            "[cid:C | aid:A | eid:E] message",
        ),
    ],
)
def test_text_of_event_leaves_absent_ids_out(ids, text):
    assert str(Event("message", **ids)) == text


def test_text_of_event_without_message_is_its_ids():
    assert str(Event("", electron_id="E")) == "[eid:E]"


def test_event_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Event("a").message = "b"


def test_event_survives_pickle_with_its_time_and_fields():
    event = Event("a", "E", "A", "C", level="warning", run_id="R", fields={"n": 1})
    again = pickle.loads(pickle.dumps(event))
    assert again == event
    assert again.time == event.time
    assert again.fields == {"n": 1}


def test_event_time_is_in_utc_and_aware():
    assert Event("a").time.utcoffset() == timedelta(0)


def test_repr_of_event_names_what_happened():
    event = Event("bonded", electron_id="E", level="debug")
    assert "debug" in repr(event)
    assert "[eid:E] bonded" in repr(event)


def test_repr_of_event_is_short_whatever_its_message():
    assert len(repr(Event("x" * 10_000))) < 300


def test_html_of_event_is_escaped():
    html = Event(IMG, electron_id=IMG, atom_id=IMG, conductor_id=IMG)._repr_html_()
    assert "<img" not in html
    assert "&lt;img" in html


def test_stream_gives_items_in_order_and_ends_when_closed():
    stream = Stream()
    for item in range(3):
        stream.put(item)
    stream.close()
    assert list(stream) == [0, 1, 2]
    assert list(stream) == []


def test_full_stream_drops_the_oldest_and_counts_them():
    stream = Stream(buffer=2)
    for item in range(5):
        stream.put(item)
    assert stream.dropped == 3
    assert len(stream) == 2
    assert stream.get() == 3
    assert "3 dropped" in repr(stream)


def test_stream_ignores_what_is_put_after_its_end():
    stream = Stream()
    stream.close()
    stream.put(1)
    assert list(stream) == []


def test_get_times_out_when_nothing_comes():
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        Stream().get(timeout=0.01)


def test_get_at_the_end_raises_eof():
    stream = Stream()
    stream.close()
    with pytest.raises(EOFError, match="closed"):
        stream.get()


def test_closing_wakes_all_waiting_readers():
    stream = Stream()
    read = []
    readers = [threading.Thread(target=lambda: read.append(list(stream))) for _ in range(3)]
    for reader in readers:
        reader.start()
    stream.close()
    for reader in readers:
        reader.join(10)
    assert read == [[], [], []]


def test_stream_can_be_read_with_async_for():
    stream = Stream()

    async def read():
        return [item async for item in stream]

    async def main():
        reader = asyncio.create_task(read())
        for item in range(3):
            stream.put(item)
            await asyncio.sleep(0)
        stream.close()
        return await reader

    assert asyncio.run(main()) == [0, 1, 2]


@pytest.mark.parametrize("buffer", [0, -1])
def test_stream_must_keep_at_least_one(buffer):
    with pytest.raises(ValueError, match=f"buffer={buffer}"):
        Stream(buffer=buffer)


def test_a_reader_that_gives_up_takes_no_item_with_it():
    async def give_up_then_read():
        stream = Stream()
        reader = aiter(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(reader), 0.01)
        stream.put("kept")
        stream.close()
        return [item async for item in stream]

    assert asyncio.run(give_up_then_read()) == ["kept"]


def test_many_waiting_readers_hold_no_thread():
    async def read():
        streams = [Stream() for _ in range(100)]
        readers = [asyncio.create_task(anext(aiter(stream))) for stream in streams]
        before = threading.active_count()
        await asyncio.sleep(0)
        assert threading.active_count() == before
        for number, stream in enumerate(streams):
            stream.put(number)
        return await asyncio.gather(*readers)

    assert asyncio.run(read()) == list(range(100))
