"""Comparisons of a made-up head, without a network: for what shows and writes them."""

from collections.abc import Sequence

import numpy as np
from nibabel.affines import from_matvec
from scipy.ndimage import gaussian_filter

from tadiff_rt.assembly import Forecast, assemble
from tadiff_rt.case import MODALITIES, Session, Volume
from tadiff_rt.differences import difference_of_volumes, past_volumes
from tadiff_rt.geometry import canonical_grid, from_canonical
from tadiff_rt.preprocess import DataContract, prepare
from tadiff_rt.runner import EnsembleResult
from tadiff_rt.scenarios import Comparison, Difference, Scenario

TRAINED_ON = "120 simulated patients; no real patient"
GROWTH = {"CRT": 0.0, "TMZ": 0.6, "none": 1.6}
"""Voxels a month that the radius of the tumour grows by."""
LAST_DAY = 54


def made_up_comparison(
    shape: tuple[int, int, int] = (40, 48, 36),
    *,
    days: Sequence[int] = (84, 144),
    treatments: Sequence[str] = ("TMZ", "none"),
    samples: int = 3,
    masks: bool = True,
    spacing_mm: float = 2.0,
    axcodes: str = "RAS",
    noise: float = 0.02,
    notes: Sequence[str] = (),
    trained_on: str = TRAINED_ON,
    name: str = "sub-secret",
) -> Comparison:
    """Forecasts whose tumour grows with time and treatment; `shape` is along R, A, S.

    Args:
        axcodes: of the axes of the files.
        noise: of a voxel, as a share of full brightness.
    """
    head = _Head(shape, spacing_mm, axcodes, noise)
    sessions = [head.session(day, masks) for day in (0, 26, LAST_DAY)]
    contract = DataContract(size=max(shape), spacing_mm=spacing_mm)
    prepared = prepare(sessions, contract)
    slices = tuple(int(at) for at in np.flatnonzero(prepared.brain))
    forecasts = {}
    for day in days:
        for treatment in treatments:
            report = _report(day, treatment, slices, samples, notes, trained_on)
            ensemble = head.ensemble(prepared, slices, day, treatment, samples)
            forecast = assemble(ensemble, prepared, sessions[-1], slices, report)
            forecasts[Scenario(day, treatment)] = forecast
    differences = tuple(
        _subtract(scenario, forecast, Scenario(scenario.day, treatments[-1]), forecasts)
        for scenario, forecast in forecasts.items()
        if scenario.treatment != treatments[-1]
    )
    past = past_volumes(sessions)
    return Comparison(name, forecasts, differences, past, {"notes": list(notes)})


class _Head:
    """A textured ellipsoid with a ball of tumour off its centre."""

    def __init__(
        self, shape: tuple[int, int, int], spacing_mm: float, axcodes: str, noise: float
    ) -> None:
        self.rng = np.random.default_rng(3)
        self.noise = noise
        affine = from_matvec(np.diag([spacing_mm] * 3), [-30.0, -40.0, -20.0])
        self.grid = canonical_grid(shape, affine, tuple(axcodes))
        self.back = canonical_grid(self.grid.shape, self.grid.affine, ("R", "A", "S"))
        x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
        # Of 192 voxels of 1 mm: half axes of 71, 84 and 69 mm, a large brain of 1.7 l.
        self.brain = (
            (x[:, None, None] / 0.74) ** 2 + (y[:, None] / 0.88) ** 2 + (z / 0.72) ** 2
        ) < 1
        centre = [0.35 * shape[0], 0.4 * shape[1], 0.55 * shape[2]]
        where = np.indices(shape, dtype=np.float32)
        self.distance = np.sqrt(sum((w - c) ** 2 for w, c in zip(where, centre, strict=True)))
        self.radius = 0.12 * min(shape)
        self.speckle = self.rng.standard_normal(shape, dtype=np.float32)
        texture = gaussian_filter(self.speckle, 2)
        self.texture = 0.5 + 0.12 * texture / texture.std()

    def stored(self, array: np.ndarray) -> np.ndarray:
        """An array in RAS on the axes of the files."""
        return from_canonical(array, self.back)

    def rolled(self, shape: tuple[int, ...], by: int) -> np.ndarray:
        """Standard normal noise, other for every `by`."""
        return np.resize(np.roll(self.speckle, 101 * by), shape)

    def session(self, day: int, masks: bool) -> Session:
        images = {}
        for m, modality in enumerate(MODALITIES):
            speckle = np.roll(self.speckle, day + 7 * m + 1)
            image = self.texture + 0.2 * m * (self.distance < self.radius) + self.noise * speckle
            data = self.stored(np.where(self.brain, 900 * np.clip(image, 0.05, 1.5), 0))
            label = f"{day}-{modality}.nii.gz"
            images[modality] = Volume(
                data.astype(np.float32), self.grid.affine, label, f"{day:02}{m}" * 20
            )
        radius = self.radius * (1 + day / 400)
        tumour = self.stored((self.distance < radius).astype(np.float32))
        mask = Volume(tumour, self.grid.affine, f"{day}-mask.nii.gz", "m" * 60)
        return Session(f"ses-{day}", day, "CRT", images, mask if masks else None)

    def ensemble(self, prepared, slices, day: int, treatment: str, samples: int) -> EnsembleResult:
        """Statistics in the network's window; most of the noise is common to all treatments."""
        radius = self.radius + GROWTH[treatment] * (day - LAST_DAY) / 30
        share = 1 / (1 + np.exp(np.clip((self.distance - radius) * 1.5, -30, 30)))
        stack = _windowed(prepared, self.stored((share * self.brain).astype(np.float32)))
        last = prepared.sources[:, -3:].swapaxes(0, 1)
        inside = last[0] > 0
        common = self.rolled(last.shape, day)
        own = self.rolled(last.shape, 1000 * len(treatment) + day)
        mean = last * 0.95 + self.noise * (0.5 * common + 0.1 * own) + 0.2 * stack
        std = self.noise * (1 + 0.3 * np.abs(common) + 0.05 * np.abs(own)) + 0.2 * stack
        std = std * (1 - stack)
        voxels = np.array([int((stack > 0.5).sum() * (1 + 0.05 * k)) for k in range(samples)])
        held = np.zeros(last.shape[1], dtype=bool)
        held[list(slices)] = True
        keep = (inside & held[:, None, None]).astype(np.float32)
        return EnsembleResult(
            np.clip(mean, 0, 1) * keep,
            (std * keep).astype(np.float32) if samples > 1 else None,
            stack * keep,
            voxels,
            voxels[1:] // 2,
        )


def _windowed(prepared, volume: np.ndarray) -> np.ndarray:
    from tadiff_rt.geometry import canonical_view

    return prepared.window.cut(canonical_view(volume, prepared.grid))


def _subtract(
    scenario: Scenario, forecast: Forecast, reference: Scenario, forecasts: dict
) -> Difference:
    other = forecasts[reference]
    apart = forecast.tumour_probability - other.tumour_probability
    volume = difference_of_volumes(forecast.volume_ml.samples_ml, other.volume_ml.samples_ml)
    several = len(volume.samples_ml) > 1
    return Difference(scenario, reference, apart, np.abs(apart) / 4 if several else None, volume)


def _report(day, treatment, slices, samples, notes, trained_on) -> dict:
    digest = "0123456789abcdef" * 4
    return {
        "model": {
            "tadiff": "0.1.0",
            "backend": "none, made up",
            "name": "made-up",
            "trained_on": trained_on,
            "intended_use": "Research only.",
            "weights_sha256": digest,
            "bundle_manifest_sha256": digest[::-1],
        },
        "request": {"day": day, "treatment": treatment},
        "sources": [
            {"day": LAST_DAY, "treatment": "CRT", "sha256": dict.fromkeys(MODALITIES, digest)}
        ],
        "notes": list(notes),
        "sampling": {
            "solver": "ddim",
            "steps": 4,
            "samples": samples,
            "seed": 0,
            "slices": list(slices),
        },
    }
