"""A signal is noted, or ends the work there and then; the second one leaves."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from nnx.errors import Stopped
from nnx.system import signals


def test_the_first_is_noted_and_the_handlers_come_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with signals.catch_signals() as noted:
        assert noted() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted() == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is before, "the second one leaves at once"
    assert signal.getsignal(signal.SIGTERM) is before
    assert "once more to leave at once" in capsys.readouterr().err
    with signals.catch_signals() as noted:
        assert noted() == 0, "what came before is over"


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def test_the_second_ctrl_c_is_an_interrupt():
    with signals.catch_signals(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT, signal.SIGINT)


def at_once(work):
    with signals.exit_on_signal("nothing was changed"):
        work()
        raise AssertionError("not reached")


def test_at_once_ends_it_where_it_is():
    with signals.catch_signals(), pytest.raises(Stopped, match="nothing was changed") as stopped:
        at_once(lambda: send(signal.SIGHUP))
    assert stopped.value.exit_code == 129


def test_at_once_ends_it_whatever_the_work_makes_of_the_exception():
    def translate():
        try:
            send(signal.SIGINT)
        except Exception:
            raise ValueError("a parser's own") from None

    def swallow():
        with contextlib.suppress(Exception):
            send(signal.SIGINT)

    for work in (translate, swallow):
        with signals.catch_signals(), pytest.raises(Stopped), signals.exit_on_signal("x"):
            work()


def test_at_once_ends_at_its_beginning_what_was_noted_before():
    with signals.catch_signals():
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            at_once(lambda: None)


def test_without_a_signal_errors_pass_as_they_are():
    with signals.catch_signals(), pytest.raises(ValueError, match="mine"), signals.exit_on_signal("x"):
        raise ValueError("mine")


def test_nohup_is_respected():
    code = (
        "import os, signal; from nnx.system import signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with signals.noted() as noted:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    assert noted() == 0\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_held_is_done_before_it_ends():
    done = []

    def work():
        with signals.defer_signals():
            send(signal.SIGINT)
            done.append(1)
        done.append(2)

    with signals.catch_signals(), pytest.raises(Stopped, match="nothing was changed"):
        at_once(work)
    assert done == [1]


def test_held_outside_of_at_once_changes_nothing(capsys):
    with signals.catch_signals() as noted, signals.defer_signals():
        send(signal.SIGTERM)
        assert noted() == signal.SIGTERM
    assert "once more to leave at once" in capsys.readouterr().err
