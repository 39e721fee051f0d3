"""Contestants take turns step by step, each in a process of its own that is gone afterwards."""

import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.turns import KEEPING, Contestant, Turn, in_turn, take_turns

HERE = "tests.benchmarks.test_turns"


def sleeper(gate, *, steps, ms, warm_ms=0):
    """Takes `ms` a step and `warm_ms` before the first."""
    time.sleep(warm_ms / 1e3)
    sys.stdout.write("this is no answer\n")
    for _ in range(steps):
        gate()
        time.sleep(ms / 1e3)
    return {"pid": os.getpid()}


def logger(gate, *, path, name, steps):
    """Writes when it works."""
    for _ in range(steps):
        gate()
        with open(path, "a") as log:
            log.write(name)
    return {}


def failing(gate):
    gate()
    raise ValueError("no good")


def buffers(gate, *, steps):
    """Takes 64 MB anew at every step, in blocks below the size of a huge page."""
    for _ in range(steps):
        gate()
        blocks = [np.ones(1 << 17) for _ in range(64)]
        del blocks
    return {"keeps": "MALLOC_MMAP_MAX_" in os.environ}


def test_steps_are_spread_evenly_over_the_same_time():
    assert in_turn({"a": 2, "b": 2}) == ["a", "b", "a", "b"]
    order = in_turn({"long": 100, "short": 4})
    at = [i for i, name in enumerate(order) if name == "short"]
    assert len(order) == 104
    assert np.allclose(np.diff(at), 26, atol=1)
    assert at[0] == pytest.approx(13, abs=1)


def played(contest, commands, **arguments):
    """What a contestant answers to lines of commands, in this process."""
    answers = io.StringIO()
    Turn(io.StringIO("".join(f"{word}\n" for word in commands)), answers).run(contest, arguments)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_step_lies_between_two_gates_and_the_last_ends_it(capsys):
    ready, *steps, last = played(sleeper, ["step", "step", "end"], steps=2, ms=30, warm_ms=50)
    assert 0.05 <= ready["setup_seconds"] < 0.5
    assert [step["done"] for step in steps] == [False, True]
    assert all(0.03 <= step["seconds"] < 0.3 for step in steps)
    assert last["columns"]["pid"] == os.getpid()


def test_a_contestant_that_is_cut_short_has_no_columns(capsys):
    _, step, last = played(sleeper, ["step", "end"], steps=2, ms=1)
    assert not step["done"]
    assert last["columns"] == {}


def in_which_thread(gate):
    gate()
    return {"main": threading.current_thread() is threading.main_thread()}


def test_a_contestant_works_in_the_main_thread():
    """glibc's allocator works otherwise in others."""
    one = Contestant(f"{HERE}:in_which_thread")
    take_turns({"one": one}, {"one": 1})
    assert one.columns == {"main": True}


def test_no_more_steps_are_asked_for_than_there_are():
    one = Contestant(f"{HERE}:sleeper", {"steps": 2, "ms": 1})
    take_turns({"one": one}, {"one": 5})
    assert len(one.seconds) == 2
    assert one.columns


def test_they_work_in_turn_in_processes_of_their_own(tmp_path):
    path = str(tmp_path / "log")
    each = {
        name: Contestant(f"{HERE}:logger", {"path": path, "name": name, "steps": 3})
        for name in "ab"
    }
    said = []
    take_turns(each, {"a": 3, "b": 2}, said.append)
    assert Path(path).read_text() == "".join(in_turn({"a": 3, "b": 2}))
    assert [len(c.seconds) for c in each.values()] == [3, 2]
    assert len(said) == 4
    for contestant in each.values():
        assert contestant._process.poll() is not None


def test_what_came_of_it_is_told():
    one = Contestant(f"{HERE}:sleeper", {"steps": 2, "ms": 20, "warm_ms": 100})
    take_turns({"one": one}, {"one": 2})
    assert one.columns["pid"] != os.getpid()
    assert 0.1 <= one.setup_seconds < 10
    assert all(0.02 <= s < 1 for s in one.seconds)
    assert 5 < one.peak_mb < 2000


def test_memory_counts_from_the_start_of_the_process():
    held = np.ones(1 << 26)  # 512 MB here are none of its own
    one = Contestant(f"{HERE}:buffers", {"steps": 1})
    take_turns({"one": one}, {"one": 1})
    assert held.nbytes / 1e6 > one.peak_mb > 64


def test_an_allocator_that_keeps_memory_has_no_page_faults():
    each = {
        "usual": Contestant(f"{HERE}:buffers", {"steps": 9}),
        "kept": Contestant(f"{HERE}:buffers", {"steps": 9}, KEEPING),
    }
    take_turns(each, dict.fromkeys(each, 9))
    assert each["usual"].page_faults > 4 * each["kept"].page_faults
    assert (each["usual"].columns["keeps"], each["kept"].columns["keeps"]) == (False, True)


def test_a_failure_ends_all_of_them():
    each = {
        "fine": Contestant(f"{HERE}:sleeper", {"steps": 5, "ms": 1}),
        "bad": Contestant(f"{HERE}:failing"),
    }
    with pytest.raises(RuntimeError, match="failing"):
        take_turns(each, {"fine": 5, "bad": 1})
    for contestant in each.values():
        assert contestant._process.returncode in (-signal.SIGKILL, 1)
