"""G06 to G15 and G19: the affine of one image, voxel edges, and what the labels of masks are."""

import gzip

import nibabel
import numpy as np

from tests.corpus import forge
from tests.corpus.case import Accepted, CorpusCase, Refused
from tests.corpus.forge import patched, plain, put
from tests.corpus.grids import every_affine, refused, session_moved, shifted, spaced, turned
from tests.corpus.phantom import SPACING_MM, Data, save


def oriented(data: Data, qform_code: int, sform_code: int, **fields: object) -> None:
    put(data, patched(plain(data), qform_code=qform_code, sform_code=sform_code, **fields))


def conflicting(data: Data) -> None:
    """A qform of other axes than the sform."""
    put(data, patched(plain(data), quatern_b=0.0, quatern_c=0.0))


def lost_orientation(data: Data) -> None:
    """Files on R, A, S axes that do not say so."""
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    every_affine(data, affine)
    for path in [*data.images(), *data.masks()]:
        content = gzip.decompress(path.read_bytes())
        content = patched(content, qform_code=0, sform_code=0)
        path.write_bytes(gzip.compress(content, 1))


def no_check_of_affine(data: Data) -> None:
    """nibabel puts a flipped affine where there is none: it is no oracle here."""
    lost_orientation(data)
    data.t1 = data.root / "tmp/t1.nii.gz"
    save(data.t1, data.voxels(modality="t1"), np.diag([SPACING_MM] * 3 + [1.0]))


def many_labels(data: Data, third: int) -> None:
    """Three tissues in the last mask."""
    mask = np.asarray(nibabel.load(data.mask()).dataobj).copy()
    mask[9, 12:18, 8:14] *= 2
    mask[10, 12:18, 8:14] *= third
    save(data.mask(), mask)


def relabel(data: Data, labels: dict[int, float]) -> None:
    """Other numbers in the last mask."""
    old = np.asarray(nibabel.load(data.mask()).dataobj)
    new = old.astype(np.float32)
    for label, number in labels.items():
        new[old == label] = number
    save(data.mask(), new)


ON_RAS = CorpusCase(
    id="G11",
    what="the same on R, A, S axes",
    spoil=lambda d: every_affine(d, spaced(*[SPACING_MM] * 3)),
    ending=Accepted(),
)


CASES = (
    refused(
        "sheared by 0.3", "G06", "TD3203", spoil=lambda d: put(d, forge.sheared(d.voxels(), 0.3))
    ),
    CorpusCase(
        id="G07",
        what="sheared by 2e-6",
        spoil=lambda d: [
            p.write_bytes(
                gzip.compress(forge.sheared(np.asarray(nibabel.load(p).dataobj), 2e-6), 1)
            )
            for p in [*d.images(), *d.masks()]
        ],
        ending=Accepted("equal"),
    ),
    refused(
        "affine of zeros",
        "G08",
        "TD3204",
        spoil=lambda d: oriented(d, 0, 1, srow_x=0, srow_y=0, srow_z=0),
    ),
    refused(
        "singular affine",
        "G08",
        "TD3204",
        spoil=lambda d: oriented(d, 0, 1, srow_y=[1.0, 0, 0, 0]),
    ),
    refused(
        "NaN in the affine",
        "G08",
        "TD3204",
        spoil=lambda d: oriented(d, 0, 1, srow_x=[np.nan, 0, 0, 0]),
    ),
    refused(
        "origin 1e30 mm away",
        "G08",
        "TD3204",
        spoil=lambda d: oriented(d, 0, 1, srow_x=[1, 0, 0, 1e30]),
    ),
    refused(
        "pixdim 0 in the qform", "G09", "TD3204", spoil=lambda d: oriented(d, 1, 0, pixdim={2: 0})
    ),
    refused(
        "pixdim NaN in the qform",
        "G09",
        "TD3204",
        spoil=lambda d: oriented(d, 1, 0, pixdim={2: np.nan}),
    ),
    refused("qfac 3", "G09", "TD3204", spoil=lambda d: oriented(d, 1, 0, pixdim={0: 3})),
    refused(
        "a quaternion longer than 1",
        "G10",
        "TD3204",
        spoil=lambda d: oriented(d, 1, 0, quatern_b=0.9, quatern_c=0.9),
    ),
    refused(
        "no orientation", "G11", *["TD3205"] * 12, spoil=lost_orientation, says=("--assume-ras",)
    ),
    CorpusCase(
        id="G11",
        what="no orientation, --assume-ras",
        spoil=no_check_of_affine,
        options={"assume_ras": True},
        ending=Accepted("equal", like=ON_RAS, note="no orientation"),
    ),
    refused("qform against sform", "G12", "TD3206", spoil=conflicting, says=("--affine=sform",)),
    CorpusCase(
        id="G12",
        what="qform against sform, --affine=sform",
        spoil=conflicting,
        options={"affine": "sform"},
        ending=Accepted("equal", note="the other orientation ignored as asked for"),
    ),
    CorpusCase(
        id="G13",
        what="all turned by 20 degrees",
        spoil=lambda d: every_affine(d, turned(20)),
        ending=Accepted(),
    ),
    refused(
        "slices of 6 mm",
        "G14",
        "TD3207",
        spoil=lambda d: every_affine(d, spaced(0.5, 0.5, 6)),
        says=("2 mm", "--resample"),
    ),
    refused(
        "voxels of 30 mm", "G15", "TD3207", spoil=lambda d: every_affine(d, spaced(30, 30, 30))
    ),
    refused(
        "voxels of 0.01 mm",
        "G15",
        "TD3207",
        spoil=lambda d: every_affine(d, spaced(0.01, 0.01, 0.01)),
    ),
    refused(
        "mask on another grid",
        "G19",
        "TD3201",
        spoil=lambda d: save(d.mask(), np.asarray(nibabel.load(d.mask()).dataobj), shifted(2)),
    ),
    CorpusCase(
        id="G14",
        what="slices of 4 mm, --resample",
        spoil=lambda d: every_affine(d, spaced(1.5, 1.5, 4)),
        options={"resample": True},
        ending=Accepted(note="resampled"),
    ),
    CorpusCase(
        id="G16",
        what="one session 1 mm away, --resample",
        spoil=lambda d: session_moved(d, 3, shifted(1)),
        options={"resample": True},
        ending=Accepted("other", note="resampled"),
    ),
    refused(
        "one session turned by 20 degrees, --resample",
        "G16",
        *["TD3201"] * 4,
        spoil=lambda d: session_moved(d, 3, turned(20)),
        says=("ANTs",),
        options={"resample": True},
    ),
    CorpusCase(
        id="G16",
        what="nothing to resample, --resample",
        options={"resample": True},
        ending=Accepted("equal", no_note=True),
    ),
    refused(
        "several labels and no convention",
        "G19",
        "TD3209",
        spoil=lambda d: many_labels(d, 4),
        says=("--labels", "brats2021"),
    ),
    refused(
        "a label that the convention does not have",
        "G19",
        "TD3209",
        spoil=lambda d: many_labels(d, 3),
        options={"labels": "brats2021"},
    ),
    CorpusCase(
        id="G19",
        what="labels 1, 2 and 4, --labels=brats2021",
        spoil=lambda d: many_labels(d, 4),
        options={"labels": "brats2021"},
        ending=Accepted("equal", note="brats2021"),
    ),
    CorpusCase(
        id="G19",
        what="a convention that is unknown",
        options={"labels": "brats"},
        ending=Refused(("TD3005",), exit_code=2),
    ),
    refused(
        "labels 0 and 255", "G19", "TD3209", spoil=lambda d: relabel(d, {1: 255}), says=("255",)
    ),
    refused(
        "labels 0 and 0.5", "G19", "TD3209", spoil=lambda d: relabel(d, {1: 0.5}), says=("0.5",)
    ),
)
