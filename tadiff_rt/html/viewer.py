"""What the viewer shows: last scan and forecasts, at the finest resolution that fits."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.assembly import Forecast
from tadiff_rt.case import MODALITIES
from tadiff_rt.drawing import KNOWN_COLOUR, TREATMENT_COLOURS
from tadiff_rt.geometry import Grid, canonical_view, spacing_of
from tadiff_rt.html import words
from tadiff_rt.html.voxels import (
    Box,
    Float32Array,
    Kind,
    Pack,
    View,
    blocks_for,
    bounding_box,
    ras_grid,
)
from tadiff_rt.panels import warning
from tadiff_rt.scenarios import Comparison, Difference, Scenario

IMAGE_LEVELS, SPREAD_LEVELS, SHARE_LEVELS = 127, 63, 250
BRIGHTEST = 0.995
"""Quantile of the standard deviations that is the end of their colours."""
LEAST_SPREAD = 0.01
DIFFERENCE_LEVELS = 200


@dataclass(frozen=True)
class Detail:
    """Edges of the blocks that are averaged, in mm; 0 for the voxels as they are."""

    in_plane_mm: float
    slice_mm: float
    spread_mm: float
    """In plane, of standard deviations: they are smoother than images and noisier."""


DETAILS = (
    Detail(0, 0, 0),
    Detail(1, 1, 2),
    Detail(1, 2, 2),
    Detail(1, 3, 2),
    Detail(2, 2, 2),
    Detail(2, 3, 4),
    Detail(3, 3, 4),
    Detail(4, 4, 4),
    Detail(6, 6, 6),
)
"""From fine to coarse. Axial slices keep their resolution longest: they are looked at first."""


def viewer_data(comparison: Comparison, budget_bytes: int) -> dict[str, Any]:
    """The viewer's part of the page as JSON, in the finest of DETAILS within `budget_bytes`.

    The coarsest is taken whatever it measures.
    """
    first = comparison.first
    grid = ras_grid(first.tumour_probability.shape, first.affine)
    crop = _head(comparison, grid)
    of_differences = (d.std for d in comparison.differences if d.std is not None)
    ends = {
        "std": _brightest(_image_spreads(comparison), grid, crop),
        "difference_std": _brightest(of_differences, grid, crop),
    }
    for detail in DETAILS:
        contents = _Contents(comparison, (grid, crop), ends, detail)
        budget = budget_bytes if detail != DETAILS[-1] else None
        if contents.fill(budget):
            return contents.as_json()
    raise AssertionError("the coarsest detail has no budget")


def _head(comparison: Comparison, grid: Grid) -> Box:
    """The box of the last scan's brain, over the slices that were forecast."""
    brain = np.logical_or.reduce([image > 0 for _, image in _last_images(comparison.first)])
    box = bounding_box(canonical_view(brain, grid))
    shown = [np.logical_or.reduce(f.mean > 0) for f in comparison.forecasts.values()]
    forecast = bounding_box(canonical_view(np.logical_or.reduce(shown), grid))
    return box[0], box[1], _common(box[2], forecast[2])


def _common(a: slice, b: slice) -> slice:
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop else a


def _last_images(forecast: Forecast) -> Iterator[tuple[str, Float32Array]]:
    """Modalities with the last session's image in [0, 1], on the patient's voxels; one a time."""
    prepared = forecast.prepared
    channels = range(-len(MODALITIES), 0)
    for modality, channel in zip(MODALITIES, channels, strict=True):
        yield modality, prepared.to_patient_grid(prepared.sources[:, channel])


class _Contents:
    """The volumes of a comparison at one level of detail."""

    def __init__(
        self,
        comparison: Comparison,
        place: tuple[Grid, Box],
        ends: Mapping[str, float],
        detail: Detail,
    ) -> None:
        grid, crop = place
        spacing = spacing_of(grid.affine)
        planes = (detail.in_plane_mm, detail.in_plane_mm, detail.slice_mm)
        spreads = (detail.spread_mm, detail.spread_mm, detail.slice_mm)
        view = View(grid, crop, blocks_for(spacing, planes))
        coarse = View(grid, crop, blocks_for(spacing, spreads))
        self.comparison = comparison
        treatments = dict.fromkeys(s.treatment for s in comparison.forecasts)
        self.colours = dict(zip(treatments, itertools.cycle(TREATMENT_COLOURS), strict=False))
        self.differences = {d.scenario: d for d in comparison.differences}
        self.pack = Pack()
        self.kinds = {
            "image": Kind(view, 0.0, 1.0, IMAGE_LEVELS),
            "share": Kind(view, 0.0, 1.0, SHARE_LEVELS),
            "std": Kind(coarse, 0.0, ends["std"], SPREAD_LEVELS),
            "difference": Kind(view, -1.0, 1.0, DIFFERENCE_LEVELS),
            "difference_std": Kind(coarse, 0.0, ends["difference_std"], SPREAD_LEVELS),
        }
        self.last: dict[str, Any] = {}
        self.plans: list[dict[str, Any]] = []

    def fill(self, budget_bytes: int | None) -> bool:
        """Packs everything; False as soon as it is larger than the budget."""
        first = self.comparison.first
        masks = first.prepared.masks
        past = self.comparison.past
        self.last = {
            "label": f"last scan, day {past[-1].day}, acquired" if past else "last scan, acquired",
            "images": {
                modality: self._add(f"last {modality}", "image", image, again=True)
                for modality, image in _last_images(first)
            },
            "mask": None
            if masks is None
            else self._add("last mask", "share", first.prepared.to_patient_grid(masks[-1])),
        }
        for scenario, forecast in self.comparison.forecasts.items():
            self.plans.append(self._plan(scenario, forecast))
            if budget_bytes is not None and self.pack.size_bytes > budget_bytes:
                return False
        return True

    def as_json(self) -> dict[str, Any]:
        """Everything that was packed."""
        return {
            "last": self.last,
            "plans": self.plans,
            "start": self._start(),
            "known_colour": KNOWN_COLOUR,
            "kinds": {name: kind.as_json() for name, kind in self.kinds.items()},
            "volumes": self.pack.entries,
        }

    def _plan(self, scenario: Scenario, forecast: Forecast) -> dict[str, Any]:
        name, like = scenario.name, self._resembles(scenario)
        again = all(plan["day"] != scenario.day for plan in self.plans)  # see `_resembles`
        scale = forecast.prepared.intensity_scale
        images, stds = {}, {}
        for m, modality in enumerate(MODALITIES):
            entry = f"{name} {modality}"
            before = f"{like} {modality}" if like else f"last {modality}"
            mean = forecast.mean[m] / np.float32(scale[m])
            images[modality] = self._add(entry, "image", mean, before, again=again)
            if forecast.std is not None:
                before = f"{like} std {modality}" if like else ""
                std = forecast.std[m] / np.float32(scale[m])
                entry = f"{name} std {modality}"
                stds[modality] = self._add(entry, "std", std, before, again=again)
        probability = forecast.tumour_probability
        return {
            "day": scenario.day,
            "treatment": scenario.treatment,
            "colour": self.colours[scenario.treatment],
            "label": f"{words.treatment(scenario.treatment)}: {warning(scenario.day)}",
            "volume": f"Tumour {words.volume(forecast.volume_ml)}",
            "images": images,
            "std": stds or None,
            "probability": self._add(f"{name} probability", "share", probability),
            **self._difference(self.differences.get(scenario)),
        }

    def _difference(self, apart: Difference | None) -> dict[str, Any]:
        if apart is None:
            return {"difference": None, "difference_std": None, "reference": None}
        name = apart.scenario.name
        std = None
        if apart.std is not None:
            std = self._add(f"{name} difference std", "difference_std", apart.std)
        return {
            "difference": self._add(f"{name} difference", "difference", apart.probability),
            "difference_std": std,
            "reference": words.treatment(apart.reference.treatment),
        }

    def _add(
        self, name: str, kind: str, volume: NDArray[Any], like: str = "", *, again: bool = False
    ) -> str:
        values = self.kinds[kind].view.of(volume)
        return self.pack.add(name, kind, self.kinds[kind], values, like, again=again)

    def _resembles(self, scenario: Scenario) -> str:
        """The forecast packed before that is most alike: of the same day, else the first."""
        before = []
        for other in self.comparison.forecasts:
            if other == scenario:
                break
            before.append(other)
        same_day = [other for other in before if other.day == scenario.day]
        return (same_day or before)[0].name if before else ""

    def _start(self) -> list[int]:
        """The voxel to open at: in the middle of the largest tumour slice of the first plan."""
        view = self.kinds["share"].view
        tumour = view.of(self.comparison.first.tumour_probability) > 0.5
        if not tumour.any():
            return [n // 2 for n in view.shape]
        z = int(tumour.sum(axis=(0, 1)).argmax())
        x, y = (round(float(at.mean())) for at in np.nonzero(tumour[:, :, z]))
        return [x, y, z]


def _image_spreads(comparison: Comparison) -> Iterable[Float32Array]:
    for forecast in comparison.forecasts.values():
        if forecast.std is not None:
            for m, scale in enumerate(forecast.prepared.intensity_scale):
                yield forecast.std[m] / np.float32(scale)


def _brightest(spreads: Iterable[Float32Array], grid: Grid, crop: Box) -> float:
    """Where the colours of standard deviations end: of the volume with the most."""
    ends = [LEAST_SPREAD]
    for spread in spreads:
        some = canonical_view(spread, grid)[crop][::2, ::2, ::2]
        held = some[some > 0]
        if held.size:
            ends.append(float(np.quantile(held, BRIGHTEST)))
    return max(ends)
