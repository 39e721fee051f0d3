"""G01 to G21: where voxels lie, and whether the images of a case lie on one grid."""

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import orientations

from tests.corpus.case import Accepted, CorpusCase, Refused, Spoil
from tests.corpus.phantom import AFFINE, Affine, Data, head, save, scan

MIRRORED = AFFINE @ np.diag([-1.0, 1, 1, 1])
ORIENTATIONS = tuple(
    "".join(pair[side] for pair, side in zip(pairs, sides, strict=True))
    for pairs in permutations(("LR", "PA", "IS"))
    for sides in product((0, 1), repeat=3)
)
FAST_ORIENTATIONS = ("RAS", "PLI", "PIR")


def refused(what: str, id: str, *codes: str, spoil: Spoil, **more: Any) -> CorpusCase:
    says = more.pop("says", ())
    return CorpusCase(id=id, what=what, spoil=spoil, ending=Refused(codes, says=says), **more)


def shifted(mm: float) -> Affine:
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def every_affine(data: Data, affine: Affine) -> None:
    """The same voxels elsewhere, in all files of the case."""
    for path in [*data.images(), *data.masks()]:
        save(path, np.asarray(nibabel.load(path).dataobj), affine)


def store_as(path: Path, axcodes: str) -> None:
    """The same image in another order of axes."""
    old = nibabel.load(path)
    turn = orientations.ornt_transform(
        orientations.io_orientation(old.affine), orientations.axcodes2ornt(axcodes)
    )
    new = old.as_reoriented(turn)
    save(path, np.asarray(new.dataobj), new.affine)


def all_stored_as(data: Data, axcodes: str) -> None:
    for path in [*data.images(), *data.masks()]:
        store_as(path, axcodes)


def mixed_orientations(data: Data) -> None:
    for i, path in enumerate(sorted([*data.images(), *data.masks()])):
        if path != data.t1:
            store_as(path, ORIENTATIONS[5 * i % len(ORIENTATIONS)])


def turned(degrees: float) -> Affine:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return turn @ AFFINE


def heads(data: Data, shape: tuple[int, int, int], scale: float = 1.0) -> None:
    """Heads on a grid of another shape, without masks."""
    brain = head(shape, scale)
    for i, path in enumerate(data.images()):
        save(path, scan(i, brain))
    for path in data.masks():
        path.unlink()


def padded(data: Data, pads: tuple[tuple[int, int], ...]) -> None:
    """All files with rows of background added, or, where a number is below 0, voxels cut off."""
    affine = AFFINE.copy()
    affine[:3, 3] -= AFFINE[:3, :3] @ [before for before, _ in pads]
    cut = tuple(slice(max(0, -a), -max(0, -b) or None) for a, b in pads)
    for path in [*data.images(), *data.masks()]:
        voxels = np.asarray(nibabel.load(path).dataobj)[cut]
        save(path, np.pad(voxels, [(max(0, a), max(0, b)) for a, b in pads]), affine)


def swap(a: Path, b: Path) -> None:
    """Each file under the name of the other."""
    other = b.read_bytes()
    b.write_bytes(a.read_bytes())
    a.write_bytes(other)


def session_moved(data: Data, session: int, affine: Affine) -> None:
    """All files of a session elsewhere."""
    for path in [*data.images(session), data.mask(session)]:
        save(path, np.asarray(nibabel.load(path).dataobj), affine)


def spaced(*edges: float) -> Affine:
    return np.diag([*edges, 1.0])


CASES = (
    refused(
        "one image a voxel away",
        "G01",
        "TD3201",
        spoil=lambda d: d.put(d.voxels(), shifted(2)),
        says=("2 mm apart",),
    ),
    refused("one image without a plane", "G02", "TD3201", spoil=lambda d: d.put(d.voxels()[:-1])),
    CorpusCase(
        id="G03",
        what="header and data of one image flipped",
        spoil=lambda d: store_as(d.image(), "RAS"),
        ending=Accepted("equal", no_note=True),
    ),
    CorpusCase(
        id="G03",
        what="every image in another orientation",
        spoil=mixed_orientations,
        ending=Accepted("equal", no_note=True),
    ),
    refused(
        "header flipped, data not",
        "G04",
        "TD3202",
        spoil=lambda d: d.put(d.voxels(), MIRRORED),
        says=("mirrored", "54.0 mm"),
    ),
    *(
        CorpusCase(
            id="G05",
            what=f"all files on {axcodes} axes",
            spoil=lambda d, a=axcodes: all_stored_as(d, a),
            ending=Accepted("mapped", no_note=True),
            slow=axcodes not in FAST_ORIENTATIONS,
        )
        for axcodes in ORIENTATIONS
    ),
    refused(
        "one session 1 mm away",
        "G16",
        *["TD3201"] * 3,
        spoil=lambda d: [
            save(p, np.asarray(nibabel.load(p).dataobj), shifted(1)) for p in d.images(3)
        ],
    ),
    refused(
        "brain larger than the window",
        "G17",
        "TD3211",
        spoil=lambda d: heads(d, (40, 48, 36), 1.5),
        says=("brain voxels would be cut off",),
    ),
    CorpusCase(
        id="G17",
        what="grid larger than the window, brain not",
        spoil=lambda d: padded(d, ((9, 11), (10, 12), (3, 0))),
        ending=Accepted("overlap"),
    ),
    refused(
        "one slice",
        "G18",
        "TD3208",
        spoil=lambda d: padded(d, ((0, 0), (0, 0), (-11, -12))),
        says=("axial slices, at least",),
    ),
    refused(
        "two slices", "G18", "TD3208", spoil=lambda d: padded(d, ((0, 0), (0, 0), (-11, -11)))
    ),
    CorpusCase(
        id="G18",
        what="eight slices",
        spoil=lambda d: padded(d, ((0, 0), (0, 0), (-8, -8))),
        ending=Accepted(),
    ),
    CorpusCase(
        id="G20",
        what="T1 and T1c of a session swapped",
        spoil=lambda d: swap(d.image(3, "t1"), d.image(3, "t1c")),
        ending=Accepted("other"),
        differs="It is not told (no W3210): how T1 and T1c correlate in patients was not at hand.",
    ),
    CorpusCase(
        id="G21",
        what="grid cropped tightly around the brain",
        spoil=lambda d: padded(d, ((-4, -6), (-5, -3), (-2, 0))),
        ending=Accepted("overlap"),
    ),
    CorpusCase(
        id="G21",
        what="grid that cuts through the brain",
        spoil=lambda d: padded(d, ((-9, 0), (0, -9), (0, 0))),
        ending=Accepted(),
    ),
)
