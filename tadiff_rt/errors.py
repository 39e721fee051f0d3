"""Errors that tadiff raises on purpose; anything else that escapes is a bug.

TadiffError
├── UsageError        2   the request cannot be understood or contradicts itself
├── InputDataError    3   an image, a session table or the combination of them cannot be used
│   ├── NiftiError        one image file is damaged, hostile or not what it claims
│   ├── GeometryError     affines, shapes or spacings disagree
│   └── TableError        days, treatments or file lists are malformed or out of range
├── ModelFileError    4   a checkpoint or an ONNX file cannot be used
├── EngineError       5   an engine bundle is missing, damaged, or cannot run on this machine
├── NumericsError     6   a result is not finite, or an artefact does not compute its checkpoint
├── ResourceError     7   memory, disk or time ran out
└── OutputError       8   the result cannot be written where asked

The number is the exit code of every command (documented API). Codes such as TD3107 are never
renumbered: TD30xx arguments, 31xx image files, 32xx geometry, 33xx session tables, 40xx
checkpoints, 41xx ONNX, 50xx bundles and engines, 60xx numerics, 70xx resources, 80xx output.
"""

from collections.abc import Sequence


class TadiffError(Exception):
    """Base class: `except TadiffError` catches everything a caller can act on.

    Args:
        code: "TDnnnn", stable; what scripts match on.
        message: what is wrong, with the values, and what was expected.
        where: the file, table line or option at fault.
        fix: what to do about it.
    """

    exit_code = 70

    def __init__(self, code: str, message: str, *, where: str = "", fix: str = "") -> None:
        self.code = code
        self.message = message
        self.where = where
        self.fix = fix
        self.others: tuple[TadiffError, ...] = ()
        """Further findings of the same check, each an error of its own."""
        super().__init__(f"{code}: {message}" + (f" [{where}]" if where else ""))

    @property
    def findings(self) -> tuple["TadiffError", ...]:
        """This error, then every other problem found by the same check."""
        return (self, *self.others)


class UsageError(TadiffError):
    """The request cannot be understood or contradicts itself."""

    exit_code = 2


class InputDataError(TadiffError, ValueError):
    """An image, a session table or the combination of them cannot be used."""

    exit_code = 3


class NiftiError(InputDataError):
    """One image file is damaged, hostile or not what it claims to be."""


class GeometryError(InputDataError):
    """Volumes of one case do not lie on one voxel grid, or on one the model accepts."""


class TableError(InputDataError):
    """Days, treatments or file lists are malformed or out of range."""


class ModelFileError(TadiffError):
    """A checkpoint or an ONNX file cannot be used."""

    exit_code = 4


class EngineError(TadiffError):
    """An engine bundle is missing, damaged, or cannot run on this machine."""

    exit_code = 5


class NumericsError(TadiffError):
    """A result is not finite, or an artefact does not compute its checkpoint."""

    exit_code = 6


class ResourceError(TadiffError):
    """Memory, disk or time ran out."""

    exit_code = 7


class OutputError(TadiffError):
    """The result cannot be written where asked."""

    exit_code = 8


def raise_findings(findings: Sequence[TadiffError]) -> None:
    """Raises the first of `findings` carrying all the others; does nothing for none.

    A check collects every problem before it raises, so that a user repairs a case once.
    """
    if findings:
        first, *others = findings
        first.others = tuple(others)
        raise first


def printable(text: str) -> str:
    """`text` with control characters escaped and anything outside ASCII replaced.

    File names and table cells are hostile text: a name may hold terminal escapes.
    """
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped.encode("ascii", "backslashreplace").decode()


def describe(error: TadiffError, command: str) -> str:
    """What a command prints on stderr: for every finding the problem, where it is, and the fix."""
    lines = []
    for finding in error.findings:
        lines.append(f"{command}: error {finding.code}: {printable(finding.message)}")
        if finding.where:
            lines.append(f"  where: {printable(finding.where)}")
        if finding.fix:
            lines.append(f"  fix:   {printable(finding.fix)}")
    return "\n".join(lines)
