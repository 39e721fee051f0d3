"""docs/errors.md lists every code that can be raised, and each means one thing."""

import re

import pytest

from tadiff_rt import errors
from tadiff_rt.errors import TadiffError
from tests import error_table
from tests.error_meanings import MEANINGS
from tests.raised_errors import PACKAGES, ROOT, Raised, error_classes, raised_codes

PAGE = error_table.PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found() -> dict[str, Raised]:
    return raised_codes()


def source(tmp_path, text: str):
    """The codes of a program of one file."""
    (tmp_path / PACKAGES[0]).mkdir()
    (tmp_path / PACKAGES[0] / "one.py").write_text(text)
    return raised_codes(tmp_path)


def test_the_committed_tables_are_those_of_the_source(capsys):
    error_table.main("--check")
    assert capsys.readouterr() == ("", "")


def test_every_code_written_in_the_source_has_a_row(found):
    """Against plain text: a code that the walk through the syntax does not reach shows."""
    written = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            written |= set(re.findall(r'"(TD[0-9]{4})"', path.read_text(encoding="utf-8")))
    only_recorded = written - set(found)
    assert only_recorded == {"TD5023"}, "in a bundle's manifest, as the reason of a rejection"
    rows = set(re.findall(r"^\| (TD[0-9]{4}) \|", PAGE, re.MULTILINE))
    assert rows == set(found)


def test_a_code_has_one_class_of_exit_and_one_meaning(found):
    assert error_table.problems(found) == []
    several = {code for code, raised in found.items() if len(raised.exits) > 1}
    assert several <= {"TD4108"}, "a graph in a checkpoint, or in a bundle"


def test_a_second_message_without_a_meaning_is_a_problem(found):
    code = next(code for code in found if code not in MEANINGS)
    changed = {**found, code: Raised({"UsageError"}, {"one", "two"}, set())}
    assert error_table.problems(changed) == [
        f"{code} has several messages and no meaning in tests/error_meanings.py"
    ]
    del changed["TD3000"]
    assert "TD3000 is not raised any more" in error_table.problems(changed)


def test_check_sees_a_changed_table_and_a_run_mends_it(tmp_path, monkeypatch):
    page = tmp_path / "errors.md"
    page.write_text(PAGE.replace("| TD3001 | 2 |", "| TD3001 | 3 |"), encoding="utf-8")
    monkeypatch.setattr(error_table, "PAGE", page)
    with pytest.raises(SystemExit, match="out of date"):
        error_table.main("--check")
    error_table.main()
    assert page.read_text(encoding="utf-8") == PAGE
    with pytest.raises(SystemExit, match="usage"):
        error_table.main("--chekc")


@pytest.mark.parametrize(
    ("text", "codes", "messages"),
    [
        ("raise UsageError('TD3001', f'got {x.name!r}, {len(y)}')", "TD3001", "got {name}, {y}"),
        ("def f():\n what = 'bad'\n raise UsageError('TD3001', what)", "TD3001", "bad"),
        ("C = 'TD3001'\nraise UsageError(C, 'x' + f'{1 + 1}')", "TD3001", "x{...}"),
        ("C = 'the'\nraise UsageError('TD3001', f'{C} end')", "TD3001", "the end"),
        (
            "def f(a):\n code = 'TD3001' if a else 'TD3002'\n raise UsageError(code, 'm')",
            "TD3001 TD3002",
            "m",
        ),
        (
            "def f(p, code):\n raise UsageError(code, f'{p} m')\n"
            "def g():\n f(1, 'TD3001')\n f(p=1, code='TD3002')",
            "TD3001 TD3002",
            "{p} m",
        ),
        (
            "def f(a):\n w = 'first'\n if a:\n  w = 'second'\n raise UsageError('TD3001', w)\n"
            " w = 'after'",
            "TD3001",
            "first|second",
        ),
        (
            "def f(a):\n w = 'before'\n if a:\n  w = 'other branch'\n else:\n"
            "  raise UsageError('TD3001', w)",
            "TD3001",
            "before",
        ),
        ("def f():\n a, w = 1, 'pair'\n return [UsageError('TD3001', w)]", "TD3001", "pair"),
        ("print('TD3001', 'not an error')", "", ""),
    ],
)
def test_codes_and_messages_are_followed_to_where_they_are_given(text, codes, messages, tmp_path):
    read = source(tmp_path, text)
    assert " ".join(read) == codes
    told = sorted({message for raised in read.values() for message in raised.messages})
    assert "|".join(told) == messages


def test_exit_codes_of_the_table_are_those_of_the_classes():
    block = PAGE.split("<!-- generated: exit codes -->")[1].split("<!-- end")[0]
    rows = dict(re.findall(r"^\| (\d+) \| `(\w+)`", block, re.MULTILINE))
    assert {int(number): name for number, name in rows.items()} == {
        getattr(errors, name).exit_code: name
        for name in ("UsageError", "InputDataError", "ModelFileError", "EngineError")
    } | {6: "NumericsError", 7: "ResourceError", 8: "OutputError", 70: "TadiffError"}
    assert issubclass(errors.NiftiError, errors.InputDataError)
    assert {getattr(errors, name).exit_code for name in error_classes()} == set(map(int, rows))


def test_the_attributes_that_the_page_names():
    error = TadiffError("TD7000", "what", where="here", fix="so")
    named = re.findall(r"`(\w+)`", PAGE.split("with the attributes")[1].split(";")[0])
    assert named == ["code", "message", "where", "fix", "findings"]
    assert all(hasattr(error, name) for name in named)
