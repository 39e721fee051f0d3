"""The good case that every other one is made from: a small brain in four sessions, as BIDS."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

SHAPE = (28, 32, 24)
SPACING_MM = 2.0
WINDOW = 32
"""In-plane voxels that the tiny engine takes."""
AFFINE = np.array([[-2.0, 0, 0, 28], [0, 2, 0, -32], [0, 0, 2, -24], [0, 0, 0, 1]])
"""LAS: a left-right flip, as many scanners write it."""
CENTRE, RADII = (12.6, 16.5, 11.3), (9.4, 12.4, 9.4)
SUFFIXES = {"t1": "T1w", "t1c": "ce-gadolinium_T1w", "flair": "FLAIR"}
SESSIONS = ((0, "CRT"), (30, "CRT"), (75, "TMZ"), (160, "TMZ"))
LAST = len(SESSIONS)

Affine = NDArray[np.float64]
Voxels = NDArray[np.generic]


def head(shape: tuple[int, int, int] = SHAPE, scale: float = 1.0) -> NDArray[np.bool_]:
    """An ellipsoid off the middle of the grid."""
    axes = np.indices(shape).reshape(3, -1).T
    distance = (((axes - np.array(CENTRE) * scale) / (np.array(RADII) * scale)) ** 2).sum(axis=1)
    return distance.reshape(shape) < 1


def scan(seed: int, brain: NDArray[np.bool_] | None = None) -> NDArray[np.int16]:
    """A skull-stripped scan: three tissues and noise, background exactly 0."""
    rng = np.random.default_rng(seed)
    brain = head() if brain is None else brain
    tissue = rng.choice([250.0, 500.0, 750.0], size=brain.shape, p=[0.2, 0.45, 0.35])
    return np.where(brain, tissue + rng.normal(scale=40, size=brain.shape), 0).astype(np.int16)


def save(path: Path, voxels: Voxels, affine: Affine = AFFINE) -> None:
    """Writes a NIfTI file with equal qform and sform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nibabel.save(image, path)


@dataclass
class Data:
    """A copy of the good data set, to be spoilt; builders may move what is forecast."""

    root: Path
    case: Path = field(init=False)
    """What the command is given as --case."""
    t1: Path = field(init=False)
    """The last T1, on whose voxels the result must lie."""
    out: Path = field(init=False)
    variant: int = 0
    """Of a case that is many: which one to make."""

    def __post_init__(self) -> None:
        self.case = self.root / "data/sub-17"
        self.t1 = self.image(modality="t1")
        self.out = self.root / "out/forecast"

    @property
    def bids(self) -> Path:
        """The data set."""
        return self.root / "data"

    @property
    def table(self) -> Path:
        """Sessions, days and treatments."""
        return self.bids / "sub-17/sub-17_sessions.tsv"

    def image(self, session: int = LAST, modality: str = "flair") -> Path:
        """One of twelve images."""
        name = f"ses-{session:02d}"
        return self.bids / f"sub-17/{name}/anat/sub-17_{name}_{SUFFIXES[modality]}.nii.gz"

    def mask(self, session: int = LAST) -> Path:
        """The tumour mask of a session."""
        name = f"ses-{session:02d}"
        folder = self.bids / f"derivatives/manual/sub-17/{name}/anat"
        return folder / f"sub-17_{name}_desc-tumour_dseg.nii.gz"

    def images(self, session: int = 0) -> list[Path]:
        """Of one session, or of all."""
        sessions = [session] if session else range(1, LAST + 1)
        return [self.image(s, m) for s in sessions for m in SUFFIXES]

    def masks(self) -> list[Path]:
        """Of all sessions."""
        return [self.mask(s) for s in range(1, LAST + 1)]

    def voxels(self, session: int = LAST, modality: str = "flair") -> Voxels:
        """As they are stored."""
        return np.asarray(nibabel.load(self.image(session, modality)).dataobj)

    def put(self, voxels: Voxels, affine: Affine = AFFINE) -> None:
        """Other voxels, or another affine, for the FLAIR of the last session."""
        save(self.image(), voxels, affine)

    def rewrite(self, change: Callable[[str], str]) -> None:
        """Another text of the session table."""
        self.table.write_bytes(change(self.table.read_text()).encode())

    def manifest(self, name: str = "manifest.csv", **cells: str) -> Path:
        """The same case as a table of files; `cells` are those of the last session."""
        rows = ["session,day,treatment,t1,t1c,flair,mask"]
        for s, (day, treatment) in enumerate(SESSIONS, 1):
            files = {m: str(self.image(s, m).relative_to(self.bids)) for m in SUFFIXES}
            files["mask"] = str(self.mask(s).relative_to(self.bids))
            files |= cells if s == LAST else {}
            rows.append(f"v{s},{day},{treatment}," + ",".join(files.values()))
        self.case = self.bids / name
        self.case.write_text("\n".join(rows) + "\n")
        return self.case


def write_good(root: Path) -> Data:
    """The good data set in a new folder."""
    data = Data(root)
    rows = ["session_id\tdays_from_baseline\ttreatment"]
    for s, (day, treatment) in enumerate(SESSIONS, 1):
        rows.append(f"ses-{s:02d}\t{day}\t{treatment}")
        for m, modality in enumerate(SUFFIXES):
            save(data.image(s, modality), scan(10 * s + m))
        mask = np.zeros(SHAPE, np.uint8)
        mask[8 : 11 + s, 12:18, 8:14] = 1
        save(data.mask(s), mask)
    data.table.write_text("\n".join(rows) + "\n")
    for name in ("out", "tmp"):
        (root / name).mkdir()
    return data


def copy_of(good: Data, root: Path) -> Data:
    """A copy in a new folder."""
    shutil.copytree(good.root, root)
    return Data(root)
