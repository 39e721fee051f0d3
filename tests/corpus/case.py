"""What a case of the corpus is, and which endings are required of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.corpus.phantom import Data

Spoil = Callable[[Data], object]


Undo = Callable[[], object]


def nothing(data: Data) -> None:
    """The good case."""


@dataclass(frozen=True)
class Refused:
    """The command ends with an exit code and these findings, in this order, and writes nothing."""

    codes: tuple[str, ...]
    exit_code: int = 3
    says: tuple[str, ...] = ()
    """Words that message and fix must hold."""

    @property
    def words(self) -> str:
        return f"exit {self.exit_code}, {' '.join(dict.fromkeys(self.codes)) or 'no code'}"


@dataclass(frozen=True)
class Accepted:
    """The result is complete, on the voxels of the last T1, and `how` it compares with `like`."""

    how: str = "complete"
    """complete: not compared; equal: every bit; mapped: every bit after mapping back to RAS;
    close: within 1e-5 of the largest voxel; overlap: every bit on the voxels of both grids, and
    nothing at the edges of a larger one; first: volume of the first sample; other: not equal."""
    like: "CorpusCase | None" = None
    """None: the good case."""
    note: str = ""
    """Words that a note of the report holds; empty: not looked at."""
    no_note: bool = False
    """The notes are those of the case that it is compared with."""
    exit_code: int = 0
    codes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        what = {
            "complete": "accepted",
            "equal": "accepted, equal in every bit",
            "mapped": "accepted, equal in every bit after mapping back",
            "close": "accepted, equal within 1e-5",
            "overlap": "accepted, equal in every bit where grids overlap",
            "first": "accepted, the first sample equal",
            "other": "accepted, another result",
        }[self.how]
        ending = f"exit {self.exit_code}, {' '.join(self.codes)}; " if self.exit_code else ""
        return ending + what + (f", note: {self.note}" if self.note else "")


@dataclass(frozen=True)
class Said:
    """The command says something and ends; there is no result."""

    exit_code: int
    out: str = ""
    err: str = ""

    @property
    def words(self) -> str:
        return f"exit {self.exit_code}, no code"


@dataclass(frozen=True)
class Either:
    """Refused as an input by whatever code, or accepted: of random faults."""

    codes: tuple[str, ...] = ()
    """Those that may be; empty: any."""
    may_be_accepted: bool = True

    @property
    def words(self) -> str:
        return "exit 3, any code; or accepted" if self.may_be_accepted else "exit 3"


Ending = Refused | Accepted | Said | Either


@dataclass(frozen=True, kw_only=True, eq=False)
class CorpusCase:
    """One bad or odd input, and how a forecast of it must end."""

    id: str
    """Of the kind of fault: N06."""
    what: str
    """In words; with the id it names the case."""
    spoil: Spoil = nothing
    """Makes it from the good data set."""
    ending: Ending
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the reader and of the request, by their Python names."""
    argv: Callable[[Data, str], Sequence[str]] | None = None
    """(data, engine) -> a whole command line, where it is the input; there is no Python API."""
    arrange: Callable[[Data], Undo | None] = nothing
    """Done to the process right before the run; what it returns is called after it."""
    fresh: Mapping[str, str | None] | None = None
    """Run in a new interpreter, with these environment variables changed (None: removed)."""
    interpreter: tuple[str, ...] = ()
    """Arguments of that interpreter."""
    cpu_seconds: float = 5.0
    """At most these, of the run alone."""
    memory_mb: int = 1000
    """At most so much more than before."""
    many: int = 0
    """The case stands for so many variants through the command ..."""
    many_files: int = 0
    """... and for so many files through the reader alone."""
    slow: bool = False
    api: bool = True
    """False: only a command can do this."""
    differs: str = ""
    """Why the required ending is not the one first asked for."""

    @property
    def key(self) -> str:
        return f"{self.id} {self.what}"


@dataclass(frozen=True)
class Elsewhere:
    """An id that no input to a forecast can stand for, and the tests that do."""

    id: str
    what: str
    tests: tuple[str, ...]
    """FILE::NAME of the test functions."""


GOOD = CorpusCase(id="-", what="the good case", ending=Accepted())
