"""Answers, and what nobody can be answered about; the suite of the conductor has a broker."""

from types import SimpleNamespace

from atomizer_dask.conductors.amqp.outgoing import NO_QUEUE, Outgoing
from atomizer_dask.conductors.amqp.replies import Replies


def session_of(outgoing, declared):
    connection = SimpleNamespace(
        outgoing=outgoing, declare=lambda queue, done: declared.append((queue, done))
    )
    return SimpleNamespace(queue="work", announce=lambda *_: None, connection=connection)


def outgoing_to(sent, *, is_open=True):
    return Outgoing(
        sent.append,
        can_send=lambda: is_open,
        call_later=lambda *_: None,
        guarded=lambda function: function(),
    )


def test_what_waits_to_be_kept_with_the_dead_is_told_apart_from_what_is_sent():
    outgoing = outgoing_to([], is_open=False)
    Replies(session_of(outgoing, [])).bury(b"{", "it is no JSON", done := print)
    assert outgoing.whose() == {done}


def test_the_queue_of_a_sender_is_declared_once_and_its_end_is_told():
    sent, declared, ends = [], [], []
    outgoing = outgoing_to(sent)
    replies = Replies(session_of(outgoing, declared))
    replies.send("someone", b"{}", {}, ends.append, persistent=False)
    replies._on_sent(sent[0], NO_QUEUE)
    ((queue, done),) = declared
    done("")
    assert (queue, len(sent), ends) == ("someone", 2, [])
    replies._on_sent(sent[1], NO_QUEUE)  # somebody deletes it each time
    assert (len(declared), ends) == (1, [NO_QUEUE])


def test_a_sender_that_was_there_before_has_closed():
    sent, declared, ends = [], [], []
    replies = Replies(session_of(outgoing_to(sent), declared))
    replies.send("someone", b"{}", {}, ends.append, persistent=False)
    replies._on_sent(sent[0], "")
    replies.send("someone", b"{}", {}, ends.append, persistent=False)
    replies._on_sent(sent[1], NO_QUEUE)
    assert (ends, declared) == (["", NO_QUEUE], [])
