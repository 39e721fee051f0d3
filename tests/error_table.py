"""The tables of docs/errors.md, from the source.  `python -m tests.error_table [--check]`

Writes them between their markers. `--check` writes nothing and fails where the committed tables
are not what it would write.
"""

import sys
from pathlib import Path

import tadiff_rt.errors
from benchmarks.spread_table import table, with_blocks
from tests.error_meanings import MEANINGS
from tests.raised_errors import Raised, error_classes, raised_codes

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
FAMILIES = {
    "TD30": "arguments",
    "TD31": "image files",
    "TD32": "geometry and masks",
    "TD33": "sessions, days, treatments",
    "TD40": "checkpoints",
    "TD41": "ONNX graphs and programs",
    "TD50": "bundles and engines",
    "TD60": "numerics",
    "TD70": "resources",
    "TD80": "output",
}
"""What the first digits of a code say."""

MOST_SHOWN = 4
"""Messages of one code in the table; a code of damaged files has more."""


def exit_table() -> str:
    """Exit codes of the error classes, and what each says."""
    by_exit: dict[int, list[type]] = {}
    for name in sorted(error_classes()):
        kind = getattr(tadiff_rt.errors, name)
        if kind.__base__ in (Exception, tadiff_rt.errors.TadiffError) or name == "InputDataError":
            by_exit.setdefault(kind.exit_code, []).append(kind)
    rows = []
    for number, kinds in sorted(by_exit.items()):
        for kind in kinds:
            says = (kind.__doc__ or "").splitlines()[0]
            if kind is tadiff_rt.errors.TadiffError:
                says = "A fault of the program itself; please report it."
            rows.append([str(number), f"`{kind.__name__}`", says])
    return table(["exit", "class in Python", "when"], rows)


def code_table(found: dict[str, Raised], family: str) -> str:
    """The codes that start with `family`: what each means and in which words it is said."""
    rows = []
    for code, raised in found.items():
        if code.startswith(family):
            exits = ", ".join(str(number) for number in sorted(raised.exits))
            rows.append([code, exits, MEANINGS.get(code, ""), messages(raised)])
    return table(["code", "exit", "meaning", "message"], rows)


def messages(raised: Raised) -> str:
    """Templates of the messages, as code; words of other programs say nothing here."""
    told = sorted(text for text in raised.messages if text.strip("{}") not in ("what", "e", "..."))
    shown = [f"`{text.replace('|', '/')}`" for text in told[:MOST_SHOWN]]
    if len(told) > MOST_SHOWN:
        shown.append(f"and {len(told) - MOST_SHOWN} more")
    return "<br>".join(shown)


def blocks(found: dict[str, Raised]) -> dict[str, str]:
    """Every generated block of the page, by the name in its markers."""
    codes = {f"codes {family}": code_table(found, family) for family in FAMILIES}
    return {"exit codes": exit_table(), **codes}


def problems(found: dict[str, Raised]) -> list[str]:
    """Codes that scripts cannot rely on, and meanings of codes that are not raised."""
    said = [f"{code} is not raised any more" for code in sorted(set(MEANINGS) - set(found))]
    for code, raised in found.items():
        if not raised.messages and code not in MEANINGS:
            said.append(f"{code} has no message")
        if len(raised.messages) > 1 and code not in MEANINGS:
            said.append(f"{code} has several messages and no meaning in tests/error_meanings.py")
        if code[:4] not in FAMILIES:
            said.append(f"{code} belongs to no family")
    return said


def main(*arguments: str) -> None:
    """Writes the tables into the page, or checks them."""
    if arguments not in ((), ("--check",)):
        raise SystemExit("usage: python -m tests.error_table [--check]")
    found = raised_codes()
    said = problems(found)
    if said:
        raise SystemExit("\n".join(said))
    page = PAGE.read_text(encoding="utf-8")
    fresh = with_blocks(page, blocks(found))
    if arguments and fresh != page:
        raise SystemExit(f"{PAGE.name} is out of date: run python -m tests.error_table")
    PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
