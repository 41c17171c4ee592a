"""The test console: what it says to people, to programs that drive it, and in a pipe."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime
from time import monotonic

import pytest
from click.testing import CliRunner
from peers import GoAgent, Peer

from atomizer_dask import AtomizerError, ElectronError, Event, Properties
from atomizer_dask.cli.commands import main
from atomizer_dask.cli.console import Conversation, tosses_of
from atomizer_dask.conductors.status import QueueStatus
from atomizer_dask.future import ElectronFuture

SECONDS = 30  # until it is given up to wait for something to be said
SCRIPT = "from atomizer_dask.cli import main; main()"
# In a session of its own, so that Ctrl-C on its terminal reaches it and nobody else.
ON_TERMINAL = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {SCRIPT}"
# Sent SIGUSR1, it is interrupted as where the kernel gives SIGINT to another thread than the main.
ELSEWHERE = """
import signal, threading

def interrupt():
    signal.sigwait([signal.SIGUSR1])
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
threading.Thread(target=interrupt, daemon=True).start()
"""
NOBODY = QueueStatus("connected", "amqp://host:5672/", "work")


def answer(pi=None, error=None, **fields):
    now = datetime.now(UTC)
    result = None if error else {"in": 1, "tosses": 1, "errors": 0, "pi": pi, **fields}
    return Properties("", "montecarlopi.MonteCarlo", now, now, error, result)


class Scripted:
    """A conductor that does with each question what the next of some functions does."""

    def __init__(self, *acts):
        self.asked = []
        self.futures = []
        self._acts = list(acts)

    def attach(self, listener):
        self.listener = listener

    def status(self):
        return NOBODY

    def send(self, electron):
        self.asked.append((electron.atom_id, electron.payload))
        self.futures.append(ElectronFuture())
        self._acts.pop(0)(self)
        return self.futures[-1]

    def finish(self, number, properties):
        if self.futures[number].set_running_or_notify_cancel():
            self.futures[number].set_result(properties)


def says(pi=None, **fields):
    return lambda conductor: conductor.finish(-1, answer(pi, **fields))


def silent(conductor):
    """Never answer."""


def interrupted(conductor):
    raise KeyboardInterrupt


@pytest.fixture
def talk(capsys):
    """Hold a conversation of some lines; return what was said, on stdout and on stderr."""

    def hold(lines, *acts, conductor=None, timeout=SECONDS, **options):
        left = iter(lines)

        def read(prompt):
            sys.stdout.write(prompt)
            for line in left:
                if line is KeyboardInterrupt:
                    raise line
                return line
            raise EOFError

        conversation = Conversation(conductor or Scripted(*acts), timeout, read=read, **options)
        conversation.hold()
        return *capsys.readouterr(), conversation.failures

    return hold


@pytest.mark.parametrize(
    ("text", "tosses"),
    [
        ("1000", 1000), ("007", 7), ("+5", 5), ("1e3", 1000), ("2.5E+6", 2_500_000),
        ("1_000", 1000), ("12,345,678", 12_345_678), (str(2**63 - 1), 2**63 - 1),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text, tosses):
    assert tosses_of(text) == tosses


@pytest.mark.parametrize(
    "text",
    ["", "abc", "0", "0e5", "-3", "1.5", "1.000", "1.5e0", "1e-3", "1,00", "1,2,3", "1_", "0x10",
     "nan", "inf", "1 000", "1,000_000e", "\u0661", "1e9999999"],
)  # fmt: skip
def test_what_is_no_number_of_tosses_is_refused(text):
    with pytest.raises(ValueError, match="write a whole number of at least 1, such as 1000"):
        tosses_of(text)


@pytest.mark.parametrize("text", [str(2**63), "1e19", "1e999", "9" * 5000])
def test_more_tosses_than_a_peer_can_count_are_refused(text):
    with pytest.raises(ValueError, match="more than 9,223,372,036,854,775,807"):
        tosses_of(text)


@pytest.mark.parametrize("closed", [0, 1], ids=["stdin", "stdout"])
def test_without_anything_to_read_from_or_write_to_it_says_so(closed):
    command = [sys.executable, "-c", "from atomizer_dask.cli import main; main()", "console"]
    program = f"import os; os.close({closed}); os.execv({command[0]!r}, {command!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 2
    assert "one of them is closed" in done.stderr


def test_conversation_is_that_of_the_go_console(talk):
    conductor = Scripted(says(3.168), says(4.0), says(0), says(2.6666666666666665))
    said = talk(["1000", "1e3", " 5 ", "3"], conductor=conductor)
    assert said == (
        "Enter Tosses: Pi Estimation: 3.168\n"
        "Enter Tosses: Pi Estimation: 4\n"
        "Enter Tosses: Pi Estimation: 0\n"
        "Enter Tosses: Pi Estimation: 2.6666666666666665\n"
        "Enter Tosses: \n",
        "",
        0,
    )
    asked = [("montecarlopi.MonteCarlo", {"tosses": n}) for n in (1000, 1000, 5, 3)]
    assert conductor.asked == asked


def test_what_is_no_number_is_said_and_not_sent(talk):
    out, errors, failures = talk(["abc", "", "\x1b[2J", "1000"], says(3.1))
    assert out.startswith("Enter Tosses: Invalid number [abc]: write a whole number")
    assert "Enter Tosses: Invalid number []: write" in out
    assert "\x1b" not in out  # the terminal is not told to do things
    assert out.endswith("Enter Tosses: Pi Estimation: 3.1\nEnter Tosses: \n")
    assert (errors, failures) == ("", 3)


def test_quiet_conversation_gives_bare_estimates(talk):
    out, errors, failures = talk(["10", "abc", "20"], says(3.2), says(3.0), quiet=True)
    assert out == "3.2\n3\n"
    assert errors.startswith("Invalid number [abc]: ")
    assert errors.count("\n") == 1
    assert failures == 1


def test_error_is_shown_with_its_kind_and_without_terminal_codes(talk):
    error = ElectronError(Event("ValueError: \x1b[2J no"), kind="exception")
    out, errors, failures = talk(["10", "20"], says(error=error), says(3.2))
    assert errors == "No estimate (exception): ValueError: \\x1b[2J no\n"
    assert out == "Enter Tosses: Enter Tosses: Pi Estimation: 3.2\nEnter Tosses: \n"
    assert failures == 1


@pytest.mark.parametrize("pi", [None, "3", True])
def test_answer_without_an_estimate_is_shown_as_it_is(talk, pi):
    _, errors, failures = talk(["10"], says(pi))
    assert errors.startswith("No estimate: the answer is {'in': 1")
    assert failures == 1


def test_tosses_that_failed_are_told(talk):
    out, errors, failures = talk(["10"], says(3.5, errors=2))
    assert "Pi Estimation: 3.5\n" in out
    assert errors == "2 tosses failed, and do not count.\n"
    assert failures == 0


def test_no_answer_in_time_says_where_nobody_answered(talk):
    _, errors, failures = talk(["10"], silent, timeout=0.01)
    assert errors.startswith(
        "No answer within 0.01 s: does a node that has montecarlopi.MonteCarlo"
    )
    assert "serve the queue 'work' at amqp://host:5672/?" in errors
    assert failures == 1


def test_late_answer_is_not_shown_as_the_next_one(talk):
    def both(conductor):
        conductor.finish(0, answer(1.25))
        conductor.finish(1, answer(3.25))

    out, _, failures = talk(["10", "20"], silent, both, timeout=0.01)
    assert "1.25" not in out
    assert "Pi Estimation: 3.25\n" in out
    assert failures == 1


def test_question_that_nobody_waits_for_is_withdrawn(talk):
    conductor = Scripted(silent, interrupted)
    talk(["10", "20"], conductor=conductor, timeout=0.01)
    assert conductor.futures[0].cancelled()


def test_interrupt_while_waiting_stops_waiting_and_asks_again(talk):
    out, errors, failures = talk(["10", "20"], interrupted, says(3.2), interactive=True)
    assert "Stopped waiting" in errors
    assert out.endswith("Enter Tosses: Pi Estimation: 3.2\nEnter Tosses: \n")
    assert failures == 1


def test_interrupt_while_a_pipe_is_answered_ends_it(talk):
    out, _, failures = talk(["10", "20"], interrupted)
    assert out == "Enter Tosses: \n"
    assert failures == 1


def test_interrupt_at_the_prompt_ends_the_conversation(talk):
    assert talk([KeyboardInterrupt, "10"]) == ("Enter Tosses: \n", "", 0)


def test_what_happens_to_the_broker_while_waiting_is_said_once(talk):
    def goes_away(conductor):
        gone = AtomizerError(Event("the broker is gone", level="error"))
        conductor.listener.emit(gone.event)
        conductor.listener.report(gone)
        conductor.listener.report(AtomizerError("a reply cannot be read", ValueError("no JSON")))
        conductor.listener.emit(Event("connected again"))
        conductor.finish(-1, answer(3.1))

    out, errors, failures = talk(["10"], goes_away)
    assert errors.splitlines() == [
        "the broker is gone",
        "a reply cannot be read: no JSON",
        "connected again",
    ]
    assert "Pi Estimation: 3.1" in out
    assert failures == 0


# -- the command ---------------------------------------------------------------------------------


def console(*options, text="", **environment):
    return CliRunner().invoke(main, ["console", *options], input=text, env=environment)


def test_help_shows_nothing_of_the_environment():
    url = "amqp://me:secret@host/"
    result = console("--help", ATOMIZER_AMQP_URL=url, ATOMIZER_AMQP_PASSWORD="secret")
    assert result.exit_code == 0
    assert "ATOMIZER_AMQP_URL" in result.output
    assert "atomizer unless configured" in result.output
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no broker was given, and ATOMIZER_AMQP_URL is not set"),
        (["amqp://me:secret@host/"], "unexpected extra argument (amqp://***@host/)"),
        (["--amqp", "http://me:secret@host/"], "begins with amqp:// or amqps://"),
        (["--amqp", "amqp://me:secret@host:x/"], "no valid host and port"),
        (["--amqp", "amqp://host", "--timeout", "never"], "--timeout must be seconds"),
        (["--amqp", "amqp://host", "--queue", ""], "queue must be a name"),
        (["--amqp", "amqps://host", "--ca", "/no/such.pem"], "'/no/such.pem' does not exist"),
    ],
)
def test_options_that_make_no_sense_are_told_without_credentials(options, message):
    result = console(*options, ATOMIZER_AMQP_URL=None)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "secret" not in result.output


@pytest.mark.amqp
def test_broker_that_is_not_there_is_told_in_one_line(queue):
    result = console("--amqp", "amqp://me:secret@127.0.0.1:1/", "--queue", queue, text="10\n")
    assert result.exit_code == 1
    assert result.output.startswith("Error: nobody serves AMQP at amqp://127.0.0.1:1/: ")
    assert result.output.count("\n") == 1
    assert "secret" not in result.output


@pytest.mark.amqp
def test_broker_that_does_not_let_us_in_is_told_without_the_password(broker, queue):
    url = broker.url.replace("guest:guest", "guest:secret")
    result = console(ATOMIZER_AMQP_URL=url)
    assert result.exit_code == 1
    assert "ACCESS_REFUSED" in result.output
    assert "secret" not in result.output


@pytest.mark.amqp
def test_pipe_is_answered(broker, queue):
    with GoAgent(broker.url, queue):
        result = console("--queue", queue, text="100\n200", ATOMIZER_AMQP_URL=broker.url)
    assert result.exit_code == 0, result.output
    estimates = result.stdout.split("Enter Tosses: Pi Estimation: ")
    assert len(estimates) == 3
    assert 2 < float(estimates[1]) < 4


@pytest.mark.amqp
def test_encrypted_connection_trusts_the_authority_that_is_given(tls_broker, certificates):
    options = ["--amqp", tls_broker.tls_url, "--queue", "console"]
    refused = console(*options)
    assert refused.exit_code == 1
    assert "nobody serves AMQP at amqps://" in refused.output
    with GoAgent(tls_broker.url, "console"):
        result = console(*options, "--ca", str(certificates.authority), text="100\n")
    assert result.exit_code == 0, result.output
    assert "Pi Estimation: " in result.stdout


@pytest.mark.amqp
def test_pipe_that_nobody_answers_ends_with_what_to_look_at(broker, queue):
    options = ["--amqp", broker.url, "--queue", queue, "--timeout", "0.2s", "--quiet"]
    result = console(*options, text="100\n")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert f"serve the queue '{queue}' at amqp://127.0.0.1:" in result.stderr
    assert "guest" not in result.stderr


@pytest.mark.amqp
def test_console_asks_as_the_go_console_does(broker, queue):
    import pika  # which machines without these tests need not have

    process = start(broker, queue)
    with Peer(broker.url, queue) as peer:
        process.stdin.write(b"1000\n")
        process.stdin.flush()
        asked = json.loads(peer.get(queue).body, object_pairs_hook=list)
        process.terminate()
        said, _ = process.communicate(timeout=SECONDS)
        assert b"terminated before it was done" in said
        assert process.returncode == 4
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
            peer.depth(asked[0][1])  # its own queue went with it
    assert [key for key, _ in asked] == ["senderid", "id", "atomid", "payload"]
    assert asked[2:] == [
        ("atomid", "montecarlopi.MonteCarlo"),
        ("payload", [("tosses", 1000)]),
    ]


def start(broker, queue, *options):
    command = [sys.executable, "-c", SCRIPT, "console", "--amqp", broker.url, "--queue", queue]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, *options], **pipes)


class Reader:
    """What a program says, read as it comes."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        self._unread = ""

    def until(self, text):
        """Return what is said up to and with a text."""
        deadline = monotonic() + SECONDS
        while text not in self._unread:
            ready, _, _ = select.select([self._descriptor], [], [], max(deadline - monotonic(), 0))
            assert ready, f"no {text!r} in {self._unread!r}"
            more = _read(self._descriptor)
            assert more, f"it has ended without {text!r}: {self._unread!r}"
            self._unread += more
        said, self._unread = self._unread.split(text, 1)
        return said + text


def _read(descriptor):
    try:
        return os.read(descriptor, 4096).decode().replace("\r\n", "\n")
    except OSError:  # how a terminal says that nobody is on its other side
        return ""


@pytest.mark.amqp
def test_program_may_drive_it_line_by_line(broker, queue):
    process = start(broker, queue)
    out = Reader(process.stdout.fileno())
    with GoAgent(broker.url, queue):
        assert out.until("Enter Tosses: ") == "Enter Tosses: "
        for line, said in ((b"100\n", "Pi Estimation: "), (b"x\n", "Invalid number [x]")):
            process.stdin.write(line)
            process.stdin.flush()
            assert out.until(said) == said
            out.until("\nEnter Tosses: ")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=SECONDS)
    assert rest == b"\n"
    assert process.returncode == 3  # since x was no number


@pytest.mark.amqp
def test_broker_that_goes_away_is_said_and_the_answer_comes_when_it_is_back(own_broker):
    process = start(own_broker, "work", "--timeout", "2 minutes")
    out = Reader(process.stdout.fileno())
    out.until("Enter Tosses: ")
    with Peer(own_broker.url, "work") as peer:
        process.stdin.write(b"100\n")
        process.stdin.close()
        peer.send(peer.get("work").body)  # by now it waits; back it goes
    own_broker.stop()
    assert "guest" not in out.until("it goes on when that is back")
    own_broker.start()
    out.until("again")
    with GoAgent(own_broker.url, "work"):
        out.until("Pi Estimation: ")
        assert process.wait(SECONDS) == 0
    process.stdout.close()


# -- on a terminal -------------------------------------------------------------------------------


class Terminal(Reader):
    """The console on a terminal of its own."""

    def __init__(self, broker, queue, *options, first=""):
        self._ours, theirs = pty.openpty()
        super().__init__(self._ours)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
        command = [sys.executable, "-c", first + ON_TERMINAL, "console", "--amqp", broker.url]
        self.process = subprocess.Popen(
            [*command, "--queue", queue, *options],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(theirs)

    def type(self, text):
        os.write(self._ours, text.encode())

    def end(self):
        """Return its exit code and what it says at last."""
        said = ""
        while more := _read(self._ours):
            said += more
        return self.process.wait(SECONDS), self._unread + said

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(broker, queue):
    opened = []

    def open_terminal(*options, **first):
        opened.append(Terminal(broker, queue, *options, **first))
        return opened[-1]

    yield open_terminal
    for terminal in opened:
        terminal.close()


CTRL_A, CTRL_C, CTRL_D, UP = "\x01", "\x03", "\x04", "\x1b[A"


@pytest.mark.amqp
def test_lines_can_be_edited_and_come_back_from_the_history(broker, queue, terminal):
    pytest.importorskip("readline")
    console = terminal()
    with GoAgent(broker.url, queue) as agent:
        for typed in (f"00{CTRL_A}1\n", f"{UP}\n"):
            console.until("Enter Tosses: ")
            console.type(typed)
            console.until("Pi Estimation: ")
        console.until("Enter Tosses: ")
        console.type(CTRL_D)
        assert console.end() == (0, "\n")
    assert len(agent.executed) == 2 * (1 + 100)


@pytest.mark.amqp
def test_ctrl_c_at_the_prompt_ends_it_in_order(terminal):
    console = terminal()
    console.until("Enter Tosses: ")
    console.type("abc\n")
    console.until("Invalid number [abc]")
    console.until("Enter Tosses: ")
    console.type(CTRL_C)
    code, said = console.end()
    assert code == 0
    assert said.endswith("\n")
    assert "Traceback" not in said


@pytest.mark.amqp
def test_ctrl_c_that_another_thread_got_ends_it_too(terminal):
    console = terminal(first=ELSEWHERE)
    console.until("Enter Tosses: ")
    console.process.send_signal(signal.SIGUSR1)
    code, said = console.end()
    assert code == 0
    assert "Traceback" not in said


@pytest.mark.amqp
def test_ctrl_c_while_waiting_asks_again_and_the_late_answer_is_dropped(broker, queue, terminal):
    console = terminal()
    console.until("Enter Tosses: ")
    with Peer(broker.url, queue) as peer:
        console.type("1\n")
        peer.send(peer.get(queue).body)  # by now it waits
    console.type(CTRL_C)
    console.until("Stopped waiting")
    console.until("Enter Tosses: ")
    with GoAgent(broker.url, queue) as agent:
        console.type("100\n")
        console.until("Pi Estimation: ")
        assert float(console.until("\n")) not in (0, 4)  # what a single toss gives
        console.until("Enter Tosses: ")
    assert len(agent.executed) == 2 + 101
    console.type(CTRL_D)
    assert console.end() == (0, "\n")
