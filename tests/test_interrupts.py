"""Ctrl-C ends the command at any instant, with one line and exit code 130."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isoflop.experiments.cli import interrupts, main
from isoflop.sim.train import preemption
from isoflop.sim.train.preemption import Preempted

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_in_the_first_seconds_it_stops_the_grid(tmp_path, delay, workers):
    """While packages are imported, while data are opened, while workers start."""
    code = (
        "import isoflop.experiments.cli.interrupts as i; i.end_at_once(); print(flush=True); "
        "import isoflop.experiments.__main__ as m; raise SystemExit(m.main())"
    )
    options = ["run", "quickstart", "--steps", "100000", "--runs", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *options, "--workers", workers],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        process.stdout.readline()
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told.splitlines()[-1:] == [interrupts.STOPPED]
    assert "Traceback" not in told
    assert not list(tmp_path.glob("leases/*"))


def swallowed():
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_a_library_swallows_is_raised_at_the_next_step():
    def grid():
        with interrupts.raised_until_caught() as check:
            swallowed()
            check("the next step")
            went_on.append(True)

    went_on: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        grid()
    assert not went_on


def test_an_interrupt_swallowed_at_the_very_end_is_raised_there():
    def grid():
        with interrupts.raised_until_caught():
            swallowed()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        grid()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_command_that_a_signal_ended_says_so_and_what_to_do(monkeypatch, capsys, name, code):
    def stopped(*_):
        raise Preempted(getattr(signal, name))

    monkeypatch.setattr(main.VERBS["list"].__class__, "__call__", stopped)
    assert main.main(["list"]) == code
    told = capsys.readouterr().err
    assert told == f"stopped by {name}; the same command goes on from what is finished\n"


def test_signals_have_the_effect_they_had_once_nothing_trains(monkeypatch):
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with preemption.raised(), pytest.raises(Preempted), preemption.raised():
        signal.raise_signal(signal.SIGTERM)

    def struck():
        with preemption.watched():
            signal.raise_signal(signal.SIGTERM)
            assert preemption.asked() == signal.SIGTERM

    with pytest.raises(Preempted):
        struck()
    assert not preemption.asked()
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
