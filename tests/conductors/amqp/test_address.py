import pickle
import traceback
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask.conductors.amqp.address import Address, Tls
from atomizer_dask.conductors.amqp.conductor import AmqpRoute
from atomizer_dask.conductors.amqp.wire.message_members import Limits
from atomizer_dask.execution.batch import Origin
from atomizer_dask.execution.packing import pack

SECRET = "s3cr3t-pässwörd"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("URL", "USER", "PASSWORD"):
        monkeypatch.delenv(f"ATOMIZER_AMQP_{name}", raising=False)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://localhost", "amqp://localhost:5672/"),
        ("amqps://localhost", "amqps://localhost:5671/"),
        ("amqp://localhost/", "amqp://localhost:5672/"),
        ("amqp://localhost/%2F", "amqp://localhost:5672/"),
        ("amqp://localhost/lab", "amqp://localhost:5672/lab"),
        ("amqp://u:p@HOST.example:1234/lab", "amqp://host.example:1234/lab"),
        ("amqp://u:p@[::1]:5672/", "amqp://[::1]:5672/"),
        ("AMQP://localhost", "amqp://localhost:5672/"),
    ],
)
def test_shows_where_it_is_without_who_we_are(url, shown):
    assert str(Address.of(url)) == shown


def test_who_we_are_may_have_any_characters():
    address = Address.of("amqp://us%40er:%2F%3F%23%5B%25%3A@host/v%2Fhost%40")
    assert (address.user, address.password, address.vhost) == ("us@er", "/?#[%:", "v/host@")


@given(user=st.text(min_size=1), password=st.text(), vhost=st.text(min_size=1))
def test_whatever_is_quoted_is_read_as_it_was(user, password, vhost):
    names = [quote(text, safe="", errors="surrogatepass") for text in (user, password, vhost)]
    address = Address.of("amqp://{}:{}@host/{}".format(*names))
    if (user + password + vhost).isprintable():
        assert (address.user, address.password, address.vhost) == (user, password, vhost)


def test_what_is_missing_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("ATOMIZER_AMQP_URL", "amqp://there/lab")
    monkeypatch.setenv("ATOMIZER_AMQP_USER", "someone")
    monkeypatch.setenv("ATOMIZER_AMQP_PASSWORD", "%41 as it is")
    address = Address.of(None)
    assert (address.host, address.vhost) == ("there", "lab")
    assert (address.user, address.password) == ("someone", "%41 as it is")
    address = Address.of("amqp://me:mine@here")
    assert (address.host, address.user, address.password) == ("here", "me", "mine")


def test_is_a_guest_where_nobody_says_who_we_are():
    address = Address.of("amqp://localhost")
    assert (address.user, address.password) == ("guest", "guest")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "ATOMIZER_AMQP_URL is not set"),
        ("", "begins with amqp://"),
        ("localhost", "begins with amqp://"),
        ("localhost:5672", "begins with amqp://"),
        ("http://u:{}@localhost", "begins with amqp://.*got http://"),
        ("amqp://", "names no host"),
        ("amqp:///lab", "names no host"),
        ("amqp://u:{}@", "names no host"),
        ("amqp://u:{}@host:port", "no valid host and port"),
        ("amqp://u:{}@host:70000", "no valid host and port"),
        ("amqp://u:{}@host:-1", "no valid host and port"),
        ("amqp://u:{}@[::1", "no valid host and port"),
        ("amqp://u:{}@host:0", "no valid host and port"),
        ("amqp://u:{}@host/?heartbeat=0", "has options"),
        ("amqp://u:{}@host/#lab", "has options"),
        ("amqp://u:{}?@host", "no valid host and port"),
        ("amqp://u:{}#@host", "no valid host and port"),
        ("amqp://u:{}/@host", "no valid host and port"),
        ("amqp://u:12/{}@host/lab", "%2F"),
        ("amqp://u/{}@host/lab", "%2F"),
    ],
)  # fmt: skip
def test_a_wrong_url_is_refused_and_its_password_not_told(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        Address.of(url and url.format(SECRET))
    told = "".join(traceback.format_exception(caught.value))
    assert SECRET not in told


def test_a_url_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="must be text, got int"):
        Address.of(5672)


def test_certificates_are_for_encrypted_connections():
    with pytest.raises(ValueError, match="certificates are for amqps://"):
        Address.of("amqp://host", Tls(ca_file="ca.pem"))


def test_shows_no_secret_anywhere_and_takes_it_along():
    address = Address.of(f"amqps://someone:{quote(SECRET)}@host/lab", Tls(ca_file="ca.pem"))
    again = pickle.loads(pickle.dumps(address))
    assert again == address
    assert again.password == SECRET
    for shown in (repr(again), str(again), f"{again}", repr([again])):
        assert SECRET not in shown
        assert "someone" not in shown


def test_a_certificate_that_is_not_there_is_told(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        Tls(ca_file=str(tmp_path / "missing.pem")).context()


def test_what_travels_to_workers_shows_no_secret():
    route = AmqpRoute(Address.of("amqp://somebody:s3cr3t@host/"), "queue", Limits())
    packed = pack(Origin("channel", route=route), is_plain=True)
    assert packed.load().route == route
    for shown in (repr(route), repr(packed.load()), repr(packed), str(packed)):
        assert "s3cr3t" not in shown
        assert "somebody" not in shown
