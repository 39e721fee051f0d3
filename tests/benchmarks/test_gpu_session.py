"""The script of a GPU session, on this machine: stages, limits, failures, and all of it once."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = (
    "environment",
    "tests",
    "alone",
    "export",
    "roofline",
    "kernels",
    "network",
    "ensemble",
    "monai",
    "profile",
)
OPERATORS = ("group_norm_silu", "attention", "conditioning", "solver_step", "ensemble_step")


def session(out: Path, **environment: str) -> tuple[int, dict[str, str], str]:
    """Exit code, stage -> how it ended, and what was printed."""
    run = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu_session.sh"), str(out)],
        env={
            **os.environ,
            "DEVICE": "cpu",
            "QUICK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
            **environment,
        },
        capture_output=True,
        text=True,
        cwd=out.parent,
        check=False,
    )
    lines = (out / "summary.txt").read_text().splitlines()[2:]
    return run.returncode, {line.split()[0]: line.split(None, 2)[2] for line in lines}, run.stdout


def python_but(folder: Path, pattern: str, instead: str) -> str:
    """An interpreter that does `instead` where its arguments match `pattern`."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/bash\ncase "$*" in {pattern}) {instead} ;; esac\nexec {sys.executable} "$@"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.slow
def test_a_stage_that_fails_does_not_stop_the_next(tmp_path):
    python = python_but(tmp_path, "*hardware,*", "exit 3")
    code, ended, printed = session(
        tmp_path / "out", STAGES="environment roofline", PYTHON=python, SESSION="s1"
    )
    assert (code, ended) == (1, {"environment": "3", "roofline": "0"})
    assert printed.endswith((tmp_path / "out/summary.txt").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out/gpu.jsonl").read_text().splitlines()]
    assert {row["session"] for row in rows} == {"s1"}
    assert {row["device"] for row in rows} == {"cpu"}
    again, _, _ = session(tmp_path / "out", STAGES="roofline", SESSION="s2")
    assert again == 0
    assert len((tmp_path / "out/gpu.jsonl").read_text().splitlines()) == 2 * len(rows)


@pytest.mark.slow
def test_a_stage_that_hangs_is_ended(tmp_path):
    python = python_but(tmp_path, "*gpu_roofline*", "exec sleep 60")
    code, ended, _ = session(tmp_path / "out", STAGES="roofline", PYTHON=python, TOTAL="6")
    assert (code, ended) == (1, {"roofline": "124"})


def test_what_there_is_no_time_for_is_said(tmp_path):
    code, ended, _ = session(tmp_path / "out", TOTAL="4")
    assert code == 1
    assert ended == dict.fromkeys(STAGES, "no time left")


@pytest.mark.slow
def test_the_whole_session(tmp_path):
    """What a GPU machine runs, with tiny sizes: every stage ends well and leaves its rows."""
    out = tmp_path / "out"
    code, ended, printed = session(out, TOTAL="1200")
    assert ended == dict.fromkeys(STAGES, "0"), (out / "benchmarks.log").read_text()[-3000:]
    assert code == 0
    assert tuple(
        sorted(line.split()[0] for line in printed.splitlines()[-len(STAGES) :])
    ) == tuple(sorted(STAGES))
    rows = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "failed" in row]
    cases = {row["case"].split("/")[0] for row in rows}
    assert cases == {"roofline", *OPERATORS, "network", "ensemble", "monai"}
    for row in rows:
        assert row["case"] == "roofline" or "ms" not in row or row["floor_ms"] > 0
    assert "skipped" in (out / "tests.log").read_text()
    files = list(out.iterdir())
    assert len(files) <= 8
    assert all(file.stat().st_size < 16e6 for file in files)
