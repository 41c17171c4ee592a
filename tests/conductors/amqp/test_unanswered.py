import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask import Electron
from atomizer_dask.conductors.amqp.unanswered import (
    REMEMBERED,
    REMEMBERED_BYTES,
    Answer,
    PendingElectron,
    Unanswered,
)


def pending(id="e1", sender="replies", body=b"{}", tag=1):
    electron = Electron("atom", id=id, sender_id=sender)
    return PendingElectron(electron, hash(body), 0.0, body, False, [(1, tag)])


def answer(unanswered, one, body=b"reply", headers=None):
    one.reply = Answer(one.digest, body, headers or {})
    unanswered.remember(one)
    return unanswered.remove(one)


def test_what_is_in_hand_is_known_when_it_comes_again():
    unanswered, one = Unanswered(), pending()
    assert unanswered.find(one.electron, one.digest) is None
    assert unanswered.take(one)
    assert unanswered.find(one.electron, one.digest) is one


def test_what_was_answered_is_answered_from_memory():
    unanswered, one = Unanswered(), pending()
    unanswered.take(one)
    answer(unanswered, one)
    assert unanswered.find(one.electron, one.digest) is one.reply
    assert len(unanswered) == 0


def test_another_message_of_the_same_id_is_another_electron():
    unanswered, one = Unanswered(), pending()
    unanswered.take(one)
    assert unanswered.find(one.electron, hash(b"other")) is None
    answer(unanswered, one)
    assert unanswered.find(one.electron, hash(b"other")) is None


def test_the_same_id_of_different_senders_is_executed_one_after_the_other():
    unanswered = Unanswered()
    first, second, third = (pending(sender=f"sender-{n}", tag=n) for n in range(3))
    assert [unanswered.take(one) for one in (first, second, third)] == [True, False, False]
    assert unanswered.find(second.electron, second.digest) is second
    assert answer(unanswered, first) is second
    assert unanswered.get("e1") is second
    assert answer(unanswered, second) is third
    assert answer(unanswered, third) is None
    assert "e1" not in unanswered


def test_those_that_come_after_others_are_put_back_together():
    unanswered = Unanswered()
    first, second, third = (pending(sender=f"sender-{n}", tag=n) for n in range(3))
    for one in (first, second, third):
        unanswered.take(one)
    assert unanswered.put_back_later() == [second, third]
    assert len(unanswered) == 1
    assert answer(unanswered, first) is None


def test_waiting_ones_are_counted_once_and_until_they_are_answered():
    unanswered, one = Unanswered(), pending()
    unanswered.take(one)
    unanswered.note_waiting("e1")
    unanswered.note_waiting("e1")
    unanswered.note_waiting("unknown")
    assert unanswered.waiting == 1
    answer(unanswered, one)
    assert unanswered.waiting == 0


def test_answers_are_forgotten_where_there_are_too_many():
    unanswered = Unanswered()
    for number in range(REMEMBERED + 10):
        one = pending(id=str(number))
        unanswered.take(one)
        answer(unanswered, one)
    first, last = pending(id="0"), pending(id=str(REMEMBERED + 9))
    assert unanswered.find(first.electron, first.digest) is None
    assert unanswered.find(last.electron, last.digest) is not None


def test_an_answer_larger_than_what_is_remembered_is_forgotten():
    unanswered = Unanswered()
    for body in (b"small", bytes(REMEMBERED_BYTES + 1), b"small"):
        one = pending()
        unanswered.take(one)
        answer(unanswered, one, body)
    assert unanswered.find(one.electron, one.digest) is one.reply


def test_remembered_answers_take_little_memory_with_all_that_they_say():
    unanswered = Unanswered()
    tracemalloc.start()
    try:
        for number in range(10_000):
            one = pending(id=str(number))
            unanswered.take(one)
            answer(unanswered, one, headers={"atomizer-traceback": str(number).zfill(16_000)})
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 1.5 * REMEMBERED_BYTES


@given(st.lists(st.tuples(st.sampled_from(["take", "answer", "wait"]), st.integers(0, 3),
                          st.integers(0, 2)), max_size=60))  # fmt: skip
def test_counts_are_right_whatever_happens(steps):
    unanswered, model = Unanswered(), {}
    for step, number, sender in steps:
        name = f"e{number}"
        queue = model.setdefault(name, [])
        if step == "take":
            one = pending(id=name, sender=f"sender-{sender}")
            if not isinstance(unanswered.find(one.electron, one.digest), PendingElectron):
                assert unanswered.take(one) == (not queue)
                queue.append(one)
        elif step == "wait":
            unanswered.note_waiting(name)
        elif queue:
            one = queue.pop(0)
            assert answer(unanswered, one) is (queue[0] if queue else None)
        assert len(unanswered) == sum(map(len, model.values()))
        assert unanswered.waiting == sum(
            one.is_waiting for those in model.values() for one in those
        )
