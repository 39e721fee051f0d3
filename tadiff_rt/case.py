"""A case: one subject's MRI sessions, their days and treatments, as read from disk."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODALITIES = ("t1", "t1c", "flair")
"""Order of the image channels of every session, as in training."""

TREATMENTS = {"CRT": 0, "TMZ": 1, "none": 2}
"""Code fed to the network for each treatment name (names are case-sensitive).

CRT: chemoradiation, TMZ: temozolomide. The treatment of a session is the one given in the
interval that ends at it; of the first session, the one about to start.
"""

MAX_DAY = 99_999


@dataclass(frozen=True)
class Volume:
    """One 3-D image as stored in its file, with where its voxels lie."""

    data: NDArray[np.float32]
    """(x, y, z) in the file's own axis order; finite."""
    affine: NDArray[np.float64]
    """(4, 4) voxel index -> RAS+ millimetres."""
    label: str
    """What messages call it, e.g. "sub-01/ses-02/T1w.nii.gz"; never part of a result."""
    sha256: str
    """Of the voxel bytes and the affine, not of the file (gzip headers differ)."""
    header: Any = field(repr=False, compare=False, default=None)
    """nibabel header of the file: qform, sform and their codes go back into results."""


@dataclass(frozen=True)
class Session:
    """One MRI visit."""

    name: str
    day: int
    """Days since the first session."""
    treatment: str
    """A key of TREATMENTS."""
    images: dict[str, Volume]
    """One volume for each of MODALITIES."""
    mask: Volume | None = None
    """Tumour labels, if known; any value > 0 is tumour, what is none (`labels`) having been set
    to 0."""


@dataclass(frozen=True)
class Case:
    """One subject's sessions in order of day, the first on day 0."""

    name: str
    sessions: tuple[Session, ...]
    notes: tuple[str, ...] = ()
    """What a reader had to assume or relax; shown to the user and recorded in the result."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Relaxations that a user asks for by name; each one used is recorded in `Case.notes`."""

    allow_same: bool = False
    """One file may stand for several modalities of a session."""
    nonfinite: str = "refuse"
    """"refuse", or "zero" to replace NaN and infinite voxels by 0."""
    rebase_days: bool = False
    """Subtract the first session's day from all days."""
    sort: bool = False
    """Sort sessions by day instead of refusing unsorted tables."""
    affine: str = "agree"
    """"agree" (qform and sform must), or "sform" / "qform" to use that one."""
    assume_ras: bool = False
    """Take the voxel axes for R, A, S when the header gives no orientation."""
    max_voxels: int = 512**3
    """An image declaring more is refused before anything is inflated."""
    layout: str = "auto"
    """"auto", or "bids", "sailor", "lumiere", "npy" for a folder that could be several."""
    labels: str = ""
    """What the labels of tumour masks mean, a key of `labels.CONVENTIONS`; empty: what the data
    set says of them, and where it says nothing 1 alone is known."""
    treatments: str = "table"
    """"table": as the data set or a treatments.csv says; "published": SAILOR's first four sessions
    are CRT and all later ones TMZ, whatever was given."""
    skip_incomplete: bool = False
    """Leave out SAILOR and LUMIERE sessions that lack an image."""
    leave_out: tuple[str, ...] = ()
    """Names of SAILOR or LUMIERE sessions to ignore."""
    lumiere_images: str = "auto"
    """"raw", "registered" or "atlas" (see `readers.lumiere`); "auto" where there is only one."""
    npy_grid: str = ""
    """How the axes of npy arrays run and their voxel edge in mm, e.g. "PLI:1"; empty: known for
    the published grid alone."""
