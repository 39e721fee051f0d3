"""One batch over several processes, passes and workers: the weights are those of one."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tadiff_rt.errors import UsageError
from tadiff_train.checkpoint import WEIGHTS, load_checkpoint
from tadiff_train.fit import FitConfig, Machine, Processes, joined
from tadiff_train.fit.curves import CURVES
from tadiff_train.fit.loader import shares_of
from tadiff_train.fit.processes import device_of
from tests.train.toy_runs import same_weights, train

ROOT = Path(__file__).parents[2]
TOGETHER = {
    "batch_size": 4,
    "steps": 4,
    "learning_rate": 5e-5,
    "start": "published",
    "target_slots": "published",
    "save_every": 2,
    "log_every": 1,
}
"""The rate is low since Adam turns rounding into steps where a gradient is zero but for rounding:
that of a bias whose channel is alone in its norm group."""
CHILD = """
import json, os, signal, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from tadiff_rt.errors import TadiffError
from tadiff_train.fit import Interrupted
from tests.train.toy_runs import discs, train
out, changes, ask = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
cases = [discs(0), discs(1, 3)]
rank = int(os.environ["RANK"])
if ask.get("broken"):
    import dataclasses
    from tadiff_train.data.windows import Windows
    get = Windows.__getitem__
    def broken(self, index):
        window = get(self, index)
        bad = index == ask["broken"]
        return dataclasses.replace(window, noise=window.noise * float("nan")) if bad else window
    Windows.__getitem__ = broken
if ask.get("signal") and rank == 1:
    from tadiff_train.fit.trainer import Trainer
    step = Trainer.step
    def signalled(self, number, windows):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, windows)
    Trainer.step = signalled
try:
    train(cases, out, **changes)
except TadiffError as error:
    sys.exit(f"{type(error).__name__} {error}")
except Interrupted as end:
    sys.exit(f"Interrupted {end}")
"""
LEAVES = """
import os, sys, time
from tadiff_train.fit import joined
with joined("cpu") as processes:
    time.sleep(1.5 * (not processes.is_first))
    needed = time.time()
print(needed, time.time(), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def alone(cases, tmp_path_factory):
    """The weights of one process in one pass, and the folder of its run."""
    out = tmp_path_factory.mktemp("alone")
    return train(cases, out, **TOGETHER), out


def two_processes(out: Path, changes: dict, **ask) -> list[tuple[int, str]]:
    """A run of two processes."""
    return started_as_torchrun(CHILD, str(out), json.dumps(changes), json.dumps(ask))


def started_as_torchrun(program: str, *arguments: str) -> list[tuple[int, str]]:
    """Exit code and standard error of two processes of a program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        environment = {
            **os.environ,
            **{name: str(value) for name, value in place.items()},
            "MASTER_ADDR": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", program, *arguments]
        started.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        )
    ended = [process.communicate(timeout=120)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, ended, strict=True)]


def assert_near(got, expected) -> None:
    other = expected.state_dict()
    for name, value in got.state_dict().items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_are_one(alone, cases, tmp_path, accumulate):
    ended = two_processes(tmp_path, {**TOGETHER, "accumulate": accumulate})
    assert [code for code, _ in ended] == [0, 0], ended
    assert_near(load_checkpoint(tmp_path)[0], alone[0])
    assert_same_curves(tmp_path, alone[1])
    start = train(cases, tmp_path / "start", **{**TOGETHER, "learning_rate": 1e-8})
    moved = max(
        float((a - b).abs().max().detach())
        for a, b in zip(alone[0].parameters(), start.parameters(), strict=True)
    )
    assert moved > 1e-4  # ten times the tolerance
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["hardware"]["processes"] == 2
    assert len(list((tmp_path / "tensorboard").iterdir())) <= 1  # the first process alone writes


def assert_same_curves(got: Path, expected: Path) -> None:
    """Losses and the gradient's norm: Adam's steps do not tell how long a gradient is."""
    one, other = (
        [json.loads(line) for line in (out / CURVES).read_text().splitlines()]
        for out in (got, expected)
    )
    for line, reference in zip(one, other, strict=True):
        for name in ("loss", "noise", "noise_mse", "dice", "bce", "gradient_norm"):
            assert line[name] == pytest.approx(reference[name], rel=1e-4)


@pytest.mark.slow
def test_processes_fail_together(tmp_path):
    """Window 6 is of the second process in step 2; the folder is the first one's to write."""
    for code, text in two_processes(tmp_path / "run", TOGETHER, broken=6):
        assert code == 1, text
        assert "NumericsError TD6003" in text
        assert "at step 2" in text
    (tmp_path / "file").write_text("")
    for code, text in two_processes(tmp_path / "file", TOGETHER):
        assert code == 1, text
        assert "OutputError TD80" in text


@pytest.mark.slow
def test_no_process_leaves_before_the_others_heard_it():
    (first, told), (second, waited) = started_as_torchrun(LEAVES)
    assert (first, second) == (0, 0), told + waited
    needed = float(waited.split()[0])
    assert all(float(text.split()[-1]) > needed for text in (told, waited))
    assert float(told.split()[0]) < needed - 1


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all(cases, tmp_path, alone):
    for code, text in two_processes(tmp_path, TOGETHER, signal=True):
        assert code == 1, text
        assert f"Interrupted signal {signal.SIGTERM.value} after step 2" in text
    # Half by two processes, half by one.
    got = train(cases, tmp_path, resume=True, **TOGETHER)
    assert_near(got, alone[0])


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_passes_are_one_batch(alone, cases, tmp_path, accumulate):
    got = train(cases, tmp_path, **{**TOGETHER, "accumulate": accumulate})
    assert_near(got, alone[0])
    assert_same_curves(tmp_path, alone[1])
    assert not same_weights(got, alone[0])  # it did add up in another order


def test_workers_change_no_bit(alone, cases, tmp_path):
    got = train(cases, tmp_path, machine=Machine(device="cpu", workers=2, quiet=True), **TOGETHER)
    assert same_weights(got, alone[0])
    assert (tmp_path / WEIGHTS).is_file()


def test_shares_are_each_window_once():
    config = FitConfig(batch_size=12, accumulate=3, steps=5)
    cpu = torch.device("cpu")
    for first in (1, 4):
        shares = [list(shares_of(config, first, Processes(cpu, rank, 2))) for rank in range(2)]
        taken = sorted(index for share in shares for part in share for index in part)
        assert taken == list(range(12 * (first - 1), 60))
        for step, at in enumerate(range(0, len(shares[0]), 3), start=first - 1):
            of_step = {i for share in shares for part in share[at : at + 3] for i in part}
            assert of_step == set(range(12 * step, 12 * step + 12))
    with pytest.raises(UsageError, match="TD3083: a batch of 12 cannot be cut into 15 equal"):
        shares_of(config, 1, Processes(cpu, 0, 5))


def test_devices(monkeypatch):
    with pytest.raises(UsageError, match="TD3081: device must be one of auto, cpu, cuda"):
        device_of("tpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="TD3081: process 0 of this machine needs a CUDA"):
        device_of("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("auto") == torch.device("cuda", 1)
    assert device_of("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match=r"TD3081: process 2 .* there are 2"):
        device_of("auto")


def test_alone_there_is_nothing_to_exchange():
    with joined("cpu") as processes:
        assert (processes.is_first, processes.count, processes.highest(15)) == (True, 1, 15)
        value = torch.tensor([2.0])
        assert processes.mean(value) is value
        with pytest.raises(UsageError):
            processes.first(lambda: device_of("tpu"))
