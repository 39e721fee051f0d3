"""The data that docs/quickstart.md walks through, faults included, made from the bundled case.

A newcomer's folders: `mine`, a BIDS data set, and `scans`, loose files of another grid. Each fault
is mended by a function whose name the page holds in a comment, where the reader would run another
program: `<!-- then: strip_skulls -->`.
"""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

DEMO = Path(__file__).parents[1] / "tadiff_rt" / "data" / "demo_case"
SESSIONS = {"ses-01": "ses-03", "ses-02": "ses-04", "ses-03": "ses-05"}
"""Of the walk: those of the bundled case that are forecast from."""
DATES = ("2021-03-01", "2021-03-16", "2021-03-29")
DAYS = (0, 15, 28)
TREATMENTS = ("CRT", "CRT", "TMZ")
IMAGES = {"t1": "T1w", "t1c": "ce-gadolinium_T1w", "flair": "FLAIR"}
SPACING = (1.0, 1.0, 3.0)
"""Millimetres, of the loose files."""
TURNED = 6.0
"""Degrees by which the head lies otherwise in the session that nobody registered."""


def prepare(root: Path) -> None:
    """`mine` and `scans` as they come from the clinic."""
    _mine(root / "mine")
    _scans(root / "scans")


def write_days(root: Path) -> None:
    """Days in place of dates."""
    _table(root / "mine", DAYS)


def strip_skulls(root: Path) -> None:
    """What a brain extraction leaves."""
    for session in SESSIONS:
        for ending in IMAGES.values():
            _save(_image(root / "mine", session, ending), *_demo(session, ending))


def register(root: Path) -> None:
    """The last session resampled by a registration onto the grid of the first."""
    for modality in IMAGES:
        path = root / "scans" / f"day28_{modality}.nii.gz"
        image = nib.load(path)
        affine = nib.load(root / "scans" / f"day0_{modality}.nii.gz").affine
        _save(path, np.asanyarray(image.dataobj), affine)


def _mine(root: Path) -> None:
    shutil.copy(DEMO / "dataset_description.json", _folder(root))
    _table(root, DATES)
    for session in SESSIONS:
        for ending in IMAGES.values():
            data, affine = _demo(session, ending)
            _save(_image(root, session, ending), _with_skull(data), affine)
        masks = root / "derivatives" / "manual" / "sub-17" / session / "anat"
        tumour, affine = _demo_mask(session)
        _save(masks / f"sub-17_{session}_desc-tumour_dseg.nii.gz", _brats(tumour), affine)


def _scans(root: Path) -> None:
    turn = np.radians(TURNED)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    lines = ["session,day,treatment,t1,t1c,flair"]
    for session, day, treatment in zip(SESSIONS, DAYS, TREATMENTS, strict=True):
        names = {modality: f"day{day}_{modality}.nii.gz" for modality in IMAGES}
        lines.append(f"day{day},{day},{treatment},{','.join(names.values())}")
        for modality, ending in IMAGES.items():
            data, affine = _resampled(*_demo(session, ending))
            _save(_folder(root) / names[modality], data, turned @ affine if day == 28 else affine)
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")


def _resampled(data: NDArray, affine: NDArray) -> tuple[NDArray, NDArray]:
    """`data` on voxels of SPACING over the same field of view, the background still 0."""
    edges = np.abs(np.diag(affine)[:3])
    ratio = np.array(SPACING) / edges
    shape = np.floor(np.array(data.shape) / ratio).astype(int)
    offset = (ratio - 1) / 2  # both grids begin at the same edge
    smooth = ndimage.affine_transform(data, ratio, offset, tuple(shape), order=1)
    brain = ndimage.affine_transform(
        (data > 0).astype(np.uint8), ratio, offset, tuple(shape), order=0
    )
    scale = np.diag([*ratio, 1.0])
    scale[:3, 3] = offset
    return (smooth * brain).astype(np.int16), affine @ scale


def _with_skull(data: NDArray) -> NDArray:
    """A bright shell around the brain, and noise in the air."""
    brain = ndimage.binary_fill_holes(data > 0)
    shell = ndimage.binary_dilation(brain, iterations=4) & ~ndimage.binary_dilation(brain)
    noise = np.random.default_rng(17).integers(1, 9, data.shape)
    return np.where(brain, data, np.where(shell, np.percentile(data[brain], 95), noise))


def _brats(tumour: NDArray) -> NDArray:
    """Labels of BraTS 2023: 1 necrosis within 3 enhancing tumour within 2 oedema."""
    core = [ndimage.binary_erosion(tumour > 0, iterations=n) for n in (2, 4)]
    return np.select([core[1], core[0], tumour > 0], [1, 3, 2], 0)


def _demo(session: str, ending: str) -> tuple[NDArray, NDArray]:
    name = SESSIONS[session]
    image = nib.load(DEMO / "sub-demo" / name / "anat" / f"sub-demo_{name}_{ending}.nii.gz")
    return np.asanyarray(image.dataobj), image.affine


def _demo_mask(session: str) -> tuple[NDArray, NDArray]:
    name = SESSIONS[session]
    folder = DEMO / "derivatives" / "phantom" / "sub-demo" / name / "anat"
    image = nib.load(folder / f"sub-demo_{name}_desc-tumour_dseg.nii.gz")
    return np.asanyarray(image.dataobj), image.affine


def _image(root: Path, session: str, ending: str) -> Path:
    return root / "sub-17" / session / "anat" / f"sub-17_{session}_{ending}.nii.gz"


def _table(root: Path, days: tuple[object, ...]) -> None:
    lines = ["session_id\tdays_from_baseline\ttreatment"]
    rows = zip(SESSIONS, days, TREATMENTS, strict=True)
    lines += ["\t".join(map(str, row)) for row in rows]
    (_folder(root / "sub-17") / "sub-17_sessions.tsv").write_text("\n".join(lines) + "\n")


def _save(path: Path, data: NDArray, affine: NDArray) -> None:
    _folder(path.parent)
    nib.save(nib.Nifti1Image(data.astype(np.int16), affine), path)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
