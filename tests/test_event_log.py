import threading

from atomizer_dask import Event
from atomizer_dask.events import EventLog


def messages(log, number=0):
    return [(n, event.message) for n, event in log.since(number)]


def test_the_newest_are_kept_and_the_rest_is_counted():
    log = EventLog(kept=3)
    for number in range(10):
        log.note(Event(str(number), level="error" if number == 4 else "info"))
    assert messages(log) == [(7, "7"), (8, "8"), (9, "9")]
    assert (log.total, len(log), log.counts) == (10, 3, {"info": 9, "error": 1})


def test_reading_takes_none_away_and_can_begin_anywhere():
    log = EventLog(kept=3)
    for number in range(5):
        log.note(Event(str(number)))
    assert messages(log, 3) == messages(log, 3) == [(3, "3"), (4, "4")]
    assert messages(log, 5) == []


def test_events_come_from_any_thread():
    log = EventLog(kept=10)
    threads = [
        threading.Thread(target=lambda: [log.note(Event("x")) for _ in range(500)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.total == log.counts["info"] == 4000
    assert [number for number, _ in log.since(0)] == list(range(3990, 4000))
