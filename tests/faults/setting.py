"""The command that is made to fail: a tiny network, a tiny case, some slices."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.server import ForkServer

REQUEST = "--day +90 --treatment TMZ --slices 3:6 --samples 2 --steps 2 --threads 1 -q"


@dataclass(frozen=True)
class Setting:
    """A server with inputs that any user may read, and places for results."""

    server: ForkServer
    bundle: Path
    case: Path

    @classmethod
    def of(cls, server: ForkServer, bundle: Path, case: Path) -> "Setting":
        """Copies the inputs to the server's folder: folders of tests are their owner's alone."""
        data = server.folder / "data"
        shutil.copytree(bundle, data / bundle.name)
        shutil.copytree(case.parent, data / "bids")
        for path in (data, *data.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return cls(server, data / bundle.name, data / "bids" / case.name)

    def place(self, name: str) -> Path:
        """An empty folder of this name."""
        folder = self.server.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def forecast(self, place: Path, *more: str) -> list[str]:
        """Arguments of a forecast to `place`/out that keeps its slices in `place`/work."""
        return [*self.plain(place), "--work", str(place / "work"), *more]

    def plain(self, place: Path, *more: str) -> list[str]:
        """The same without a journal; of an option given twice the last one counts."""
        inputs = ["--engine", str(self.bundle), "--case", str(self.case)]
        return ["predict", *inputs, *REQUEST.split(), "-o", str(place / "out"), *more]


class _Folders:
    """As much of pytest's `tmp_path_factory` as the fixture of a checkpoint asks for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def mktemp(self, name: str) -> Path:
        folder = self._root / name
        folder.mkdir()
        return folder


@contextmanager
def made_setting() -> Iterator[Setting]:
    """A setting without pytest: the tiny network is made and exported, which takes seconds."""
    from tests import conftest

    with tempfile.TemporaryDirectory() as name, ForkServer() as server:
        root = Path(name)
        checkpoint = conftest.checkpoint._get_wrapped_function()(_Folders(root))
        bundle = conftest.export_small(checkpoint, root / "tiny.tadiff", batch=4)
        conftest.write_bids_case(root / "bids")
        yield Setting.of(server, bundle, root / "bids" / "sub-17")
