"""The first signal is recorded or ends the work immediately; the second one exits."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from nnx.errors import Stopped
from nnx.system import signals


def test_the_first_signal_is_recorded_and_the_handlers_are_restored(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with signals.catch_signals() as received:
        assert received() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert received() == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is before, "the second one exits immediately"
    assert signal.getsignal(signal.SIGTERM) is before
    assert "signal again to exit immediately" in capsys.readouterr().err
    with signals.catch_signals() as received:
        assert received() == 0, "earlier signals are forgotten"


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def test_the_second_ctrl_c_is_an_interrupt():
    with signals.catch_signals(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT, signal.SIGINT)


def exit_immediately(work):
    with signals.exit_on_signal("nothing was changed"):
        work()
        raise AssertionError("not reached")


def test_exit_on_signal_ends_the_work_immediately():
    with signals.catch_signals(), pytest.raises(Stopped, match="nothing was changed") as stopped:
        exit_immediately(lambda: send(signal.SIGHUP))
    assert stopped.value.exit_code == 129


def test_exit_on_signal_ends_work_that_catches_the_exception():
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


def test_exit_on_signal_heeds_an_earlier_signal_on_entry():
    with signals.catch_signals():
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            exit_immediately(lambda: None)


def test_without_a_signal_errors_pass_unchanged():
    with signals.catch_signals(), pytest.raises(ValueError, match="mine"), signals.exit_on_signal("x"):
        raise ValueError("mine")


def test_nohup_is_respected():
    code = (
        "import os, signal; from nnx.system import signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with signals.catch_signals() as received:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    assert received() == 0\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_deferred_work_is_completed_before_it_ends():
    done = []

    def work():
        with signals.defer_signals():
            send(signal.SIGINT)
            done.append(1)
        done.append(2)

    with signals.catch_signals(), pytest.raises(Stopped, match="nothing was changed"):
        exit_immediately(work)
    assert done == [1]


def test_deferring_outside_of_exit_on_signal_changes_nothing(capsys):
    with signals.catch_signals() as received, signals.defer_signals():
        send(signal.SIGTERM)
        assert received() == signal.SIGTERM
    assert "signal again to exit immediately" in capsys.readouterr().err
