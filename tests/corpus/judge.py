"""Whether a run ended as required, and what every ending owes whatever the case."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.corpus.case import Accepted, CorpusCase, Either, Refused, Said
from tests.corpus.phantom import Data
from tests.corpus.results import Result, compare, on_grid_of

Listing = dict[str, tuple[int, int, str]]
MAX_HASHED = 1 << 26
CODE = re.compile(r"\bTD\d{4}\b")


@dataclass
class Run:
    """How one run ended."""

    exit_code: int
    codes: list[str]
    said: str = ""
    """Messages and fixes of the findings."""
    out: str = ""
    err: str = ""
    result: Result | None = None
    kind: str = ""
    """Of the exception that Python raised."""
    complaints: list[str] = field(default_factory=list)


def listing(folder: Path) -> Listing:
    """Everything in a folder, files with their content; pipes and links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        digest, inode = "", status.st_ino
        if path.is_symlink():
            inode = 0  # a case turns one to and fro
        elif path.is_file() and status.st_size < MAX_HASHED:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = (status.st_mode, inode, digest)
    return found


def judge(case: CorpusCase, run: Run, data: Data, like: Result | None) -> list[str]:
    """Everything about a run that is not as required; empty when all is."""
    ending = case.ending
    complaints = list(run.complaints)
    if isinstance(ending, Either):
        if run.exit_code == 0 and ending.may_be_accepted:
            return complaints + (run.result.complaints if run.result else ["no result"])
        wrong = [code for code in run.codes if ending.codes and code not in ending.codes]
        if run.exit_code != 3 or not run.codes or wrong:
            complaints.append(f"ended with {run.exit_code} and {run.codes}")
        return complaints
    if run.exit_code != ending.exit_code:
        complaints.append(f"exit code {run.exit_code}, not {ending.exit_code}")
    if isinstance(ending, Said):
        missing = ending.out not in run.out or ending.err not in run.err or bool(run.codes)
        return complaints + (["it says something else"] if missing else [])
    if run.codes != list(ending.codes):
        complaints.append(f"codes {run.codes}, not {list(ending.codes)}")
    if isinstance(ending, Refused):
        missing = [word for word in ending.says if word not in run.said]
        return complaints + [f"it does not say {word!r}: {run.said}" for word in missing]
    return complaints + _accepted(ending, run, data, like)


def _accepted(ending: Accepted, run: Run, data: Data, like: Result | None) -> list[str]:
    if run.result is None:
        return ["there is no result"]
    complaints = [*run.result.complaints, *on_grid_of(run.result, data.t1)]
    if ending.note and not any(ending.note in note for note in run.result.notes):
        complaints.append(f"no note says {ending.note!r}: {run.result.notes}")
    if like is None:
        return complaints
    if ending.no_note and run.result.notes != like.notes:
        complaints.append(f"the notes are {run.result.notes}, not {like.notes}")
    return complaints + compare(ending.how, run.result, like)


def stderr_complaints(err: str, num_findings: int) -> list[str]:
    """Where stderr breaks the form of an error message, whatever is wrong."""
    complaints = []
    if "Traceback" in err:
        complaints.append("a traceback")
    if not re.fullmatch(r"[\x20-\x7e\n]*", err):
        complaints.append("stderr is not plain ASCII")
    if len(err.splitlines()) > 4 * num_findings:
        complaints.append(f"{len(err.splitlines())} lines for {num_findings} findings")
    heads = [line for line in err.splitlines() if not line.startswith("  ")]
    if len(heads) != num_findings or any(len(CODE.findall(line)) != 1 for line in heads):
        complaints.append("not one code a finding")
    return complaints


def changes(before: Listing, after: Listing, allowed: Sequence[str] = ()) -> list[str]:
    """Names that came, went or changed, but for those in the folders `allowed`."""
    names = [name for name in before.keys() | after if before.get(name) != after.get(name)]
    kept = [n for n in names if not any(n == top or n.startswith(f"{top}/") for top in allowed)]
    return [f"changed on disk: {name!r}" for name in sorted(kept)]
