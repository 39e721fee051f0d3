"""What a run does to its folder when something else is there, breaks, or is to be known later."""

import errno
import json
import math
import os
import subprocess
import sys

import pytest

from tadiff_rt.errors import NumericsError, OutputError, ResourceError
from tadiff_train.checkpoint import load_checkpoint
from tadiff_train.data import split_of
from tadiff_train.distill import held_out
from tadiff_train.fit import patients_trained_on
from tadiff_train.fit.curves import TENSORBOARD, Curves
from tadiff_train.fit.heldout import HeldOut
from tadiff_train.fit.run import load_state, locked
from tadiff_train.fit.trainer import Trainer
from tests.train.toy_runs import discs, train

CASES = [discs(0), discs(1, 3)]

HOLDER = """
import sys
from pathlib import Path
from tadiff_train.fit.run import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_trains_into_a_folder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="TD8010"):
            train(CASES, tmp_path)
        assert not (tmp_path / "run.json").exists()  # that of the other run
        holder.kill()
    train(CASES, tmp_path)  # the dead hold nothing
    with locked(tmp_path):  # and nor does a run that has ended
        pass


def test_a_step_that_spoils_the_weights_does_not_replace_the_save(tmp_path, monkeypatch):
    step = Trainer.step

    def spoiling(self, number, windows):
        terms, norm = step(self, number, windows)
        return terms, math.nan if number == 4 else norm

    monkeypatch.setattr(Trainer, "step", spoiling)
    with pytest.raises(NumericsError, match=r"TD6003.*gradient .* nan at step 4"):
        train(CASES, tmp_path, steps=6, save_every=2)
    assert load_state(tmp_path)[1]["course"]["step"] == 2


def test_a_loss_that_is_no_number_is_not_the_least(tmp_path, monkeypatch):
    losses = iter([math.nan, 0.5, 0.6])
    monkeypatch.setattr(HeldOut, "terms", lambda self, trainer: {"loss": next(losses)})
    train(CASES, tmp_path, steps=6, save_every=2, validation=[discs(8)])
    sidecar = load_checkpoint(tmp_path / "best")[1]
    assert (sidecar.training["step"], sidecar.training["best_val_loss"]) == (4, 0.5)


@pytest.mark.parametrize("name", ["line", "picture"])
def test_a_full_disk_under_tensorboard_is_a_typed_error(tmp_path, monkeypatch, name):
    pytest.importorskip("tensorboard")
    import numpy as np

    curves = Curves(tmp_path, 0, quiet=True)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for method in ("flush", "close"):
        monkeypatch.setattr(curves._writer, method, full)
    shown = {"line": ({"loss": 1.0},), "picture": (b"", np.zeros((4, 4, 3), np.uint8))}
    with pytest.raises(ResourceError, match="TD7002"):
        getattr(curves, name)(1, *shown[name])
    curves.close()


def test_a_run_begun_anew_hides_the_events_of_one_that_died(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for value in (1.0, 2.0):
        curves = Curves(tmp_path, 0, quiet=True)
        curves.line(5, {"loss": value})
        curves.close()
    events = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert [event.value for event in events.Scalars("loss")] == [2.0]


def test_a_student_is_kept_from_whom_its_teacher_was_kept_from(tmp_path):
    many = [discs(seed) for seed in range(20)]
    parts = {"train": [], "val": [], "test": []}
    for case in many:
        parts[split_of(case.name, {"train": 0.5, "val": 0.25, "test": 0.25}, "other")].append(
            case.name
        )
    (tmp_path / "best").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"parts": parts, "resumed": []}))
    for place in (tmp_path, tmp_path / "best", tmp_path / "best" / "model.safetensors"):
        trained_on = patients_trained_on(place)
        assert trained_on == tuple(parts["train"])
    learnt, others = held_out(many, trained_on)
    assert {case.name for case in learnt} == set(parts["train"])
    assert {case.name for case in others} == {*parts["val"], *parts["test"]}


def test_patients_are_known_from_a_record_that_was_lost_and_written_anew(tmp_path):
    again = [{"after_step": 2, "parts": {"train": ["sub-1"]}}]
    (tmp_path / "run.json").write_text(json.dumps({"resumed": again}))
    assert patients_trained_on(tmp_path) == ("sub-1",)
    (tmp_path / "run.json").write_text("{")
    assert patients_trained_on(tmp_path) == ()
