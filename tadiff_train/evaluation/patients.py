"""One patient as evaluation sees them: what was known before the last session, and that session.

Everything lies on the network's grid, in the window of the forecast: the target is cut by the
window around the sources, not by one of its own.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import MODALITIES, TREATMENTS, Case, ReadOptions, Session, Volume
from tadiff_rt.errors import UsageError
from tadiff_rt.forecast import choose_slices
from tadiff_rt.geometry import canonical_grid, canonical_view, check_same_grid, spacing_of
from tadiff_rt.intensity import measure_range
from tadiff_rt.labels import PUBLISHED, tumour_masks
from tadiff_rt.preprocess import DataContract, Prepared, Window, prepare
from tadiff_rt.readers.nifti import read_volume
from tadiff_rt.request import NUM_SOURCES, select_sources
from tadiff_rt.slices import parse_slices
from tadiff_train.data import Subject
from tadiff_train.metrics import Mask

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Scope:
    """Which slices of a patient are evaluated."""

    slices: str = "tumour"
    """As in `Forecaster.predict`: by the past alone. Chosen by the target's tumour, they would
    hide what is forecast elsewhere. "tumour" is all brain where no source has any."""
    max_slices: int | None = None
    """Of more, every k-th is evaluated."""
    labels: str = ""
    """What labels of masks mean; see `ReadOptions`."""

    def __post_init__(self) -> None:
        if self.max_slices is not None and self.max_slices < 1:
            raise UsageError("TD3034", f"max_slices must be at least 1, got {self.max_slices}")
        parse_slices(self.slices)


@dataclass(frozen=True, eq=False)
class Patient:
    """What is known before the target, and what came; n evaluated slices of the network's grid."""

    case: Case
    """Without the target."""
    target: Session
    prepared: Prepared
    covered: tuple[int, ...]
    """Slices that the choice of slices covers."""
    slices: tuple[int, ...]
    """Of these, the n evaluated ones: every `slice_step`-th."""
    slice_step: int
    images: Float32Array
    """(3, d, h, w) of the target."""
    tumour: Mask
    """(d, h, w) of the target."""
    spacing_mm: tuple[float, float, float]
    """Voxel edges along (d, h, w)."""

    @property
    def at(self) -> list[int]:
        return list(self.slices)

    @property
    def brain(self) -> Mask:
        """(n, h, w) voxels > 0 in any source image."""
        return (self.prepared.sources[self.at] > 0).any(axis=1)

    @property
    def true_images(self) -> Float32Array:
        """(3, n, h, w)."""
        return self.images[:, self.at]

    @property
    def true_tumour(self) -> Mask:
        """(n, h, w)."""
        return self.tumour[self.at]

    @property
    def last_images(self) -> Float32Array:
        """(3, n, h, w) of the last source."""
        return last_source(self.prepared)[:, self.at]

    @property
    def last_tumour(self) -> Mask:
        """(n, h, w) of the last source."""
        return _last_mask(self.prepared)[self.at]

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000

    def ml(self, tumour: Mask) -> float:
        """Volume of a mask over the covered slices, from the evaluated ones.

        Cavalieri's principle (Gundersen and Jensen 1987): a sum over few would be small.
        """
        return float(tumour.sum()) * self.evaluated_ml

    @property
    def evaluated_ml(self) -> float:
        """What a voxel of an evaluated slice stands for."""
        return self.voxel_ml * len(self.covered) / len(self.slices)

    def stacked(self, tumour: Mask) -> Mask:
        """Evaluated slices (n, h, w) on an even grid of every `slice_step`-th slice.

        Slices between that the choice does not cover are empty here.
        """
        rows = [(k - self.slices[0]) // self.slice_step for k in self.slices]
        stack = np.zeros((rows[-1] + 1, *tumour.shape[1:]), np.bool_)
        stack[rows] = tumour
        return stack


def open_patient(case: Case, contract: DataContract, scope: Scope) -> Patient:
    """Splits off the last session and prepares the others as a forecast does.

    Raises:
        UsageError: TD3035 one session, TD3036 a session has no mask.
        TadiffError: the images cannot be used.
    """
    past, target = split_target(case)
    last = past.sessions[-1]
    prepared = prepare(select_sources(past)[0], contract)
    covered = _covered_slices(prepared, scope.slices)
    _require_alignment(last, prepared, contract)
    check_same_grid([last.images["t1"], *_volumes(target)])
    images, tumour = on_network_grid(target, prepared.window, contract)
    slices, step = _evaluated_slices(covered, scope.max_slices)
    high, wide, deep = spacing_of(prepared.grid.affine)
    return Patient(
        case=past,
        target=target,
        prepared=prepared,
        covered=covered,
        slices=slices,
        slice_step=step,
        images=images,
        tumour=tumour,
        spacing_mm=(deep, high, wide),
    )


def split_target(case: Case) -> tuple[Case, Session]:
    """The case as it was before its last session, and that session."""
    if len(case.sessions) < 2:
        raise UsageError("TD3035", f"{case.name} has one session; evaluation needs two")
    for session in case.sessions[-NUM_SOURCES - 1 :]:
        if session.mask is None:
            raise UsageError(
                "TD3036",
                f"{case.name} has no tumour mask of {session.name}; evaluation needs one",
                fix="add one; in BIDS, a *_dseg.nii.gz file under derivatives/",
            )
    return dataclasses.replace(case, sessions=case.sessions[:-1]), case.sessions[-1]


def on_network_grid(
    session: Session, window: Window, contract: DataContract
) -> tuple[Float32Array, Mask]:
    """Images (3, d, size, size) in [0, 1] and tumour (d, size, size) of a session in `window`.

    The window is that of the forecast, not one around this session: `prepare` centres it on the
    foreground of all sessions it is given, and one voxel more would move it.
    """

    def cut(data: NDArray[np.float32], affine: NDArray[np.float64]) -> Float32Array:
        x, y, z = data.shape
        grid = canonical_grid((x, y, z), affine, tuple(contract.orientation))
        return window.cut(canonical_view(data, grid))

    images = []
    for modality in MODALITIES:
        volume = session.images[modality]
        limits = measure_range(volume.data, contract.percentiles, volume.label)
        images.append(limits.normalise(cut(volume.data, volume.affine)))
    if session.mask is None:
        raise ValueError(f"{session.name} has no tumour mask")
    return np.stack(images), cut(session.mask.data, session.mask.affine) > 0


def last_source(prepared: Prepared) -> Float32Array:
    """(3, d, size, size) of the last source."""
    return np.moveaxis(prepared.sources[:, -len(MODALITIES) :], 1, 0)


def _last_mask(prepared: Prepared) -> Mask:
    """(d, size, size) of the last source."""
    assert prepared.masks is not None  # `split_target` requires them
    return prepared.masks[-1]


def other_truths(
    subject: Subject, patient: Patient, contract: DataContract, treatments: Sequence[str]
) -> Iterator[tuple[str, Mask]]:
    """Tumour (n, h, w) of the target under each other of `treatments` that the data hold."""
    target = patient.target
    derivatives = subject.path.parent / "derivatives" / "phantom"
    anat = derivatives / subject.name / target.name / "anat"
    for treatment in TREATMENTS:
        path = anat / f"{subject.name}_{target.name}_desc-tumour{treatment}_dseg.nii.gz"
        if treatment == target.treatment or treatment not in treatments or not path.exists():
            continue
        drawn = read_volume(path, ReadOptions(), path.name, notes=[])
        (mask,) = tumour_masks([drawn], PUBLISHED, [])
        check_same_grid([patient.case.sessions[-1].images["t1"], mask])
        other = dataclasses.replace(target, mask=mask)
        tumour = on_network_grid(other, patient.prepared.window, contract)[1]
        yield treatment, tumour[patient.at]


def _volumes(session: Session) -> list[Volume]:
    return [*session.images.values(), *([session.mask] if session.mask else [])]


def _require_alignment(last: Session, prepared: Prepared, contract: DataContract) -> None:
    """The last source, taken the way of the target, is what the network was given, bit by bit."""
    images, mask = on_network_grid(last, prepared.window, contract)
    same = np.array_equal(images, last_source(prepared))
    if not same or not np.array_equal(mask, _last_mask(prepared)):
        raise AssertionError(f"target and sources of {last.name} are not prepared alike")


def _covered_slices(prepared: Prepared, slices: str) -> tuple[int, ...]:
    """The choice of slices, of those with brain."""
    seen = prepared.masks is not None and prepared.masks.any()
    choice = "brain" if slices == "tumour" and not seen else slices
    # Not `prepared.brain`: the darkest voxels of an image become 0.
    brain = (prepared.sources > 0).any(axis=(1, 2, 3))
    covered = tuple(k for k in choose_slices(prepared, parse_slices(choice)) if brain[k])
    if not covered:
        raise UsageError("TD3020", f"none of slices {slices} holds brain", where="slices")
    return covered


def _evaluated_slices(covered: Sequence[int], most: int | None) -> tuple[tuple[int, ...], int]:
    """Covered slices, and their step.

    Of too many, those on the densest grid of every k-th slice that holds few enough: distances
    between surfaces and volumes need slices at even steps.
    """
    for step in itertools.count(1):
        start = covered[0] + (covered[-1] - covered[0]) % step // 2
        kept = [k for k in covered if (k - start) % step == 0] or covered[:1]
        if most is None or len(kept) <= most:
            return tuple(kept), step
    raise AssertionError("unreachable: a step beyond the last slice keeps one")
