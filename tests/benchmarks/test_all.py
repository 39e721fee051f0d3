"""The command that measures everything: order, failures, and pages."""

from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks.harness import load

BENCHMARKS = Path(everything.__file__).parent


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What is run and written; the question "memory" fails where it is said so."""
    found = {"ran": [], "written": 0, "fails": ()}

    def run(question, work):
        found["ran"].append(question)
        return 2.0, 3 if question in found["fails"] else 0

    def write(folder):
        found["written"] += 1

    monkeypatch.setattr(everything, "run", run)
    monkeypatch.setattr(everything.performance, "write", write)
    monkeypatch.setattr(everything, "save", lambda name, rows: found.update({name: rows}))
    return found


def test_every_question_is_run_and_its_time_kept(told):
    assert everything.main([]) == 0
    assert told["ran"] == list(everything.QUESTIONS)
    assert told["written"] == 1
    spent = {row["contestant"]: row["ms"] for row in told["all"]}
    assert spent == {
        **dict.fromkeys(everything.QUESTIONS, 2000.0),
        "all": 2000.0 * len(told["ran"]),
    }


def test_a_question_that_fails_does_not_stop_the_next(told):
    told["fails"] = ("memory",)
    assert everything.main([]) == 1
    assert told["ran"] == list(everything.QUESTIONS)
    assert told["written"] == 1
    assert "all" not in told, "its time would be that of a failure"


def test_one_question_can_be_asked_alone(told):
    assert everything.main(["scaling"]) == 0
    assert (told["ran"], told["written"]) == (["scaling"], 1)
    assert "all" not in told


def test_an_unknown_question_is_refused(told, capsys):
    assert everything.main(["speed"]) == 2
    assert told["ran"] == []
    assert "no question 'speed'" in capsys.readouterr().err


def test_questions_are_modules_that_say_what_they_ask():
    told = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for name in everything.QUESTIONS:
        source = (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")
        assert source.startswith('"""')
        assert "?" in source.partition("\n")[0], f"{name} asks nothing"
        assert f"| `{name}` |" in told


def test_a_question_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    seen = {}

    def run(command, env, stdout):
        seen.update(command=command, env=env)
        return type("Ended", (), {"returncode": 7})

    monkeypatch.setattr(everything.subprocess, "run", run)
    spent, code = everything.run("memory", tmp_path)
    assert (code, spent >= 0) == (7, True)
    assert seen["command"][1:] == ["-m", "benchmarks.memory"]
    assert seen["env"]["WORK"] == str(tmp_path)
    assert seen["env"]["TADIFF_CACHE"].startswith(str(tmp_path))


def test_no_rows_are_no_rows(tmp_path):
    assert load("nothing", tmp_path) == []
