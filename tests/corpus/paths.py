"""N34 and N35: what is not a regular file, is not there, or may not be read."""

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus.case import CorpusCase, Refused, Spoil, Undo
from tests.corpus.phantom import Data

CAPABILITY_VERSION = 0x20080522
OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


def instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def listen(path: Path) -> None:
    """A socket; a path of its own is too long for one."""
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path.name)
    os.chdir(here)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": listen,
    "/dev/zero": endless,
}


def refused(id: str, what: str, code: str, spoil: Spoil, **more: Any) -> CorpusCase:
    return CorpusCase(id=id, what=what, spoil=spoil, ending=Refused((code,)), **more)


def to_case(make: Callable[[Path], object]) -> Spoil:
    """The case itself is no folder of a subject."""

    def spoil(data: Data) -> None:
        data.case = data.bids / "case.csv"
        make(data.case)

    return spoil


SPECIAL = (
    *(
        refused("N34", f"an image is {name}", "TD3121", lambda d, m=make: instead(d.image(), m))
        for name, make in KINDS.items()
    ),
    *(
        refused("N34", f"the mask is {name}", "TD3121", lambda d, m=make: instead(d.mask(), m))
        for name, make in KINDS.items()
    ),
    *(
        refused("N34", f"the table is {name}", "TD3121", lambda d, m=make: instead(d.table, m))
        for name, make in KINDS.items()
        if name not in ("a folder", "a socket")
    ),
    *(
        refused("N34", f"the case is {name}", "TD3121", to_case(make))
        for name, make in KINDS.items()
        if name != "a folder"
    ),
    refused(
        "N35",
        "a link to nothing",
        "TD3122",
        lambda d: instead(d.image(), lambda p: p.symlink_to("x")),
    ),
    refused(
        "N35",
        "a link to itself",
        "TD3122",
        lambda d: instead(d.image(), lambda p: p.symlink_to(p.name)),
    ),
    refused(
        "N35",
        "a file of a manifest that is not there",
        "TD3122",
        lambda d: d.manifest(t1="no/such.nii"),
    ),
    refused("N35", "no table", "TD3122", lambda d: d.table.unlink()),
    refused("N35", "no case", "TD3122", lambda d: setattr(d, "case", d.bids / "no/such")),
)


def without_privilege(data: Data) -> Undo | None:
    """Root may read and write everything; here it has to obey modes as its files' owner does."""
    if os.geteuid() != 0:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    if libc.capget(header, held):
        raise OSError(ctypes.get_errno(), "capget")
    fewer = type(held)(*held)
    fewer[0] &= ~OVERRIDES
    if libc.capset(header, fewer):
        raise OSError(ctypes.get_errno(), "capset")
    return lambda: libc.capset(header, held)


def unreadable(what: str, path: Callable[[Data], Path], codes: tuple[str, ...]) -> CorpusCase:
    return CorpusCase(
        id="N35",
        what=f"{what} without permission to read",
        spoil=lambda d: path(d).chmod(0),
        arrange=without_privilege,
        ending=Refused(codes),
    )


UNREADABLE = (
    unreadable("an image", lambda d: d.image(), ("TD3123",)),
    unreadable("the table", lambda d: d.table, ("TD3123",)),
    unreadable("the folder of a subject", lambda d: d.bids / "sub-17", ("TD3123",)),
)
CASES = (*SPECIAL, *UNREADABLE)
