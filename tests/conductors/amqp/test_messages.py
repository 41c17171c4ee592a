import base64
import binascii
import contextlib
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atomizer_dask import (
    AtomizerError,
    Electron,
    ElectronError,
    Event,
    InvalidPayloadError,
    Properties,
    WireError,
)
from atomizer_dask.conductors.amqp.messages import (
    decode_electron,
    decode_properties,
    details_of,
    encode_electron,
    encode_properties,
    recognise,
)
from atomizer_dask.conductors.amqp.wire.message_members import ExpiredError, Limits, UnreadSender
from atomizer_dask.execution.failure import Failure

# What the Go console and the Go agent sent and accepted, byte for byte.
REQUEST = (
    b'{"senderid":"526f8561-13e0-4364-838e-7a3d388e1d43","id":"9087d393-a893-46d2-8b71-1b5'
    b'287fe9ce6","atomid":"montecarlopi.MonteCarlo","payload":{"tosses":1000}}'
)
CHILD = (
    b'{"senderid":"05ac1063-0ec7-4c4f-8c37-d3fa12cdc920","id":"4e6d04ca-5e6c-4458-bc3e-91a'
    b'ca0f75aff","atomid":"montecarlopi.Toss"}'
)
REPLY = (
    b'{"electronId":"56eb140f-6ddf-4941-b498-82532170cf57","atomId":"montecarlopi.Toss","s'
    b'tarttime":"2026-11-24T05:57:48.318439203Z","endtime":"2026-11-24T05:57:48.318481676Z'
    b'","result":{"value":0}}'
)
SPAWNER = (
    b'{"electronId":"b3860cbc-0a5a-45d2-98ee-e0228d4c2650","atomId":"montecarlopi.MonteCar'
    b'lo","starttime":"2026-11-24T05:57:48.320839921Z","endtime":"2026-11-24T05:57:48.4223'
    b'88796Z","result":{"in":792,"tosses":1000,"errors":0,"pi":3.168}}'
)
BASE64 = (
    b'{"senderid":"41844b55-1fd6-4fb1-b2fc-294cbe852f29","id":"8a65b3ae-0dd8-4f04-91fd-392'
    b'cc54a6d0b","atomid":"montecarlopi.MonteCarlo","payload":"eyJ0b3NzZXMiOiAxMDAwfQ=="}'
)
FAILED = (
    b'{"electronId":"7962a08f-9ec9-451b-877e-f69f1cc3b3ec","atomId":"montecarlopi.MonteCar'
    b'lo","starttime":"2026-11-24T05:57:48.521162531Z","endtime":"2026-11-24T05:57:48.5211'
    b'66057Z","error":"MCBpcyBub3QgYSB2YWxpZCB0b3Nz","result":null}'
)
REFUSED = (
    b'{"electronId":"59d781dc-e7ad-4887-bf48-eefdd048b81b","atomId":"","starttime":"2026-1'
    b'1-24T05:57:48.524649779Z","endtime":"2026-11-24T05:57:48.524649869Z","error":"eyJldm'
    b"VudCI6eyJtZXNzYWdlIjoiaW52YWxpZCBlbGVjdHJvbiIsImVsZWN0cm9uSUQiOiI1OWQ3ODFkYy1lN2FkLT"
    b"Q4ODctYmY0OC1lZWZkZDA0OGI4MWIiLCJhdG9tSUQiOiIiLCJjb25kdWN0b3JJRCI6ImFtcXAucmFiYml0bX"
    b'EifSwiaW50ZXJuYWwiOm51bGx9","result":null}'
)

CAPTURED_ELECTRONS = [REQUEST, CHILD, BASE64]
CAPTURED_PROPERTIES = [REPLY, SPAWNER, FAILED, REFUSED]
CAPTURED = CAPTURED_ELECTRONS + CAPTURED_PROPERTIES
NOW = datetime(2026, 11, 24, 5, 57, 48, 318439, UTC)
LARGE = 16 * 2**20

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS | st.sampled_from(["abcd", "1234", "MQ==", "null", "", '"', '"abcd"', "e30="]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def body_of(payload='{"tosses":1}', **members):
    known = {"senderid": '"s"', "id": '"e"', "atomid": '"a"', "payload": payload} | members
    return ("{" + ",".join(f'"{name}":{value}' for name, value in known.items()) + "}").encode()


def reply_of(**members):
    times = dict.fromkeys(("starttime", "endtime"), '"2026-11-24T05:57:48Z"')
    known = {"electronId": '"e"', "atomId": '"a"', **times, "result": "1"} | members
    return ("{" + ",".join(f'"{name}":{value}' for name, value in known.items()) + "}").encode()


def sent(payload, **options):
    return encode_electron(Electron("a", payload, id="e", **options), "s")


def raw_payload(body):
    assert body.startswith(b'{"senderid":"s","id":"e","atomid":"a","payload":')
    return body.partition(b'"payload":')[2][:-1]


def go_payload(raw):
    """What a Go agent makes of the payload: it cuts off quotes and tries base64."""
    try:
        bare = raw.strip(b'"')
        if len(bare) % 4:
            return raw
        return binascii.a2b_base64(bare, strict_mode=True)
    except binascii.Error:
        return raw


def failed(kind="exception", type="ValueError", message="bad", traceback="", tier=""):
    error = Failure(kind, type, message, traceback, None, tier).error("e", "a", attempt=2)
    return Properties("e", "a", NOW, NOW, error, worker="tcp://w", attempts=2)


def told(body):
    return base64.b64decode(json.loads(body)["error"]).decode()


def strict(body):
    def refuse(name):
        raise AssertionError(name)

    return json.loads(body.decode(), parse_constant=refuse)


# ---- captured ----


def test_request_of_a_go_console_is_read_and_written_again_the_same():
    electron = decode_electron(REQUEST)
    assert electron.payload == {"tosses": 1000}
    assert electron.atom_id == "montecarlopi.MonteCarlo"
    assert electron.id == "9087d393-a893-46d2-8b71-1b5287fe9ce6"
    assert electron.sender_id == "526f8561-13e0-4364-838e-7a3d388e1d43"
    assert encode_electron(electron, electron.sender_id) == REQUEST


def test_request_without_payload_is_read_and_written_again_the_same():
    electron = decode_electron(CHILD)
    assert electron.payload is None
    assert encode_electron(electron, electron.sender_id) == CHILD


def test_payload_in_base64_is_read():
    assert decode_electron(BASE64).payload == {"tosses": 1000}


@pytest.mark.parametrize(
    ("body", "result"),
    [(REPLY, {"value": 0}), (SPAWNER, {"in": 792, "tosses": 1000, "errors": 0, "pi": 3.168})],
)
def test_reply_of_a_go_agent_is_read_and_written_again_but_for_its_nanoseconds(body, result):
    properties = decode_properties(body)
    assert properties.result == result
    assert properties.error is None
    assert properties.start.tzinfo is UTC
    times = json.loads(body)
    again = encode_properties(properties)
    for name in ("starttime", "endtime"):
        cut = (times[name][:26].rstrip("0") + "Z").encode()
        body = body.replace(times[name].encode(), cut)
    assert again == body


def test_plain_error_of_a_go_agent_is_read_and_written_again():
    properties = decode_properties(FAILED)
    error = properties.error
    assert (error.kind, error.message, error.type) == ("exception", "0 is not a valid toss", "")
    assert error.event.message == "0 is not a valid toss"
    assert error.event.electron_id == properties.electron_id
    assert b'"error":"MCBpcyBub3QgYSB2YWxpZCB0b3Nz","result":null}' in encode_properties(properties)


def test_error_of_the_go_runtime_is_read_and_written_again():
    properties = decode_properties(REFUSED)
    error = properties.error
    assert error.kind == "rejected"
    assert properties.atom_id == ""
    assert error.event.message == "invalid electron"
    assert error.event.electron_id == properties.electron_id
    assert error.event.conductor_id == "amqp.rabbitmq"
    assert json.loads(encode_properties(properties))["error"] == json.loads(REFUSED)["error"]


# ---- requests ----


def test_members_are_in_the_order_of_go_and_compact():
    electron = Electron("a", [1], id="e", timeout="1.5s", copy_state=True)
    assert encode_electron(electron, "s") == (
        b'{"senderid":"s","id":"e","atomid":"a","timeout":1500000000,"copystate":true,"payload":[1]}'
    )


@pytest.mark.parametrize(
    ("timeout", "nanoseconds"),
    [
        (1, 10**9),
        ("2 minutes", 120 * 10**9),
        (timedelta(milliseconds=3), 3 * 10**6),
        (1e-12, 1),
        (1e300, 2**63 - 1),
    ],
)
def test_timeout_is_whole_nanoseconds(timeout, nanoseconds):
    assert json.loads(sent(None, timeout=timeout))["timeout"] == nanoseconds


def test_timeout_without_end_is_none():
    assert "timeout" not in json.loads(sent(None, timeout=float("inf")))


def test_timeout_and_copystate_are_read():
    electron = decode_electron(body_of(timeout="1500000000", copystate="true"))
    assert (electron.timeout, electron.copy_state) == (1.5, True)
    electron = decode_electron(body_of(timeout="null", copystate="null"))
    assert (electron.timeout, electron.copy_state) == (None, False)


@pytest.mark.parametrize("timeout", ["1.0", "1e9", "true", '"1s"', "[1]", str(2**63), "{}"])
def test_timeout_that_go_would_not_read_is_an_error(timeout):
    with pytest.raises(WireError, match="timeout must be a whole number of nanoseconds"):
        decode_electron(body_of(timeout=timeout))


@pytest.mark.parametrize("timeout", ["0", "-1", str(-(2**63))])
def test_expired_electron_can_be_answered(timeout):
    with pytest.raises(ExpiredError, match="its time was up before it was received") as caught:
        decode_electron(body_of(timeout=timeout))
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.sender_id, error.id, error.atom_id) == ("s", "e", "a")
        assert error.event.electron_id == "e"


@pytest.mark.parametrize("value", ["1", '"true"', "[]"])
def test_copystate_of_another_type_is_an_error(value):
    with pytest.raises(WireError, match="copystate must be true or false"):
        decode_electron(body_of(copystate=value))


def test_keys_are_read_in_any_case():
    body = b'{"SenderID":"s","ID":"e","AtomID":"a","TIMEOUT":5,"CopyState":true,"Payload":7}'
    electron = decode_electron(body)
    assert (electron.sender_id, electron.id, electron.atom_id) == ("s", "e", "a")
    assert (electron.payload, electron.copy_state, electron.timeout) == (7, True, 5e-9)


def test_keys_are_folded_as_go_folds_them():
    assert decode_electron('{"\u017fenderid":"s","id":"e","atomid":"a"}'.encode()).sender_id == "s"
    assert decode_electron(b'{"\\u017fenderid":"s","id":"e","atomid":"a"}').sender_id == "s"
    odd = '{"senderid":"s","id":"e","atomid":"a","copy\ufb06ate":true}'
    assert decode_electron(odd.encode()).copy_state is False


def test_last_of_several_keys_wins_in_any_case():
    body = b'{"senderid":"s","id":"1","ID":"2","id":"3","atomid":"a","Payload":1,"payload":2}'
    electron = decode_electron(body)
    assert (electron.id, electron.payload) == ("3", 2)


def test_null_leaves_a_text_and_takes_a_payload():
    body = b'{"senderid":"s","id":"1","id":null,"atomid":"a","payload":2,"payload":null}'
    electron = decode_electron(body)
    assert (electron.id, electron.payload) == ("1", None)


def test_unknown_keys_are_ignored():
    electron = decode_electron(body_of(priority="5", nested='{"senderid":"other"}'))
    assert electron.sender_id == "s"


@pytest.mark.parametrize("name", ["senderid", "id", "atomid"])
@pytest.mark.parametrize("value", ['""', "5", "null", "[]", "true"])
def test_ids_must_be_texts_that_are_not_empty(name, value):
    with pytest.raises(WireError, match=f"{name} must be a"):
        decode_electron(body_of(**{name: value}))


def test_sender_longer_than_a_queue_name_is_an_error():
    assert decode_electron(body_of(senderid=f'"{"q" * 255}"')).sender_id == "q" * 255
    for name in ("q" * 256, "ä" * 128):
        body = body_of(senderid=f'"{name}"')
        with pytest.raises(WireError, match="name of the queue"):
            decode_electron(body)
        assert recognise(body) is None
        with pytest.raises(WireError, match="name of the queue"):
            encode_electron(Electron("a"), name)


@pytest.mark.parametrize("value", ["", None, 5])
def test_electron_is_not_sent_where_nobody_could_answer(value):
    with pytest.raises(WireError, match="name of the queue"):
        encode_electron(Electron("a"), value)


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"null", b"[]", b'"text"', b"5", b"{", b"{}}", b'{"a":1}x', b"{} {}", b"{'a':1}",
        b'{"a":01}', b'{"a":.5}', b'{"a":1.}', b'{"a":+1}', b'{"a":0x1}', b'{"a":1,}',
        b'{"a":[1,]}',
        b'{"a":"\x01"}', b'{"a":"\\x"}', b'\xef\xbb\xbf{}', b"{\xff}", b"\xff\xfe{\x00}\x00",
        b'{"a":tru}', b'{"a"}', b"\x00", b"{}\x00",
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_an_error(body):
    for read in (decode_electron, decode_properties):
        with pytest.raises(WireError, match=r"cannot be read|must be"):
            read(body)
    assert recognise(body) is None


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_what_json_does_not_know_is_not_read(word):
    with pytest.raises(WireError, match=f"{word}, which is not JSON"):
        decode_electron(body_of(word))
    with pytest.raises(WireError, match="not JSON"):
        decode_properties(reply_of(result=f"[{word}]"))


def test_white_space_around_is_allowed():
    assert decode_electron(b" \r\n\t" + body_of() + b"\n").id == "e"


def test_numbers_that_python_cannot_hold_are_an_error():
    with pytest.raises(WireError, match="a number that cannot be read"):
        decode_electron(body_of("1" * 5000))
    inner = base64.b64encode(b"1" * 5001).decode()
    with pytest.raises(WireError, match="in base64 cannot be read"):
        decode_electron(body_of(f'"{inner}"'))
    for number in ("1e999", "-1e999", "1" * 400 + ".0"):
        with pytest.raises(WireError, match="more than a float can hold"):
            decode_electron(body_of(number))
    with pytest.raises(InvalidPayloadError, match="4300"):
        sent([10**5000])


def test_errors_do_not_carry_the_body():
    body = body_of()[:-1] + b"secret" * 1000
    with pytest.raises(WireError) as caught:
        decode_electron(body)
    assert len(str(caught.value)) < 300
    assert "secret" not in repr(vars(caught.value))
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "at character" in str(caught.value)


# ---- payloads ----


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ("eyJ0b3NzZXMiOiAxMDAwfQ==", {"tosses": 1000}),
        ("MTIz", 123),
        ("bnVsbA==", None),
        ("IiI=", ""),
        ("Ik1USXoi", "MTIz"),
        ("", ""),
        ("plain", "plain"),
        ("abcd", "abcd"),
        ("1234", "1234"),
        ("MTIz=", "MTIz="),
        ("MTI", "MTI"),
        ("MTIz\\n", "MTIz\n"),
        ("MT-_", "MT-_"),
        ("ZZZZ====", "ZZZZ===="),
        ("TmFO", "TmFO"),  # NaN
        ("e30=", {}),
        ("ÄÖÜß", "ÄÖÜß"),
    ],
)
def test_texts_are_payloads_or_base64_of_them(text, payload):
    assert decode_electron(body_of(f'"{text}"')).payload == payload


@pytest.mark.parametrize(
    ("payload", "raw"),
    [
        (1234, b'"MTIzNA=="'),
        (12345, b"12345"),
        (-234, b"-234"),
        (True, b'"dHJ1ZQ=="'),
        (False, b"false"),
        (float("nan"), b'"bnVsbA=="'),
        ("abcd", b'"ImFiY2Qi"'),
        ("abcde", b'"abcde"'),
        ("", b'"IiI="'),
        ("ab==", b'"ImFiPT0i"'),
        ("ab=c", b'"ab=c"'),
        ("ab/+", b'"ImFiLysi"'),
        ("ab-_", b'"ab-_"'),
        ('abc"', b'"abc\\""'),
        ("MTIz", b'"Ik1USXoi"'),
        (1e5, b"100000.0"),
        (1e22, b"1e+22"),
        (["abcd"], b'["abcd"]'),
        ({"abcd": 1}, b'{"abcd":1}'),
        ("ä", '"ä"'.encode()),
    ],
)
def test_what_go_would_take_for_base64_is_sent_as_base64(payload, raw):
    assert raw_payload(sent(payload)) == raw


@given(JSON)
@example("////")
@example(1000000000000000)
def test_a_go_agent_reads_every_payload_right(payload):
    if payload is not None:
        assert strict(go_payload(raw_payload(sent(payload)))) == payload


@given(JSON, TEXTS.filter(bool), st.booleans(), st.none() | st.integers(1, 2**53))
def test_electrons_come_back(payload, name, copy_state, nanoseconds):
    timeout = None if nanoseconds is None else nanoseconds / 1e9
    electron = Electron(name, payload, id=name, timeout=timeout, copy_state=copy_state)
    body = encode_electron(electron, "replies")
    order = ["senderid", "id", "atomid", "timeout", "copystate", "payload"]
    keys = list(strict(body))
    assert keys == [key for key in order if key in keys]
    assert decode_electron(body) == replace_sender(electron)
    assert repr(decode_electron(body).payload) == repr(payload)


def replace_sender(electron):
    return Electron(
        electron.atom_id, electron.payload, id=electron.id, sender_id="replies",
        timeout=electron.timeout, copy_state=electron.copy_state,
    )  # fmt: skip


@given(JSON)
def test_results_come_back_raw(result):
    body = encode_properties(Properties("e", "a", NOW, NOW, result=result))
    order = ["electronId", "atomId", "starttime", "endtime", "result"]
    assert list(strict(body)) == order
    properties = decode_properties(body)
    assert properties == Properties("e", "a", NOW, NOW, result=result)
    assert repr(properties.result) == repr(result)


def test_halves_of_surrogate_pairs_become_replacements():
    for text in (r"\ud800", r"\udc00", r"\uD83D"):
        assert decode_electron(body_of(f'"{text}!"')).payload == "\ufffd!"
    assert decode_electron(body_of(r'"\ud800\ud83d\ude00"')).payload == "\ufffd\U0001f600"
    assert decode_electron(body_of(r'"\ud83d\ude00"')).payload == "\U0001f600"
    assert decode_electron(body_of(r'"\\ud800"')).payload == r"\ud800"
    assert decode_electron(body_of(r'{"\ud800":1}')).payload == {"\ufffd": 1}
    assert decode_electron(body_of(id=r'"\udfff"')).id == "\ufffd"
    inner = base64.b64encode(rb'["\ud800"]').decode()
    assert decode_electron(body_of(f'"{inner}"')).payload == ["\ufffd"]
    assert strict(sent({"a\udc00": "\ud800"}))["payload"] == {"a\ufffd": "\ufffd"}


def test_bytes_that_are_not_utf8_become_one_replacement_each():
    body = body_of('"?"').replace(b"?", b"\xe2\x82A\xff\xed\xa0\x80")
    assert decode_electron(body).payload == "\ufffd\ufffdA\ufffd\ufffd\ufffd\ufffd"


def test_text_is_sent_as_utf8():
    assert '"payload":["ä€😀"]'.encode() in sent(["ä€😀"])


def test_payload_without_json_form_names_the_path_and_the_electron():
    with pytest.raises(
        InvalidPayloadError, match=r'payload\["a"\]\[3\] is of type object, which'
    ) as it:
        sent({"a": [1, 2, 3, object()]})
    assert it.value.event.electron_id == "e"
    assert str(pickle.loads(pickle.dumps(it.value))) == str(it.value)


def test_result_without_json_form_is_an_error_about_its_electron():
    with pytest.raises(WireError, match=r'result\["x"\] is of type object') as caught:
        encode_properties(Properties("e", "a", NOW, NOW, result={"x": object()}))
    assert caught.value.event.electron_id == "e"


# ---- limits ----


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth_is_limited_alike_both_ways():
    body = sent(nested(64))
    assert decode_electron(body).payload == nested(64)
    with pytest.raises(InvalidPayloadError, match="more than 64 levels deep"):
        sent(nested(65))
    deeper = body.replace(b"[1]", b"[[1]]")
    with pytest.raises(WireError, match="levels deep"):
        decode_electron(deeper)
    with pytest.raises(WireError, match="levels deep"):
        encode_properties(Properties("e", "a", NOW, NOW, result=nested(65)))
    assert decode_electron(deeper, Limits(depth=65)).payload == nested(65)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_depth_of_ten_thousand_is_an_error(opening):
    for limits in (Limits(), Limits(depth=10**6)):
        body = body_of((opening * 10_000).decode())
        with pytest.raises(WireError):
            decode_electron(body, limits)
    assert recognise(body) == UnreadSender("s", "e", "a")
    inner = base64.b64encode(b"[" * 10_000 + b"]" * 10_000).decode()
    with pytest.raises(WireError, match="levels deep"):
        decode_electron(body_of(f'"{inner}"'))


def test_depth_beyond_what_python_recurses_is_an_error():
    limits = Limits(depth=10**6)
    with pytest.raises(InvalidPayloadError, match="deep"):
        encode_electron(Electron("a", nested(100_000)), "s", limits)
    with pytest.raises(WireError, match="too deep"):
        decode_electron(body_of("[" * 100_000 + "]" * 100_000), limits)


def test_brackets_side_by_side_or_in_texts_are_not_depth():
    payload = [[[]]] * 100 + ["[[[[" * 100, '\\"{{{{' * 100, {"[" * 100: "\\"}]
    assert decode_electron(sent(payload)).payload == payload


def test_size_is_limited_both_ways():
    limits = Limits(bytes=100)
    with pytest.raises(InvalidPayloadError, match="bytes, more than the limit of 100;"):
        encode_electron(Electron("a", "x" * 100), "s", limits)
    with pytest.raises(WireError, match="1,000 bytes, more than the limit of 100"):
        decode_electron(b"x" * 1000, limits)
    with pytest.raises(WireError, match="bytes, more than the limit of 100"):
        encode_properties(Properties("e", "a", NOW, NOW, result="x" * 100), limits=limits)
    with pytest.raises(WireError, match="bytes, more than the limit of 100"):
        decode_properties(reply_of(result='"' + "x" * 100 + '"'), limits=limits)


@pytest.mark.parametrize(
    "piece",
    [b"[", b"{", b'"', b"\\", b'\\"', b'"\\', b"[]", b'{"":', b'["', b'"senderid":"', b"\\ud800",
     b'"senderid" ', b"\xff", b"\xed\xa0", b'"senderid":"\\', b"1", b" ", b"-", b'["\\'],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_sixteen_mebibytes_of_rubbish_are_an_error(piece):
    rubbish = (piece * (LARGE // len(piece) + 1))[:LARGE]
    for read in (decode_electron, decode_properties):
        with pytest.raises(WireError):
            read(rubbish)
    recognise(rubbish)


# ---- rubbish ----


def never_anything_else(body, headers=None):
    with contextlib.suppress(WireError):
        decode_electron(body)
    with contextlib.suppress(WireError):
        decode_properties(body, headers)
    sender = recognise(body)
    assert sender is None or all(type(text) is str for text in sender)
    assert sender is None or sender.sender_id


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_wire_errors_of_any_bytes(body):
    never_anything_else(body)


MUTATION = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "duplicate", "replace"]),
    st.integers(0, 400), st.integers(0, 40),
    st.sampled_from([b'"', b"{", b"}", b"[", b"\\u", b"\xff", b"null", b"NaN", b":", b",", b"-1",
                     b"1e999", b'\\ud800', b'"id":5,', b'"error":"e30=",', b'"timeout":-1,']),
)  # fmt: skip


def mutated(body, mutations):
    for how, start, length, piece in mutations:
        start %= len(body) + 1
        part = body[start : start + length]
        rest = body[start + length :]
        body = (
            body[:start]
            + {
                "flip": bytes(byte ^ (1 << (length % 8)) for byte in part[:1]) + part[1:],
                "cut": b"",
                "insert": piece + part,
                "duplicate": part + part,
                "replace": piece,
            }[how]
            + rest
        )
    return body


@given(st.sampled_from(CAPTURED), st.lists(MUTATION, min_size=1, max_size=5))
def test_nothing_but_wire_errors_of_damaged_messages(body, mutations):
    never_anything_else(mutated(body, mutations))


@given(st.sampled_from(["senderid", "id", "atomid", "timeout", "copystate", "payload"]), JSON)
def test_nothing_but_wire_errors_of_members_of_any_type(name, value):
    never_anything_else(body_of(**{name: json.dumps(value)}))


@given(st.sampled_from(["electronId", "atomId", "starttime", "endtime", "error", "result"]), JSON)
def test_nothing_but_wire_errors_of_replies_with_members_of_any_type(name, value):
    never_anything_else(reply_of(**{name: json.dumps(value)}))


# ---- recognise ----


@pytest.mark.parametrize(
    ("body", "sender"),
    [
        (b'{"senderid":"s","id":"e","atomid":5}', UnreadSender("s", "e", "")),
        (b'{"SENDERID":"s"}', UnreadSender("s", "", "")),
        (b'{"senderid":"s","id":"e","atomid":"a","payload":{"to', UnreadSender("s", "e", "a")),
        (b'{"senderid" : "s" ,, "ID":"e"', UnreadSender("s", "e", "")),
        (b'{"senderid":"a\\"\\u00e4","id":NaN', UnreadSender('a"ä', "", "")),
        (b'{"payload":{"senderid":"other"}}', None),
        (b'{"senderid":""', None),
        (b'{"senderid":"unended', None),
        (b'{"senderid":5,"id":"e"}', None),
        (b"rubbish", None),
    ],
)
def test_sender_is_recognised_where_it_can_be(body, sender):
    assert recognise(body) == sender


@pytest.mark.parametrize("filler", [b"x" * (LARGE + 1), b"[" * LARGE])
def test_sender_is_recognised_in_what_is_too_large_or_too_deep(filler):
    known = b'{"senderid":"s","id":"e","atomid":"a","payload":'
    assert recognise(known + filler) == UnreadSender("s", "e", "a")
    assert recognise(b'{"payload":' + filler + b"," + known[1:]) == UnreadSender("s", "e", "a")


# ---- replies ----


def test_reply_of_a_success_says_nothing_in_its_headers():
    assert details_of(Properties("e", "a", NOW, NOW, result=1, worker="tcp://w")) == {}


def test_exception_is_its_text_and_comes_back_by_its_headers():
    properties = failed(traceback="Traceback ...")
    body = encode_properties(properties)
    assert told(body) == "bad"
    assert json.loads(body)["result"] is None
    headers = details_of(properties)
    assert headers == {
        "atomizer-kind": "exception",
        "atomizer-type": "ValueError",
        "atomizer-traceback": "Traceback ...",
        "atomizer-attempts": 2,
        "atomizer-worker": "tcp://w",
    }
    again = decode_properties(body, headers)
    assert again.worker == "tcp://w"
    assert again.attempts == again.error.attempt == 2
    names = ("kind", "type", "message", "traceback", "worker", "tier")
    facts = [getattr(again.error, name) for name in names]
    assert facts == ["exception", "ValueError", "bad", "Traceback ...", "tcp://w", ""]
    assert again.error.event == Event("ValueError: bad", "e", "a", level="error")
    assert str(pickle.loads(pickle.dumps(again)).error) == str(again.error)


@pytest.mark.parametrize(
    "kind", ["timeout", "killed", "cancelled", "unknown_atom", "invalid_payload", "rejected"]
)
def test_failures_of_the_runtime_are_events(kind):
    properties = failed(kind, "TimeoutError", "after 1 s", tier="kill" if kind == "timeout" else "")
    body = encode_properties(properties, "amqp.here")
    assert told(body) == (
        '{"event":{"message":"TimeoutError: after 1 s","electronID":"e","atomID":"a",'
        '"conductorID":"amqp.here"},"internal":null}'
    )
    again = decode_properties(body, details_of(properties))
    assert (again.error.kind, again.error.message) == (kind, "after 1 s")
    assert again.error.tier == properties.error.tier
    assert again.error.event.conductor_id == "amqp.here"
    assert decode_properties(body).error.kind == "rejected"


def test_error_that_is_of_no_electron_is_an_event():
    properties = Properties("e", "a", NOW, NOW, AtomizerError("the node is closing"))
    assert json.loads(told(encode_properties(properties)))["event"]["message"] == (
        "the node is closing"
    )
    assert details_of(properties) == {"atomizer-attempts": 1}


@pytest.mark.parametrize("message", ["", '{"event":{"message":"x"}}', " {}", "null", "{"])
def test_exceptions_whose_text_go_would_misread_are_events(message):
    body = encode_properties(failed(message=message))
    event = json.loads(told(body))["event"]
    assert event["message"] == f"ValueError: {message}"
    properties = failed(message=message)
    again = decode_properties(body, details_of(properties))
    assert (again.error.kind, again.error.message) == ("exception", message)


@given(TEXTS | st.text(), st.sampled_from(["exception", "timeout"]))
def test_errors_come_back(message, kind):
    properties = failed(kind, message=message)
    again = decode_properties(encode_properties(properties), details_of(properties))
    assert again.error.message == "".join(
        "\ufffd" if "\ud800" <= character <= "\udfff" else character for character in message
    )
    assert again.error.kind == kind


def test_errors_of_any_length_can_be_answered():
    properties = failed(type="T" * 10**6, message="m" * 10**7, traceback="ä" * 10**6 + "end")
    assert len(encode_properties(properties)) < 200_000
    headers = details_of(properties)
    assert sum(len(str(value).encode()) for value in headers.values()) < 32_000
    assert headers["atomizer-traceback"].endswith("end")


@pytest.mark.parametrize("error", ["not base64!", "0 is not a valid toss", "abc"])
def test_error_that_is_not_base64_is_the_text_itself(error):
    properties = decode_properties(reply_of(error=json.dumps(error)))
    assert properties.error.message == error
    assert properties.result is None


@pytest.mark.parametrize(
    "text", ['{"event":null}', '{"event":{"message":5}}', "{", '{"other":1}', "[]", "{NaN}"]
)
def test_error_that_is_no_event_is_the_text_itself(text):
    coded = base64.b64encode(text.encode()).decode()
    error = decode_properties(reply_of(error=f'"{coded}"')).error
    assert (error.kind, error.message) == ("exception", text)


def test_event_of_an_error_is_read_in_any_case():
    text = '{"Event":{"MESSAGE":"lost","electronid":"E"},"internal":null}'
    coded = base64.b64encode(text.encode()).decode()
    event = decode_properties(reply_of(error=f'"{coded}"')).error.event
    assert (event.message, event.electron_id) == ("lost", "E")


def test_error_of_nothing_is_none_and_an_empty_one_is_one():
    assert decode_properties(reply_of(error="null")).error is None
    assert decode_properties(reply_of(error='""')).error.message == ""
    with pytest.raises(WireError, match="error must be a text"):
        decode_properties(reply_of(error="5"))


ANYTHING = st.none() | st.booleans() | st.integers() | st.binary() | st.text() | st.lists(st.none())


@given(
    st.none() | st.integers()
    | st.dictionaries(
        st.sampled_from([f"atomizer-{name}" for name in
                         ("kind", "type", "traceback", "tier", "attempts", "worker", "else")]),
        ANYTHING,
    )
)  # fmt: skip
def test_headers_of_any_sort_do_no_harm(headers):
    for body in (FAILED, REFUSED):
        error = decode_properties(body, headers).error
        assert isinstance(error, ElectronError)
        assert error.attempt >= 1
        repr(error)
        assert error._repr_html_()


def test_headers_that_make_no_sense_are_ignored():
    headers = {
        "atomizer-kind": "ended", "atomizer-type": b"x", "atomizer-attempts": True,
        "atomizer-worker": 5, "atomizer-tier": "prayer", "atomizer-traceback": "x" * 10**6,
    }  # fmt: skip
    error = decode_properties(FAILED, headers).error
    assert (error.kind, error.type, error.attempt, error.worker, error.tier) == (
        "exception", "", 1, "", "",
    )  # fmt: skip
    assert len(error.traceback) == 16 * 2**10


# ---- times ----


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-24T05:57:48.318439203Z", NOW),
        ("2026-11-24T05:57:48.318439+00:00", NOW),
        ("2026-11-24T07:57:48.318439999+02:00", NOW),
        ("2026-11-23T23:27:48.318439-06:30", NOW),
        ("2026-11-24T05:57:48Z", NOW.replace(microsecond=0)),
        ("2026-11-24T05:57:48.3Z", NOW.replace(microsecond=300_000)),
        ("2026-11-24T05:57:48.3184392Z", NOW),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_times_are_read(text, moment):
    properties = decode_properties(reply_of(starttime=f'"{text}"'))
    assert properties.start == moment
    assert properties.start.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-11-24", "2026-11-24T05:57:48", "20261124T055748Z", "2026-13-24T05:57:48Z",
     "2026-11-24T25:57:48Z", "0001-01-01T00:00:00+05:00", "0000-01-01T00:00:00Z",
     "2026-W48-2T05:57:48Z", "2026-11-24T05:57:48+0500", "2026-11-24T05:57:48.Z",
     "\u0662026-11-24T05:57:48Z", "2026-11-24T05:57:48Z\n"],
)  # fmt: skip
def test_times_that_are_none_are_an_error(text):
    with pytest.raises(WireError, match="starttime must be a time as of RFC 3339"):
        decode_properties(reply_of(starttime=json.dumps(text)))


def test_missing_times_are_the_zero_time_of_go():
    properties = decode_properties(b'{"electronId":"e"}')
    assert properties.start == properties.end == datetime(1, 1, 1, tzinfo=UTC)
    assert properties.atom_id == ""


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOW, "2026-11-24T05:57:48.318439Z"),
        (NOW.replace(microsecond=0), "2026-11-24T05:57:48Z"),
        (NOW.replace(microsecond=120_000), "2026-11-24T05:57:48.12Z"),
        (NOW.astimezone(timezone(timedelta(hours=9))), "2026-11-24T05:57:48.318439Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00Z"),
    ],
)
def test_times_are_written_as_go_writes_them(moment, text):
    body = encode_properties(Properties("e", "a", moment, moment))
    assert json.loads(body)["starttime"] == json.loads(body)["endtime"] == text


def test_times_without_zone_are_an_error():
    with pytest.raises(WireError, match="time zone"):
        encode_properties(Properties("e", "a", datetime(2026, 1, 1), NOW))


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_come_back(moment):
    body = encode_properties(Properties("e", "a", moment, moment))
    assert decode_properties(body).start == moment


def test_results_of_numpy_are_numbers():
    result = {"value": np.int64(0), "rate": np.float64("nan"), "xs": np.arange(2)}
    body = encode_properties(Properties("e", "a", NOW, NOW, result=result))
    assert body.endswith(b'"result":{"value":0,"rate":null,"xs":[0,1]}}')


def test_keys_of_replies_are_read_in_any_case():
    body = b'{"ELECTRONID":"e","atomid":"a","StartTime":"2026-01-01T00:00:00Z","Result":[1]}'
    properties = decode_properties(body)
    assert (properties.electron_id, properties.atom_id, properties.result) == ("e", "a", [1])


@pytest.mark.parametrize("value", ['""', "5", "null"])
def test_reply_to_no_electron_is_an_error(value):
    with pytest.raises(WireError, match="electronId must be a non-empty text"):
        decode_properties(reply_of(electronId=value))
