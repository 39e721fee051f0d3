"""What `import tadiff_rt` and commands that do not forecast leave unimported; public names."""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import tadiff_rt
from tadiff_rt.readers import read_case

ROOT = Path(tadiff_rt.__file__).parents[1]
DEMO = Path(tadiff_rt.__file__).parent / "data/demo.tadiff"

FORECASTING = {
    *("nibabel", "onnxruntime", "matplotlib", "torch", "tadiff_kernels", "rich"),
    *("tadiff_rt.forecast", "tadiff_rt.commands", "tadiff_rt.backends", "tadiff_rt.readers"),
}
"""What no command needs that forecasts nothing."""
BUNDLES = {"numpy", "tadiff_rt.bundle", "tadiff_rt.case"}
"""What only a command needs that opens a bundle: its model card is checked against a schedule."""
PARSING = {"typer", "pydantic", "tadiff_rt.console", "tadiff_rt.errors"}
"""What a command line needs."""

DEFINED_IN = {
    "Case": "tadiff_rt.case",
    "Forecast": "tadiff_rt.assembly",
    "Forecaster": "tadiff_rt.forecast",
    "ReadOptions": "tadiff_rt.case",
    "Session": "tadiff_rt.case",
    "TadiffError": "tadiff_rt.errors",
    "Volume": "tadiff_rt.case",
    "read_case": "tadiff_rt.readers",
}


def run(code: str, *arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        cwd=ROOT,
    )
    assert ended.returncode in (0, 2), ended.stderr  # 2: the help, where nothing was asked
    return ended.stdout


def imported(code: str) -> set[str]:
    """All modules that a fresh interpreter has imported at its end."""
    last = f"import atexit, sys; atexit.register(lambda: print('\\n', *sys.modules))\n{code}"
    return set(run(last).splitlines()[-1].split())


def imported_by_command(words: Sequence[str]) -> set[str]:
    """The same, of `tadiff-rt`."""
    return imported(f"sys.argv[1:] = {list(words)}; from tadiff_rt.cli import main; main()")


def test_the_package_alone_imports_none_of_its_modules():
    found = imported("import tadiff_rt")
    assert "tadiff_rt" in found
    assert not found & (FORECASTING | BUNDLES | PARSING)


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["predict", "--help"], []])
def test_what_only_a_bundle_needs_is_not_imported_to_answer(words):
    found = imported_by_command(words)
    assert "tadiff_rt.console" in found
    assert not found & (FORECASTING | BUNDLES)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_what_only_a_forecast_needs_is_not_imported_to_describe_a_bundle(more):
    found = imported_by_command(["info", str(DEMO), *more])
    assert found >= BUNDLES
    assert not found & FORECASTING


def test_the_probe_would_notice():
    every = "import " + ", ".join(sorted((FORECASTING | BUNDLES | PARSING) - {"torch"}))
    assert imported(f"{every}; sys.modules['torch'] = sys") >= FORECASTING | BUNDLES | PARSING


def test_public_names_are_those_of_their_modules():
    assert set(tadiff_rt.__all__) == set(DEFINED_IN)
    for name, module in DEFINED_IN.items():
        assert getattr(tadiff_rt, name) is getattr(sys.modules[module], name)
        assert getattr(tadiff_rt, name).__module__ == module
        assert name in vars(tadiff_rt)  # found without a call from now on


def test_a_star_takes_all_public_names_and_nothing_else():
    code = "from tadiff_rt import *; print(*sorted(n for n in dir() if n[0] != '_'))"
    assert run(code).split() == sorted(DEFINED_IN)


def test_names_are_listed_before_they_are_imported():
    listed = run("import tadiff_rt; print(*dir(tadiff_rt))").split()
    assert set(DEFINED_IN) | {"__all__", "__doc__"} <= set(listed)


def test_type_checkers_are_told_the_same():
    """mypy and editors read the imports that never run."""
    tree = ast.parse((ROOT / "tadiff_rt/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for node in block.body if isinstance(node, ast.ImportFrom))
    told = {alias.name: node.module for node in imports for alias in node.names}
    assert told == DEFINED_IN


def test_other_names_are_errors_in_the_usual_words():
    with pytest.raises(AttributeError) as usual:
        ast.nosuch  # noqa: B018
    expected = str(usual.value).replace("'ast'", "'tadiff_rt'")
    with pytest.raises(AttributeError) as ours:
        tadiff_rt.nosuch  # noqa: B018
    assert str(ours.value) == expected
    with pytest.raises(ImportError, match="cannot import name 'nosuch' from 'tadiff_rt'"):
        from tadiff_rt import nosuch  # noqa: F401
    assert not hasattr(tadiff_rt, "__wrapped__")  # which inspect and doctest ask for


def test_a_name_whose_dependency_is_missing_is_no_missing_name():
    """hasattr must not answer "no" because nibabel is broken."""
    code = (
        "import sys; sys.modules['nibabel'] = None; import tadiff_rt\n"
        "try: hasattr(tadiff_rt, 'Forecaster')\n"
        "except ModuleNotFoundError as e: print(e.name)"
    )
    assert run(code).split() == ["nibabel"]


def test_names_can_be_replaced_and_modules_imported_under_it(monkeypatch):
    monkeypatch.setattr(tadiff_rt, "read_case", len)
    from tadiff_rt import errors
    from tadiff_rt import read_case as replaced

    assert replaced is len
    assert errors is sys.modules["tadiff_rt.errors"]
    monkeypatch.undo()
    assert tadiff_rt.read_case is read_case


@pytest.mark.parametrize("module", ["tadiff_rt", "tadiff_rt.backends", "tadiff_rt.cli"])
@pytest.mark.parametrize(("before", "after"), [("", "1"), ("0", "0")])
def test_onnxruntime_is_told_not_to_report_by_whatever_comes_first(module, before, after):
    """Unless the user said something else."""
    code = (
        "import os; before = os.environ.pop('ORT_DISABLE_TELEMETRY')\n"
        "if before: os.environ['ORT_DISABLE_TELEMETRY'] = before\n"
        f"import {module}; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    assert run(code, ORT_DISABLE_TELEMETRY=before).split() == [after]
