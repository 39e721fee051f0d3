"""Runs the corpus of bad and odd inputs, and writes docs/corpus.md.

    python -m tests.corpus                        # all cases in three ways; the table on stdout
    python -m tests.corpus N06 "V13 units"        # those whose name starts so; no table
    python -m tests.corpus --mutations 60000 --write

Ends with 1 if a case does not end as required.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.corpus.cases import CASES
from tests.corpus.engine import write_engine
from tests.corpus.harness import MODES, ROOT, run_all
from tests.corpus.names import MUTATIONS
from tests.corpus.table import Outcomes, render

PAGE = ROOT / "docs/corpus.md"


def main(argv: list[str] | None = None) -> int:
    """Runs what is asked for; the number of cases that did not end as required, as 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("names", nargs="*", help="starts of names, as N06")
    parser.add_argument("--mode", choices=MODES, action="append", help="default: all")
    parser.add_argument("--engine", type=Path, help="made by an earlier run with --keep-engine")
    parser.add_argument("--keep-engine", type=Path, help="folder to make the engine in")
    parser.add_argument("--mutations", type=int, default=MUTATIONS, help="files of N38")
    parser.add_argument("--write", action="store_true", help="write docs/corpus.md")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        engine = asked.engine or write_engine(asked.keep_engine or Path(folder))
        outcomes = run(engine, asked.names, asked.mode or list(MODES), asked.mutations)
    wrong = [o for mode in outcomes.values() for o in mode.values() if o["complaints"]]
    if not asked.names and not asked.mode:
        page = render(outcomes, f"Headers of N38: {asked.mutations} mutations.")
        if asked.write:
            PAGE.write_text(page)
        else:
            print(page)  # noqa: T201
    print(f"{len(wrong)} runs did not end as required", file=sys.stderr)  # noqa: T201
    return 1 if wrong else 0


def run(engine: Path, names: list[str], modes: list[str], mutations: int) -> Outcomes:
    """The outcomes, each complaint said as it comes."""
    cases = [case for case in CASES if not names or case.key.startswith(tuple(names))]
    outcomes: dict[str, dict[str, dict[str, object]]] = {}
    for mode in modes:
        outcomes[mode] = {}
        slowest = 0.0
        for case, outcome in run_all(mode, engine, cases, mutations):
            outcomes[mode][case.key] = outcome
            slowest = max(slowest, float(outcome.get("cpu_seconds", 0)))
            for what in outcome["complaints"]:
                print(f"{mode}: {case.key}: {what}", file=sys.stderr)  # noqa: T201
        done = f"{mode}: {len(outcomes[mode])} cases, slowest {slowest:.2f} s"
        print(done, file=sys.stderr)  # noqa: T201
    return outcomes


if __name__ == "__main__":
    raise SystemExit(main())
