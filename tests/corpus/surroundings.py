"""A05, A08 to A11: streams, environment and limits of the process."""

import os
import resource
from collections.abc import Callable

from tests.corpus.case import Accepted, CorpusCase, Refused, Undo
from tests.corpus.phantom import Data

EQUAL = Accepted("equal")


def redirected(descriptor: int, path: str) -> Callable[[Data], None]:
    def arrange(data: Data) -> None:
        file = os.open(path, os.O_WRONLY)
        os.dup2(file, descriptor)
        os.close(file)

    return arrange


def reader_gone(descriptor: int) -> Callable[[Data], None]:
    def arrange(data: Data) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, descriptor)
        os.close(writer)

    return arrange


def closed(*descriptors: int) -> Callable[[Data], None]:
    def arrange(data: Data) -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return arrange


def around(
    id: str, what: str, arrange: Callable[[Data], Undo | None], ending: Accepted | Refused = EQUAL
) -> CorpusCase:
    """The good case in odd surroundings."""
    return CorpusCase(id=id, what=what, arrange=arrange, ending=ending, api=False)


def fresh(id: str, what: str, environment: dict[str, str | None], *interpreter: str) -> CorpusCase:
    """The good case in a new interpreter."""
    return CorpusCase(
        id=id,
        what=what,
        fresh=environment,
        interpreter=interpreter,
        ending=Accepted("equal"),
        cpu_seconds=20,
        slow=True,
        api=False,
    )


def gone(data: Data) -> None:
    folder = data.root / "tmp/gone"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def hidden(data: Data) -> Undo:
    old = os.umask(0o777)
    return lambda: (
        os.umask(old),
        data.out.chmod(0o700),
        [p.chmod(0o600) for p in data.out.rglob("*") if p.is_file()],
    )


def few_files(data: Data) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


CASES = (
    around(
        "A05",
        "standard output is full",
        redirected(1, "/dev/full"),
        Accepted("equal", exit_code=8, codes=("TD8009",)),
    ),
    around("A05", "standard error is full", redirected(2, "/dev/full")),
    around("A05", "the reader of standard output has gone", reader_gone(1)),
    around("A05", "the reader of standard error has gone", reader_gone(2)),
    around("A05", "standard output is closed", closed(1)),
    around("A05", "all streams are closed", closed(0, 1, 2)),
    fresh(
        "A08",
        "LC_ALL=C, ASCII, one column, no TMPDIR",
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "1", "TMPDIR": "/no/such"},
    ),
    fresh("A08", "no HOME, no UTF-8", {"HOME": None, "LC_ALL": "POSIX", "PYTHONUTF8": "0"}),
    fresh("A09", "-OO", {}, "-OO"),
    fresh("A09", "warnings are errors", {}, "-W", "error"),
    around("A11", "the current folder is gone", gone, Refused(("TD8003",), exit_code=8)),
    around("A11", "umask 777", hidden),
    around("A11", "64 open files", few_files),
)
