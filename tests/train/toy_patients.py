"""Toy patients on disk, their truth read and cropped by hand, and stubs of what forecasts them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np

from tadiff_rt.case import TREATMENTS, Case
from tadiff_rt.forecast import choose_slices
from tadiff_rt.preprocess import DataContract, Window, prepare
from tadiff_rt.request import select_sources
from tadiff_rt.runner import EnsembleResult
from tadiff_rt.slices import parse_slices
from tadiff_train.data import find_subjects
from tadiff_train.evaluation import Draw, PatientResult, Scope, evaluate

SIZE = 24
SHAPE = (22, 26, 16)
VOXEL_ML = 0.001
CONTRACT = DataContract(size=SIZE)
SUFFIXES = {"t1": "T1w", "t1c": "ce-gadolinium_T1w", "flair": "FLAIR"}
DAYS, PLAN = (0, 14, 30, 90, 141), ("CRT", "CRT", "CRT", "TMZ", "TMZ")

Truth = tuple[np.ndarray, np.ndarray]
"""(3, d, size, size) images and (d, size, size) tumour on the network's grid."""


def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    axes = np.indices(SHAPE).reshape(3, -1).T
    return (((axes - centre) / radii) ** 2).sum(axis=1).reshape(SHAPE) < 1


def brain_of(session: int) -> np.ndarray:
    """Wider at one side in the third source, and at the other two in the target, which would
    move a window of its own."""
    brain = ellipsoid((10, 13, 8), (8.5, 9.5, 7.5))
    if session == 3:
        brain |= np.roll(brain, -1, axis=0)
    if session == 4:
        brain |= np.roll(brain, 2, axis=0) | np.roll(brain, 2, axis=1)
    return brain


def tumour_of(session: int) -> np.ndarray:
    """Grows and moves, in the target also up; the shape is alike under no shift or flip."""
    z = 8.2 if session == 4 else 7
    blob = ellipsoid((8 + 0.5 * session, 11, z), (2.2 + 0.3 * session, 3.4, 2.6))
    return blob | ellipsoid((11, 15, 8), (2.4, 1.5, 1.2))


def save(path: Path, data: np.ndarray, axcodes: str) -> None:
    """Stores an array on R, A, S axes in another order of axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4)
    affine[:3, 3] = -10
    ras = nib.Nifti1Image(data, affine)
    transform = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes)
    )
    image = ras.as_reoriented(transform)
    image.set_qform(image.affine, code="scanner")
    image.set_sform(image.affine, code="scanner")
    nib.save(image, path)


def mask_path(root: Path, subject: str, session: int, desc: str = "tumour") -> Path:
    name = f"{subject}_ses-{session + 1:02d}_desc-{desc}_dseg.nii.gz"
    folder = root / "derivatives" / "phantom" / subject / f"ses-{session + 1:02d}" / "anat"
    return folder / name


def image_path(root: Path, subject: str, session: int, modality: str) -> Path:
    name = f"{subject}_ses-{session + 1:02d}_{SUFFIXES[modality]}.nii.gz"
    return root / subject / f"ses-{session + 1:02d}" / "anat" / name


def write_subject(root: Path, number: int = 1, sessions: int = len(DAYS)) -> None:
    """The last `sessions` of DAYS, the target in another storage order than the sources."""
    subject, first = f"sub-{number:03d}", len(DAYS) - sessions
    rows = ["session_id\tdays_from_baseline\ttreatment"]
    for s in range(sessions):
        rng = np.random.default_rng([number, first + s])
        axcodes = "LPS" if s == sessions - 1 else "RAS"
        tumour = tumour_of(first + s)
        for modality in SUFFIXES:
            tissue = rng.choice([250.0, 500.0, 750.0], size=SHAPE) + rng.normal(
                scale=40, size=SHAPE
            )
            tissue[tumour] += 300
            scan = np.where(brain_of(first + s), tissue, 0).astype(np.float32)
            save(image_path(root, subject, s, modality), scan, axcodes)
        save(mask_path(root, subject, s), tumour.astype(np.uint8), axcodes)
        rows.append(f"ses-{s + 1:02d}\t{DAYS[first + s] - DAYS[first]}\t{PLAN[first + s]}")
    (root / subject / f"{subject}_sessions.tsv").write_text("\n".join(rows) + "\n")


def pli(path: Path) -> np.ndarray:
    """By hand: nearest R, A, S axes, then all flipped and the first two exchanged."""
    data = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
    return data[::-1, ::-1, ::-1].transpose(1, 0, 2)


def oracle(root: Path, session: int, mask: Path | None = None, sources=(1, 2, 3)) -> Truth:
    """Session `session` of sub-001 in the window around the brains of `sources`, by hand."""
    subject, margin = "sub-001", 30
    paths = [image_path(root, subject, s, m) for s in sources for m in SUFFIXES]
    brain = np.any([pli(path) > 0 for path in paths], axis=0)
    corner = []
    for axis in (0, 1):
        held = np.flatnonzero(brain.any(axis=(1 - axis, 2)))
        first, n = held.min(), held.max() + 1 - held.min()
        corner.append(first - (SIZE - n) // 2 + margin)

    def cut(data: np.ndarray) -> np.ndarray:
        wide = np.pad(data, ((margin, margin), (margin, margin), (0, 0)))
        a, b = corner
        return np.moveaxis(wide[a : a + SIZE, b : b + SIZE], 2, 0)

    images = []
    for modality in SUFFIXES:
        data = pli(image_path(root, subject, session, modality)).astype(np.float64)
        low, high = np.percentile(data[data > 0], (0.2, 99.8))
        images.append(cut(np.where(data > 0, np.clip(data, low, high) / high, 0)))
    return np.stack(images), cut(pli(mask or mask_path(root, subject, session)) > 0)


def move_session(root: Path, session: int) -> None:
    """Equal shape, moved by one voxel in the header only."""
    for modality in SUFFIXES:
        path = image_path(root, "sub-001", session, modality)
        image = nib.load(path)
        affine = image.affine.copy()
        affine[0, 3] += 1
        moved = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        moved.set_qform(affine, code="scanner")
        moved.set_sform(affine, code="scanner")
        nib.save(moved, path)


class Stub:
    """Answers every request with volumes on the network's grid, chosen by treatment."""

    def __init__(
        self,
        answer: Callable[[str], Truth],
        more_voxels: Sequence[int] | None = None,
        std: np.ndarray | float = 0.0,
    ) -> None:
        """Sample k has `more_voxels[k]` voxels above the answer's; as a default, 10 k."""
        card = SimpleNamespace(
            data=CONTRACT, max_day=400, max_horizon_days=51, treatments=dict(TREATMENTS)
        )
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(card=card))
        self.answer = answer
        self.more_voxels = more_voxels
        self.std = std
        self.asked: list[tuple[Case, dict]] = []
        self.window: Window | None = None

    def predict(self, case: Case, **request) -> SimpleNamespace:
        self.asked.append((case, request))
        prepared = prepare(select_sources(case)[0], CONTRACT)
        slices = list(choose_slices(prepared, parse_slices(request["slices"])))
        images, tumour = self.answer(request["treatment"])
        depth, samples = len(prepared.sources), request["samples"]
        result = EnsembleResult.empty(depth, SIZE, samples)
        result.mean[:, slices] = images[:, slices]
        if samples > 1:
            result.std[:, slices] = np.broadcast_to(self.std, images.shape)[:, slices]
        result.probability[slices] = tumour[slices]
        more = 10 * np.arange(samples) if self.more_voxels is None else self.more_voxels
        result.tumour_voxels[:] = (tumour[slices] > 0.5).sum() + more
        if self.window:
            prepared = dataclasses.replace(prepared, window=self.window)
        return SimpleNamespace(ensemble=result, prepared=prepared)


def run_all(stub: Stub, root: Path, **options) -> list[PatientResult]:
    """Every subject below `root`; without growth unless `grow` is given."""
    draw = {"samples": 2, "steps": 3, "seed": 7}
    draw |= {key: options.pop(key) for key in ("samples", "coherence") if key in options}
    scope = Scope(max_slices=options.pop("max_slices", None))
    options = {"grow": None} | options
    return evaluate(stub, find_subjects(root), draw=Draw(**draw), scope=scope, **options)


def run(stub: Stub, root: Path, **options) -> PatientResult:
    """The only subject below `root`."""
    (result,) = run_all(stub, root, **options)
    return result


def brain_of_sources(root: Path, sources=(1, 2, 3)) -> np.ndarray:
    """(d, size, size) voxels > 0 in any source image of sub-001, by hand."""
    images = [oracle(root, s, sources=sources)[0] for s in sources]
    return np.any(np.array(images) > 0, axis=(0, 1))


def plans(root: Path) -> dict[str, np.ndarray]:
    """Without treatment there is more tumour, after chemoradiation less."""
    futures = {
        "none": tumour_of(4) | ellipsoid((10, 9, 7), (3, 2, 2)),
        "CRT": tumour_of(4) & ~ellipsoid((10, 13, 7), (9, 2.2, 9)),
    }
    for treatment, future in futures.items():
        path = mask_path(root, "sub-001", 4, f"tumour{treatment}")
        save(path, future.astype(np.uint8), "LPS")
    return futures
