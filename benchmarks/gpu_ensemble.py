"""How long does the ensemble of a whole head take, and how near is that to the hardware?

`python -m benchmarks.gpu_ensemble OUT BUNDLES`, BUNDLES of `benchmarks.gpu_bundle`. Through
`Forecaster`, as a user calls it: 155 slices of 192 x 192, 5 samples of 20 evaluations, with
statistics, in buckets of several sizes, as CUDA graphs and as the same calls without a graph. "ms"
is the time of sampling; `forecast_s` holds what comes before and after, too. A first forecast
compiles and captures and is not counted.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.device import Bench, attempt
from benchmarks.floor import Row
from benchmarks.gpu_bundle import PRECISIONS, config_and_size
from benchmarks.network_cost import layers, network_row
from tadiff_rt.assembly import Forecast
from tadiff_rt.backends.program import ProgramBackend, ProgramDenoiser, device_denoiser
from tadiff_rt.case import MODALITIES, Case, Session, Volume
from tadiff_rt.forecast import Forecaster

SLICES, SAMPLES, STEPS = 155, 5, 20
FORMS = ((40, True), (40, False), (20, True), (64, True), (10, True), (5, True))
"""Rows of a bucket, and whether it is captured as a graph; what is wanted most comes first."""
RUNS = 3
RESERVE = 45.0
"""Seconds that a form is not begun without: it is compiled first."""


class Fixed:
    """A denoiser with one bucket, captured or not."""

    def __init__(self, denoiser: ProgramDenoiser, rows: int, graph: bool) -> None:
        self._denoiser, self._graph = denoiser, graph
        self.buckets = (rows,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    @property
    def capturable(self) -> bool:
        """See `DeviceDenoiser`."""
        return self._graph and self._denoiser.capturable

    def __call__(self, sources: Tensor, x: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        return self._denoiser(sources, x, shifts)


class FixedBackend:
    """A backend whose denoiser on the device has one bucket, on a CPU too."""

    def __init__(self, backend: ProgramBackend, rows: int, graph: bool) -> None:
        self._backend = backend
        self._fixed = Fixed(device_denoiser(backend), rows, graph)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def on_device(self) -> Fixed:
        """See `Backend.on_device`."""
        return self._fixed


def head(size: int, slices: int) -> Case:
    """Three sessions of a textured ellipsoid that reaches through every slice."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in (size, size, slices)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = x**2 + (y / 0.9) ** 2 + (z / 1.2) ** 2 < 0.8
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    sessions = []
    for k, (day, treatment) in enumerate(((0, "CRT"), (91, "TMZ"), (196, "TMZ"))):
        images = {}
        for m, modality in enumerate(MODALITIES):
            rng = np.random.default_rng(10 * k + m)
            tissue = 800 + 150 * np.sin(5 * x + k + m) + 60 * y
            noise = rng.standard_normal(tissue.shape, dtype=np.float32)
            data = np.where(inside, tissue + 40 * noise, 0).astype(np.float32)
            images[modality] = Volume(data, affine, f"{k}/{modality}", f"{k}{m}" * 32)
        sessions.append(Session(f"ses-{k + 1}", day, treatment, images))
    return Case("sub-made-up", tuple(sessions))


def forms(bench: Bench, precision: str) -> tuple[tuple[int, bool], ...]:
    """All in the first precision, the first in others; in a dry run a small one."""
    if not bench.on_gpu:
        return ((4, False),)
    return FORMS if precision == PRECISIONS[0] else FORMS[:1]


def columns_of(results: list[Forecast]) -> Row:
    """What a row says beside its times and floors."""
    device = results[0].report["device"]
    stages = [result.report["seconds"] for result in results]
    peak = device["held_bytes"]
    return {
        **{name: device[name] for name in ("bucket", "mode", "planned_bytes")},
        "peak_mb": None if peak is None else round(peak / 1e6, 1),
        "forecast_s": round(float(np.median([sum(s.values()) - s["load"] for s in stages])), 4),
    }


def rows_of(bench: Bench, bundle: Path) -> bool:
    """Every form of one bundle, its row written as soon as it is there; whether none failed."""
    config, size = config_and_size(bench.quick)
    slices, samples, steps = (8, 2, 2) if bench.quick else (SLICES, SAMPLES, STEPS)
    case, precision = head(size, slices), bundle.stem
    name = f"ensemble/{size}/{slices} slices, {samples} samples, {steps} steps"
    loaded, roofline = Forecaster.load(bundle, f"torch:{precision}"), bench.roofline()
    every, sound = layers(config, size), True
    request = {"day": "+90", "treatment": "TMZ", "slices": "all"}
    for rows, graph in forms(bench, precision):
        failures: list[Row] = []
        form = f"{precision}, {'graph' if graph else 'no graph'}, bucket {rows}"

        def measured(rows: int = rows, graph: bool = graph) -> list[Forecast]:
            bench.require_seconds(RESERVE)
            backend = FixedBackend(loaded.backend, rows, graph)
            forecaster = Forecaster(loaded.bundle, backend, 0.0)
            return [
                forecaster.predict(case, samples=samples, steps=steps, **request)
                for _ in range(1 + (1 if bench.quick else RUNS))
            ][1:]

        results = attempt(name, form, measured, failures)
        if results is not None:
            entry = network_row(
                name,
                form,
                [result.report["seconds"]["sample"] for result in results],
                every,
                rows,
                precision,
                roofline,
                calls=slices * samples * steps / rows,
                **columns_of(results),
            )
            speed = round(1e3 * slices / entry["ms"], 2)
            sound &= bench.append([{**entry, "slices_per_s": speed}])
        sound &= bench.append(failures)
    return sound


def main(out: str, bundles: str) -> None:
    """Appends rows to OUT/gpu.jsonl."""
    bench = Bench.start(out)
    found = [p for name in PRECISIONS if (p := Path(bundles) / f"{name}.tadiff").is_dir()]
    if not found:
        raise SystemExit(f"{bundles} holds no bundle: run python -m benchmarks.gpu_bundle first")
    if not all([rows_of(bench, bundle) for bundle in found]):
        raise SystemExit("some forms failed; their rows say why")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
