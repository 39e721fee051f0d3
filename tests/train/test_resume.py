"""Runs that are cut short: by a kill, by a signal, by a full disk; and how they go on."""

import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tadiff_rt.errors import ModelFileError, ResourceError, UsageError
from tadiff_train.checkpoint import WEIGHTS, load_checkpoint
from tadiff_train.fit import Interrupted
from tadiff_train.fit.curves import CURVES
from tadiff_train.fit.interrupt import asked_to_end
from tadiff_train.fit.run import STATE, load_state, save_state
from tests.train.toy_runs import discs, same_weights, train

ROOT = Path(__file__).parents[2]
LINES = {"log_every": 2, "save_every": 3, "steps": 8}
RUN_ALONE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.train.toy_runs import discs, train
out = Path(sys.argv[1])
train([discs(0), discs(1, 3)], out, resume=(out / "state.safetensors").exists(),
      steps=30, save_every=2, log_every=1, learning_rate=1e-2,
      report=lambda step, terms: print(step, flush=True))
"""


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / CURVES).read_text().splitlines()]


class Enough(Exception):
    """Ends a run from within, as a crash does."""


def stop_after(last: int):
    def report(step, terms):
        if step == last:
            raise Enough

    return report


def broken_off(cases, out, last: int, **changes) -> None:
    """A run that ended without warning after `last` steps."""
    with pytest.raises(Enough):
        train(cases, out, report=stop_after(last), **changes)


@pytest.mark.parametrize("last", [4, 6, 8])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(cases, tmp_path, last):
    whole = train(cases, tmp_path / "whole", **LINES)
    broken_off(cases, tmp_path / "cut", last, **LINES)
    got = train(cases, tmp_path / "cut", resume=True, **LINES)
    assert same_weights(got, whole)
    assert same_weights(load_checkpoint(tmp_path / "cut")[0], whole)
    whole_state, cut_state = load_state(tmp_path / "whole")[0], load_state(tmp_path / "cut")[0]
    assert whole_state.keys() == cut_state.keys()
    assert all(torch.equal(value, cut_state[name]) for name, value in whole_state.items())


def test_a_finished_run_resumes_to_itself(cases, tmp_path):
    whole = train(cases, tmp_path, **LINES)
    (tmp_path / WEIGHTS).write_bytes(b"torn by a kill between two renames")
    assert same_weights(train(cases, tmp_path, resume=True, **LINES), whole)
    assert same_weights(load_checkpoint(tmp_path)[0], whole)


def test_curves_are_cut_back_and_go_on(cases, tmp_path):
    """All but the times are those of a run that was never broken off."""
    train(cases, tmp_path / "whole", validation=[discs(5)], **LINES)
    broken_off(cases, tmp_path / "cut", 6, validation=[discs(5)], **LINES)
    with open(tmp_path / "cut" / CURVES, "a") as file:
        file.write('{"step": 5, "loss": 1}\n{"step": 6, "lo')
    train(cases, tmp_path / "cut", resume=True, validation=[discs(5)], **LINES)
    timed = {"seconds", "windows_per_second"}
    whole, cut = (
        [{k: v for k, v in line.items() if k not in timed} for line in lines_of(tmp_path / name)]
        for name in ("whole", "cut")
    )
    assert [line["step"] for line in whole] == [2, 3, 4, 6, 8]
    assert cut == whole
    seconds = [line["seconds"] for line in lines_of(tmp_path / "cut")]
    assert seconds == sorted(seconds)


def test_tensorboard_reads_one_course(cases, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    broken_off(cases, tmp_path, 6, **LINES)
    train(cases, tmp_path, resume=True, picture_every=4, **LINES)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [2, 4, 6, 8]
    told = {line["step"]: line["loss"] for line in lines_of(tmp_path)}
    assert [event.value for event in losses] == pytest.approx([told[s] for s in (2, 4, 6, 8)])
    assert [event.step for event in events.Images("sample")] == [4, 8]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"learning_rate": 0.5}, "setting learning_rate is 0.5, was 0.00025"),
        ({"steps": 9}, "setting steps is 9, was 8"),
        ({"loss": "published"}, "setting loss is 'published', was 'unbiased'"),
        ({"validation": [discs(7)]}, "held-out patient sub-7 is new"),
    ],
)
def test_changed_settings_are_refused(cases, tmp_path, changes, what):
    train(cases, tmp_path, **LINES)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(UsageError) as caught:
        train(cases, tmp_path, resume=True, **{**LINES, **changes})
    assert caught.value.code == "TD3084"
    assert what in caught.value.message
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_changed_data_are_refused(cases, tmp_path):
    train(cases, tmp_path, **LINES)
    images = cases[1].images.copy()
    images[0, 0, 0, 0, 0] += 0.125
    for other, what in (
        (dataclasses.replace(cases[1], images=images), "patient 1 (sub-1) has other images"),
        (dataclasses.replace(cases[1], days=(0, 40, 81)), "patient 1 (sub-1) has other images"),
        (discs(2), "patient 1 (sub-1) is missing; patient 1 (sub-2) is new"),
    ):
        with pytest.raises(UsageError) as caught:
            train([cases[0], other], tmp_path, resume=True, **LINES)
        assert what in caught.value.message


def test_what_changes_no_weight_may_change(cases, tmp_path):
    broken_off(cases, tmp_path, 4, **LINES)
    changes = {**LINES, "save_every": 2, "log_every": 1, "picture_every": 0}
    got = train(cases, tmp_path, resume=True, **changes)
    assert same_weights(got, train(cases, tmp_path / "whole", **LINES))


def test_run_json_notes_both_sessions(cases, tmp_path):
    broken_off(cases, tmp_path, 4, **LINES)
    train(cases, tmp_path, resume=True, **LINES)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["setting"]["steps"] == 8
    assert list(record["patient"]) == ["0 (sub-0)", "1 (sub-1)"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["device"] == "cpu"
    assert [session["after_step"] for session in record["resumed"]] == [3]


def test_a_folder_without_a_state_and_a_damaged_one(cases, tmp_path):
    with pytest.raises(ModelFileError, match="TD4019"):
        train(cases, tmp_path, resume=True, **LINES)
    train(cases, tmp_path, **LINES)
    state = tmp_path / STATE
    whole = state.read_bytes()
    for damaged in (whole[:1000], b"", b"\x80\x04pickle", whole[:-4]):
        state.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="TD4020"):
            train(cases, tmp_path, resume=True, **LINES)


def test_state_keeps_every_bit(tmp_path):
    tensors = {
        "a": torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
        "n": torch.tensor(7),
    }
    record = {"x": 0.1 + 0.2, "none": None, "list": [1, 2]}
    save_state(tmp_path, tensors, record)
    got, told = load_state(tmp_path)
    assert told == record
    assert all(torch.equal(got[name], value) for name, value in tensors.items())
    assert got["n"].dtype == torch.int64


def test_a_full_disk_keeps_the_old_state(cases, tmp_path):
    """A limit on the size of files stands for the disk: between the curves and the state."""
    broken_off(cases, tmp_path, 4, **LINES)
    before = {name: (tmp_path / name).read_bytes() for name in (STATE, WEIGHTS, "model.json")}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, terms):
        if step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))

    try:
        with pytest.raises(ResourceError, match="TD7002"):
            train(cases, tmp_path, resume=True, report=fill, **LINES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob(".*"))
    assert same_weights(
        train(cases, tmp_path, resume=True, **LINES), train(cases, tmp_path / "whole", **LINES)
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(cases, tmp_path, number):
    def send(step, terms):
        if step == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        train(cases, tmp_path / "cut", report=send, **LINES)
    assert (caught.value.number, caught.value.step) == (number, 4)
    assert signal.getsignal(number) is before
    assert load_state(tmp_path / "cut")[1]["course"]["step"] == 4
    assert load_checkpoint(tmp_path / "cut")[1].training["step"] == 4
    got = train(cases, tmp_path / "cut", resume=True, **LINES)
    assert same_weights(got, train(cases, tmp_path / "whole", **LINES))


def test_a_second_signal_is_not_waited_for():
    def insist():
        with asked_to_end() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.number == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        insist()


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with asked_to_end() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.number == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_kill_9_at_any_moment(cases, tmp_path):
    """Killed four times at random, resumed each time: the weights of the unbroken run."""
    whole = train(
        cases, tmp_path / "whole", steps=30, save_every=2, log_every=1, learning_rate=1e-2
    )
    out, rng = tmp_path / "cut", random.Random(1)
    command = [sys.executable, "-c", RUN_ALONE, str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for last in (3, 9, 16, 24):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        ) as process:
            for line in process.stdout:
                if int(line) >= last:
                    time.sleep(rng.uniform(0, 0.2))
                    break
            process.kill()
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
    first = int(done.stdout.split()[0])
    assert 20 < first <= 30  # it did go on
    assert same_weights(load_checkpoint(out)[0], whole)
    assert [line["step"] for line in lines_of(out)] == list(range(1, 31))
