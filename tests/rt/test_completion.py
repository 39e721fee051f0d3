"""What the tab key offers: commands, options, and their values."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tadiff_rt.backends import BACKENDS
from tadiff_rt.case import TREATMENTS
from tadiff_rt.cli import app
from tadiff_rt.console import run_app
from tadiff_rt.labels import CONVENTIONS
from tadiff_rt.solvers import SOLVERS


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """`run_app` takes signals over; the test run gets them back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def offered(monkeypatch, capsys) -> Callable[[str], list[str]]:
    """What is offered after a line, as bash asks for it."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("_TADIFF_RT_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
        with pytest.raises(SystemExit) as ended:
            run_app(app, "tadiff-rt", [])
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return out.split()

    return ask


def test_commands(offered):
    assert offered("tadiff-rt ") == ["predict", "demo", "info", "certify"]
    assert offered("tadiff-rt pre") == ["predict"]


def test_options(offered):
    found = offered("tadiff-rt predict --")
    assert {"--engine", "--case", "--day", "--labels", "--resample", "--check"} <= set(found)
    assert offered("tadiff-rt predict --resa") == ["--resample"]
    assert "--resample" not in offered("tadiff-rt info --")


def test_values_of_treatments_and_labels_are_all_there_are(offered):
    assert offered("tadiff-rt predict --treatment ") == list(TREATMENTS)
    assert offered("tadiff-rt predict --treatment T") == ["TMZ"]
    assert set(offered("tadiff-rt predict --labels ")) == set(CONVENTIONS)
    assert offered("tadiff-rt predict --labels brats2") == ["brats2021", "brats2023", "brats2024"]


def test_values_of_other_options_are_ones_that_exist(offered):
    solvers = offered("tadiff-rt predict --solver ")
    assert solvers[0] == "auto"
    assert set(solvers[1:]) <= set(SOLVERS)
    assert {"auto", "logsnr", "optimised"} <= set(offered("tadiff-rt predict --grid "))
    backends = offered("tadiff-rt predict --backend ")
    assert backends[0] == "auto"
    assert set(backends[1:]) <= set(BACKENDS)
    assert "tumour" in offered("tadiff-rt predict --slices ")
    assert "lumiere" in offered("tadiff-rt predict --layout ")


def test_without_a_shell_that_asks_no_arguments_are_an_error(capsys):
    with pytest.raises(SystemExit) as ended:
        run_app(app, "tadiff-rt", [])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Usage: tadiff-rt")


def test_bash_itself_completes_a_line(tmp_path):
    """With the script that `--install-completion` arranges to be sourced."""
    program = tmp_path / "tadiff-rt"
    program.write_text(f"#!{sys.executable}\nfrom tadiff_rt.cli import main\nmain()\n")
    program.chmod(0o755)
    script = """
        source <(_TADIFF_RT_COMPLETE=source_bash tadiff-rt)
        complete -p tadiff-rt
        COMP_WORDS=(tadiff-rt predict --labels hd) COMP_CWORD=3
        _tadiff_rt_completion tadiff-rt
        echo "${COMPREPLY[@]}"
    """
    result = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "complete -o default -F _tadiff_rt_completion tadiff-rt",
        "hdglio",
    ]
