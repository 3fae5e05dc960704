"""Threads spin on free cores and sleep beside other processes: measured by the processor time of waiting threads."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nnx.system import waiting

linux = pytest.mark.skipif(waiting.seconds_without_core() is None, reason="needs Linux's schedstat")

SPINS = """
import os, sys, threading, time
import torch
from nnx.system import waiting

torch.set_num_threads(2)
x = torch.ones(1 << 17)

def processor_time():
    begun = time.process_time()
    for _ in range(60):
        x.add_(1)
        time.sleep(0.005)
    return time.process_time() - begun

sharing = waiting.Sharing()
results = []
for on in (False, True, False, True):
    sharing.switch(on)
    time.sleep(0.2)
    results.append(processor_time())
print(bool(torch.__config__.parallel_info().count("GNU") or "libgomp" in open("/proc/self/maps").read()), *results)
"""


@linux
def test_short_spins_leave_the_core_to_others_and_can_be_ended():
    done = subprocess.run(
        [sys.executable, "-c", SPINS],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "GOMP_SPINCOUNT": "300000", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    gnu, *seconds = done.stdout.split()
    if gnu != "True":
        pytest.skip("torch uses another OpenMP than GNU's")
    long, short, long_again, short_again = map(float, seconds)
    assert short < long / 2
    assert short_again < long_again / 2


def naps_by_cpus():
    """By the CPUs that a thread of this process may use: how often such threads went to sleep."""
    naps = {}
    for status in Path("/proc/self/task").glob("*/status"):
        facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
        cpus = facts["Cpus_allowed_list"].strip()
        naps[cpus] = naps.get(cpus, 0) + int(facts["voluntary_ctxt_switches"])
    return naps


@linux
def test_a_thread_ticks_on_each_cpu_while_cores_are_shared():
    cpus = sorted(map(str, os.sched_getaffinity(0)))
    if not 1 < len(cpus) <= waiting.TICKING:
        pytest.skip("needs 2 to 16 CPUs")
    sharing = waiting.Sharing()
    sharing.switch(True)
    try:
        time.sleep(0.1)
        before = naps_by_cpus()
        time.sleep(1)
        after = naps_by_cpus()
    finally:
        sharing.switch(False)
    assert all(after[cpu] - before[cpu] > 100 for cpu in cpus)
    time.sleep(0.1)
    assert not set(cpus) & naps_by_cpus().keys()


@linux
def test_waiting_for_a_core_is_counted():
    """Several busy threads of other processes on each core, and one of ours."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * 8)]
    try:
        before = waiting.seconds_without_core()
        until = time.perf_counter() + 1
        while time.perf_counter() < until:
            pass
        assert waiting.seconds_without_core() - before > 0.05
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_lasting_contention_shortens_the_spins_and_calm_lengthens_them_later(monkeypatch):
    shares = [0, 0.2, 0, 0.2, 0.2, 0, 0, 0, 0, 0, 0]
    switched = []
    total = iter([0.0] + [sum(shares[: n + 1]) for n in range(len(shares))])

    class End(Exception):
        pass

    def seconds(without=()):
        try:
            return next(total)
        except StopIteration:
            raise End from None

    monkeypatch.setattr(waiting, "seconds_without_core", seconds)
    monkeypatch.setattr(waiting, "INTERVAL", 0.01)
    monkeypatch.setattr(waiting.Sharing, "switch", lambda self, on: switched.append((on, round(sum(shares), 1))))
    with pytest.raises(End):
        waiting._watch()
    assert [on for on, _ in switched] == [True, False, False]


def test_nothing_is_started_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(waiting, "seconds_without_core", lambda without=(): None)
    before = threading.active_count()
    waiting.adapt_waiting()
    assert threading.active_count() == before
