"""N36 to N38: files that change while they are read, hostile names, and random damage."""

import itertools
import os
import shutil
import threading
from pathlib import Path

import numpy as np

from tests.corpus import forge
from tests.corpus.case import Accepted, CorpusCase, Either, Undo
from tests.corpus.paths import instead, refused
from tests.corpus.phantom import Data

MUTATIONS = 3000


def swapped(data: Data) -> None:
    """A link that a thread turns without pause between two files of the same voxels.

    One is int16 and one scaled float32, so a header of one with the data of the other would be
    seen.
    """
    link, folder = data.image(), data.root / "tmp"
    shutil.copy(link, folder / "a.nii.gz")
    halves = forge.patched(forge.nifti(data.voxels() * np.float32(0.5)), scl_slope=2, scl_inter=0)
    (folder / "b.nii").write_bytes(halves)
    instead(link, lambda path: path.symlink_to(folder / "a.nii.gz"))


def keep_swapping(data: Data) -> Undo:
    link, folder = data.image(), data.root / "tmp"
    done = threading.Event()

    def swap() -> None:
        for name in itertools.cycle(("a.nii.gz", "b.nii")):
            if done.is_set():
                return
            new = folder / "link"
            new.symlink_to(folder / name)
            new.replace(link)

    thread = threading.Thread(target=swap)
    thread.start()
    return lambda: (done.set(), thread.join())


def hostile(data: Data, folder: bytes) -> None:
    """The data set under another name."""
    new = Path(os.fsdecode(os.fsencode(data.root) + b"/" + folder))
    data.bids.rename(new)
    data.case, data.t1 = new / "sub-17", new / data.t1.relative_to(data.bids)


def hostile_table(data: Data, name: bytes, content: str = "") -> None:
    """A manifest of such a name, with an error in it if `content` is given."""
    path = data.manifest(os.fsdecode(name))
    if content:
        path.write_text(content)


NAMES = {
    "a newline": b"new\nline",
    "a terminal escape": b"\x1b[2J\x1b]0;x\x07",
    "invalid UTF-8": b"\xff\xfe",
    "a leading dash": b"-rf",
    "251 characters": b"n" * 251,
}
HOSTILE = (
    *(
        CorpusCase(
            id="N37",
            what=f"a folder name with {what}",
            spoil=lambda d, n=name: hostile(d, n),
            ending=Accepted("equal"),
        )
        for what, name in NAMES.items()
    ),
    *(
        CorpusCase(
            id="N37",
            what=f"a table name with {what}",
            spoil=lambda d, n=name: hostile_table(d, n + b".csv"),
            ending=Accepted("equal"),
        )
        for what, name in NAMES.items()
    ),
    *(
        refused(
            "N37",
            f"an error in a table name with {what}",
            "TD3301",
            lambda d, n=name: hostile_table(d, n + b".csv", "session\n"),
        )
        for what, name in NAMES.items()
    ),
    refused("N37", "a NUL in the name of an image", "TD3303", lambda d: d.manifest(t1="a\0b.nii")),
    refused(
        "N37",
        "300 characters in the name of an image",
        "TD3122",
        lambda d: d.manifest(t1="x" * 300),
    ),
)


def mutate(data: Data) -> None:
    content = forge.mutated(forge.good_flair(), data.variant)
    if data.variant % 8:
        forge.put_plain(data, content)
    else:
        for path in data.image().parent.glob("*FLAIR.nii*"):
            path.unlink()
        forge.put(data, content)


FUZZ = (
    CorpusCase(
        id="N38",
        what="one to four random bytes of the header",
        spoil=mutate,
        ending=Either(),
        many=40,
        many_files=MUTATIONS,
        slow=True,
    ),
    CorpusCase(
        id="N36",
        what="a file replaced all the time while it is read",
        spoil=swapped,
        arrange=keep_swapping,
        ending=Accepted("equal"),
        many=5,
        slow=True,
    ),
)
CASES = (*HOSTILE, *FUZZ)
