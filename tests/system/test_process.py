"""Whether a process has ended: said only of those that can be seen from here."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from deit_batch.system.process import describe_this_process, has_ended, identify_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which process one is")


def test_a_process_that_runs_has_not_ended_and_one_that_was_killed_has() -> None:
    assert not has_ended(identify_process(os.getpid()))
    assert not has_ended(identify_process(1))
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = identify_process(process.pid)
        assert not has_ended(identity)
        process.kill()
        deadline = time.monotonic() + 10
        while not has_ended(identity):  # though its parent has not heard of it yet
            assert time.monotonic() < deadline
    assert has_ended(identity)


def test_another_process_with_the_same_number_is_not_the_one_that_was_meant() -> None:
    where, pid, start = identify_process(os.getpid()).rsplit(" ", 2)
    assert has_ended(f"{where} {pid} {int(start) - 1}")


def test_of_what_can_not_be_seen_from_here_nothing_is_said() -> None:
    boot, namespace, _, start = identify_process(os.getpid()).split()
    gone = "999999999"
    assert has_ended(f"{boot} {namespace} {gone} {start}")
    for identity in (
        f"11111111-2222-3333-4444-555555555555 {namespace} {gone} {start}",  # another machine
        f"{boot} pid:[1] {gone} {start}",  # another container
        f"{boot} {namespace} {gone}",
        f"{boot} {namespace} {'9' * 30} {start}",
        describe_this_process(),
        "",
    ):
        assert not has_ended(identity)
