"""What is understood of a case, and what a request will cost, before anything is forecast."""

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tadiff_rt.case import MODALITIES
from tadiff_rt.differences import past_volumes
from tadiff_rt.errors import printable
from tadiff_rt.forecast import Forecaster, Ready, conditions
from tadiff_rt.geometry import spacing_of
from tadiff_rt.report import counted, session_report, without_names

FLOAT = 4
"""Bytes."""


@dataclass(frozen=True)
class Estimate:
    """What a request takes; every number but `seconds` is an upper bound or exact."""

    scenarios: int
    samples: int
    """Of each; the most, where their number is left open."""
    steps: int
    slices: tuple[int, ...]
    network_evaluations: int
    bucket: int
    """Rows that the network computes at a time."""
    seconds: float
    """From one batch that was timed; loading and writing come on top."""
    memory_bytes: int
    """Of this process on the host at its peak."""
    result_bytes: int
    """On disk, at most."""
    backend: str

    def lines(self) -> list[str]:
        """For people."""
        first, last = self.slices[0], self.slices[-1]
        return [
            f"{counted(self.scenarios, 'scenario')}, {counted(self.samples, 'sample')} of "
            f"{counted(self.steps, 'evaluation')}, {counted(len(self.slices), 'slice')} "
            f"({first} to {last})",
            f"{self.network_evaluations} network evaluations, {self.bucket} at a time on "
            f"{self.backend}: about {duration(self.seconds)}",
            f"memory: at most about {self.memory_bytes / 1e6:.0f} MB; "
            f"result: at most {self.result_bytes / 1e6:.0f} MB on disk",
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "slices": list(self.slices)}


def duration(seconds: float) -> str:
    """ "40 s", "12 min" or "3.1 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def estimate(
    forecaster: Forecaster, ready: Ready, result_bytes: int, workers: int = 1
) -> Estimate:
    """Times one batch of the network on the first slice and counts the rest.

    The time is that of the loop on the host: on a GPU the loop on the device is faster. Memory is
    what the process has taken at its peak so far, which includes the network's own, and what
    `BatchRunner`, `run_ensemble` and the results say they take.
    """
    backend, plan = forecaster.backend, ready.sampling.plan
    rows = ready.size.samples * len(ready.slices) * len(ready.scenarios)
    evaluations = rows * plan.nfe
    calls = math.ceil(rows / backend.batch) * plan.nfe
    return Estimate(
        scenarios=len(ready.scenarios),
        samples=ready.size.samples,
        steps=plan.num_steps,
        slices=ready.slices,
        network_evaluations=evaluations,
        bucket=backend.batch,
        seconds=calls * _seconds_a_call(forecaster, ready) / workers,
        memory_bytes=_peak_bytes() + _bytes_to_come(ready, backend.batch, workers),
        result_bytes=result_bytes,
        backend=backend.description,
    )


def _seconds_a_call(forecaster: Forecaster, ready: Ready) -> float:
    backend, plan = forecaster.backend, ready.sampling.plan
    codes = forecaster.bundle.manifest.card.treatments
    shifts = backend.condition(plan.t, *conditions(ready.sources, ready.scenarios[0], codes))
    sources = ready.prepared.sources[[ready.slices[0]] * backend.batch]
    x = np.zeros((backend.batch, len(MODALITIES), *sources.shape[2:]), np.float32)
    seconds = []
    for _ in range(3):  # the first also sets up
        start = time.perf_counter()
        backend.denoise(sources, x, shifts[:1])
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _bytes_to_come(ready: Ready, batch: int, workers: int) -> int:
    depth, _, height, width = map(int, ready.prepared.sources.shape)
    image = height * width * FLOAT
    history = ready.sampling.plan.history
    batches = workers * (batch * (51 + 3 * history) + 18) + 14 * batch
    # With the number of samples left open every slice stays open.
    is_open = len(ready.slices) if ready.size.volume_ci else 1
    statistics = 2 * (12 * is_open + 18)  # float64
    volumes = 2 * len(MODALITIES) + 1  # mean, spread, probability
    voxels = int(ready.sources[-1].images[MODALITIES[0]].data.size)
    kept = ready.size.samples * len(ready.slices) * image // FLOAT
    results: int = len(ready.scenarios) * (
        volumes * (depth * image + voxels * FLOAT) + (kept if len(ready.scenarios) > 1 else 0)
    )
    writing = 4 * voxels * FLOAT  # a volume, its copies in the file's form, and the file
    return (batches + statistics) * image + results + writing


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def as_report(ready: Ready) -> dict[str, Any]:
    """What was understood, for JSON; no names."""
    return {
        "sources": [session_report(session) for session in ready.sources],
        "scenarios": [
            {"day": scenario.day, "treatment": scenario.treatment} for scenario in ready.scenarios
        ],
        "slices": list(ready.slices),
        "notes": without_names(ready.notes, ready.case),
    }


def understood(ready: Ready) -> list[str]:
    """A line a session, and what was assumed or relaxed."""
    used = {session.name for session in ready.sources}
    volumes = {past.day: past.volume_ml for past in past_volumes(ready.sources)}
    rows: list[Sequence[str]] = [("session", "day", "treatment", "used", "voxels", "mm", "tumour")]
    for session in ready.case.sessions:
        row = [session.name, str(session.day), session.treatment]
        if session.name in used:
            volume = session.images[MODALITIES[0]]
            ml = volumes[session.day]
            edges = " x ".join(f"{edge:.3g}" for edge in spacing_of(volume.affine))
            shape = " x ".join(map(str, volume.data.shape))
            row += ["yes", shape, edges, "no mask" if ml is None else f"{ml:.1f} ml"]
        else:
            row += ["no", "", "", ""]
        rows.append(row)
    return [*_aligned(rows), *(f"note: {printable(note)}" for note in ready.notes)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(printable(row[k])) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
