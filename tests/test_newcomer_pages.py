"""What the pages for newcomers say of options, labels and columns; and how they are run."""

import re
from pathlib import Path

import pytest
import typer.main

from tadiff_rt.cli import app
from tadiff_rt.dataset_files import COLUMNS
from tadiff_rt.labels import CONVENTIONS
from tests.console import masked, matches, sessions_of_python, steps

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("quickstart", "what_if", "results_folder", "inputs", "python", "errors")
OF_OTHERS = {
    "--size",
    "--patients",
    "--spacing-mm",
    "--target",
    "--option",
    "--name",
    "--install-completion",
}
"""Options of other commands that the pages name."""


def text(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def test_every_convention_of_labels_is_in_the_table_of_inputs():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", text("inputs"), re.MULTILINE))
    for name, convention in CONVENTIONS.items():
        listed = ", ".join(f"{label} {tissue}" for label, tissue in convention.meanings.items())
        assert rows[name] == listed


@pytest.mark.parametrize("page", [page for page in PAGES if page != "errors"])
def test_options_in_the_prose_are_those_of_predict(page):
    commands = typer.main.get_command(app).commands
    known = {name for option in commands["predict"].params for name in option.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text(page)))
    assert named - {"--help", "--errors"} - OF_OTHERS <= known


def test_every_relaxation_is_listed():
    section = text("inputs").split("## Relaxing a check")[1].split("\n## ")[0]
    for option in ("resample", "sort", "rebase-days", "allow-same", "nonfinite", "assume-ras",
                   "skip-incomplete", "leave-out", "extrapolate", "max-voxels"):  # fmt: skip
        assert f"`--{option}" in section


def test_every_column_of_the_volumes_has_a_row():
    section = text("results_folder").split("| column | |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", section.replace("`difference_...`", "")))
    rest = set(COLUMNS) - named
    assert rest
    assert all(column.startswith("difference_") for column in rest)
    assert named <= set(COLUMNS)


PAGE = """
```console
$ one --a \\
    --b
first 1 line
...
last line
$ two
```

<!-- then: strip_skulls -->
```console
$ three
```
"""


def test_a_page_is_taken_apart_into_its_steps():
    one, two, then, three = steps(PAGE)
    assert (one.command, one.shown) == ("one --a --b", ["first 1 line", "...", "last line"])
    assert (two.command, two.shown, three.command) == ("two", [], "three")
    assert (then.command, then.then) == ("", "strip_skulls")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 1.5 ml", "a  22 ml", True),
        ("+1.0 to 2", "-3 to 4.25", True),
        ("day58-TMZ", "day118-TMZ", False),  # a name, not a number
        ("ses-01", "ses-02", False),
        ("TD3307 a", "TD3309 a", False),
        ("a", "b", False),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
        ("a\n...", "a", True),
        ("...\nc", "a\nb\nc", True),
        ("...\nc", "a\nc\nb", False),
        ("a\n...\nc", "a\nb\nb\nc", True),
        ("", "a", False),
        ("...", "", True),
    ],
)
def test_lines_are_compared_without_their_numbers(shown, printed, same):
    assert matches(shown.splitlines(), printed.splitlines()) == same


def test_numbers_are_masked_and_names_are_not():
    assert masked("  90% interval -0.9 to +0.5, ses-01  (12,345)") == (
        "#% interval # to #, ses-01 (#)"
    )


def test_a_session_of_python_that_prints_something_else_is_told(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```pycon\n>>> x = 3\n>>> f'{x} ml'\n'4 ml'\n```\n\n>>> 'a'\n'b'\n")
    (said,) = sessions_of_python(page)
    assert "'b'" in said
    page.write_text(">>> 1 / 0\n")
    (said,) = sessions_of_python(page)
    assert "ZeroDivisionError" in said
