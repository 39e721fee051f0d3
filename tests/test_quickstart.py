"""Every command of the pages for newcomers runs and prints what the page says."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import walk
from tests.console import matches, run_here, sessions_of_python, steps

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("quickstart", "what_if", "results_folder", "inputs")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The data of the walk, as they come from the clinic."""
    root = tmp_path_factory.mktemp("walk")
    walk.prepare(root)
    return root


@pytest.fixture
def folder(data, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the data to work in; signals and environment come back."""
    root = tmp_path / "walk"
    shutil.copytree(data, root)
    monkeypatch.chdir(root)
    before = dict(os.environ)
    signals = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield root
    for number, handler in signals.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page, folder, capsys):
    found = steps((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    assert any(step.command for step in found)
    for step in found:
        if step.then:
            getattr(walk, step.then)(folder)
            continue
        code, printed = run_here(step.command, capsys.readouterr)
        said = "\n".join(printed)
        assert matches(step.shown, printed), f"$ {step.command}\n{said}"
        assert (code != 0) == ("error TD" in said), f"$ {step.command} ended with {code}"


@pytest.mark.slow
def test_the_page_on_python_does_what_it_says(folder):
    assert list(sessions_of_python(DOCS / "python.md")) == []
