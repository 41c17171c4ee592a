import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask import Electron
from atomizer_dask.conductors.amqp.unanswered import (
    REMEMBERED,
    REMEMBERED_BYTES,
    Answer,
    Hands,
    Held,
)


def held(id="e1", sender="replies", body=b"{}", tag=1):
    electron = Electron("atom", id=id, sender_id=sender)
    return Held(electron, hash(body), 0.0, body, False, [(1, tag)])


def answer(hands, one, body=b"reply", headers=None):
    one.reply = Answer(one.digest, body, headers or {})
    hands.remember(one)
    return hands.let_go(one)


def test_what_is_in_hand_is_known_when_it_comes_again():
    hands, one = Hands(), held()
    assert hands.find(one.electron, one.digest) is None
    assert hands.take(one)
    assert hands.find(one.electron, one.digest) is one


def test_what_was_answered_is_answered_from_memory():
    hands, one = Hands(), held()
    hands.take(one)
    answer(hands, one)
    assert hands.find(one.electron, one.digest) is one.reply
    assert len(hands) == 0


def test_another_message_of_the_same_id_is_another_electron():
    hands, one = Hands(), held()
    hands.take(one)
    assert hands.find(one.electron, hash(b"other")) is None
    answer(hands, one)
    assert hands.find(one.electron, hash(b"other")) is None


def test_the_same_id_of_different_senders_is_executed_one_after_the_other():
    hands = Hands()
    first, second, third = (held(sender=f"sender-{n}", tag=n) for n in range(3))
    assert [hands.take(one) for one in (first, second, third)] == [True, False, False]
    assert hands.find(second.electron, second.digest) is second
    assert answer(hands, first) is second
    assert hands.get("e1") is second
    assert answer(hands, second) is third
    assert answer(hands, third) is None
    assert "e1" not in hands


def test_those_that_come_after_others_are_put_back_together():
    hands = Hands()
    first, second, third = (held(sender=f"sender-{n}", tag=n) for n in range(3))
    for one in (first, second, third):
        hands.take(one)
    assert hands.put_back_later() == [second, third]
    assert len(hands) == 1
    assert answer(hands, first) is None


def test_waiting_ones_are_counted_once_and_until_they_are_answered():
    hands, one = Hands(), held()
    hands.take(one)
    hands.note_waiting("e1")
    hands.note_waiting("e1")
    hands.note_waiting("unknown")
    assert hands.waiting == 1
    answer(hands, one)
    assert hands.waiting == 0


def test_answers_are_forgotten_where_there_are_too_many():
    hands = Hands()
    for number in range(REMEMBERED + 10):
        one = held(id=str(number))
        hands.take(one)
        answer(hands, one)
    first, last = held(id="0"), held(id=str(REMEMBERED + 9))
    assert hands.find(first.electron, first.digest) is None
    assert hands.find(last.electron, last.digest) is not None


def test_an_answer_larger_than_what_is_remembered_is_forgotten():
    hands = Hands()
    for body in (b"small", bytes(REMEMBERED_BYTES + 1), b"small"):
        one = held()
        hands.take(one)
        answer(hands, one, body)
    assert hands.find(one.electron, one.digest) is one.reply


def test_remembered_answers_take_little_memory_with_all_that_they_say():
    hands = Hands()
    tracemalloc.start()
    try:
        for number in range(10_000):
            one = held(id=str(number))
            hands.take(one)
            answer(hands, one, headers={"atomizer-traceback": str(number).zfill(16_000)})
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 1.5 * REMEMBERED_BYTES


@given(st.lists(st.tuples(st.sampled_from(["take", "answer", "wait"]), st.integers(0, 3),
                          st.integers(0, 2)), max_size=60))  # fmt: skip
def test_counts_are_right_whatever_happens(steps):
    hands, model = Hands(), {}
    for step, number, sender in steps:
        name = f"e{number}"
        queue = model.setdefault(name, [])
        if step == "take":
            one = held(id=name, sender=f"sender-{sender}")
            if not isinstance(hands.find(one.electron, one.digest), Held):
                assert hands.take(one) == (not queue)
                queue.append(one)
        elif step == "wait":
            hands.note_waiting(name)
        elif queue:
            one = queue.pop(0)
            assert answer(hands, one) is (queue[0] if queue else None)
        assert len(hands) == sum(map(len, model.values()))
        assert hands.waiting == sum(one.is_waiting for those in model.values() for one in those)
