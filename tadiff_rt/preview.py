"""What is understood of a case, and what a request will cost, before anything is forecast."""

import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
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
COHERENT_DRAWS = 640
"""That `noise` keeps for neighbouring slices."""
HEADROOM_BYTES = 64 << 20
"""For pictures, and what the allocator holds back."""


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
            f"{counted(self.network_evaluations, 'network evaluation')}, {self.bucket} at a time "
            f"on {self.backend}: about {duration(self.seconds)}",
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
    forecaster: Forecaster,
    ready: Ready,
    result_bytes: int,
    workers: int = 1,
    *,
    page: bool = False,
    resumable: bool = False,
) -> Estimate:
    """Times one batch of the network on the first slice, one a worker at once, counts the rest.

    The time is that of the loop on the host: on a GPU the loop on the device is faster. Memory is
    what the process has taken at its peak so far, which includes the network's own, what
    `BatchRunner`, `run_ensemble`, `noise`, the results and the page say they take, and
    `HEADROOM_BYTES`.

    Args:
        page: a page to look at is written, too.
        resumable: slices may be finished already, so that other rows than all are left to draw.
    """
    backend, plan = forecaster.backend, ready.sampling.plan
    # A batch is of one scenario; its last one may have fewer rows.
    rows, scenarios = ready.size.samples * len(ready.slices), len(ready.scenarios)
    evaluations = rows * scenarios * plan.nfe
    buckets, rest = divmod(rows, backend.batch)
    if rest and not backend.partial:
        buckets, rest = buckets + 1, 0
    seconds = 0.0
    if buckets:
        seconds += buckets * _seconds_a_call(forecaster, ready, backend.batch, workers)
    last = rows_of_last_batch(ready, backend.batch, resumable=resumable)
    if last and backend.partial:
        # In a graph of its own, which takes memory beside that of the bucket.
        seconds += rest / last * _seconds_a_call(forecaster, ready, last)
    return Estimate(
        scenarios=len(ready.scenarios),
        samples=ready.size.samples,
        steps=plan.num_steps,
        slices=ready.slices,
        network_evaluations=evaluations,
        bucket=backend.batch,
        seconds=scenarios * plan.nfe * seconds,
        memory_bytes=peak_bytes() + _bytes_to_come(ready, backend.batch, workers, page=page),
        result_bytes=result_bytes,
        backend=backend.description,
    )


def rows_of_last_batch(ready: Ready, batch: int, *, resumable: bool = False) -> int:
    """Rows of the largest batch that is no full bucket; 0 where every bucket is full.

    Where the number of samples is left open, or of slices that are left, it is the largest of all
    that can come.
    """
    samples, slices = ready.size.samples, len(ready.slices)
    if ready.size.volume_ci is not None:
        return batch - 1
    left = range(1, slices + 1) if resumable else (slices,)
    return max(samples * count % batch for count in left)


def _seconds_a_call(forecaster: Forecaster, ready: Ready, rows: int, workers: int = 1) -> float:
    """With `workers` calls at once, as in a forecast: each takes memory and its share of cores."""
    backend, plan = forecaster.backend, ready.sampling.plan
    codes = forecaster.bundle.manifest.card.treatments
    shifts = backend.condition(plan.t, *conditions(ready.sources, ready.scenarios[0], codes))
    sources = ready.prepared.sources[[ready.slices[0]] * rows]
    x = np.zeros((rows, len(MODALITIES), *sources.shape[2:]), np.float32)
    seconds = []
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(3):  # the first also sets up
            start = time.perf_counter()
            calls = [pool.submit(backend.denoise, sources, x, shifts[:1]) for _ in range(workers)]
            for call in calls:
                call.result()
            seconds.append((time.perf_counter() - start) / workers)
    return min(seconds)


def _bytes_to_come(ready: Ready, batch: int, workers: int, *, page: bool = False) -> int:
    depth, _, height, width = map(int, ready.prepared.sources.shape)
    image = height * width * FLOAT
    history, noise, samples = ready.sampling.plan.history, ready.sampling.noise, ready.size.samples
    batches = workers * (batch * (51 + 3 * history) + 18) + 14 * batch
    drawn = len(MODALITIES) * (COHERENT_DRAWS if noise.coherence else (noise.latin or 0))
    # With the number of samples left open every slice stays open.
    is_open = len(ready.slices) if ready.size.volume_ci else 1
    statistics = 2 * (12 * is_open + 18)  # float64
    voxels = int(ready.sources[-1].images[MODALITIES[0]].data.size)
    stack, volume = depth * image, voxels * FLOAT  # on the network's grid, on the patient's
    forecast = (2 * len(MODALITIES) + 1) * (stack + volume)  # mean, spread, probability
    kept = samples * len(ready.slices) * image // FLOAT
    treatments = len({scenario.treatment for scenario in ready.scenarios})
    more = kept + 2 * volume if treatments > 1 else 0  # a difference and its spread
    mapping = len(MODALITIES) * (2 * stack + volume) + 3 * max(stack, volume)  # float64, and back
    writing = 4 * volume  # a volume, its copies in the file's form, and the file
    ending = mapping + writing
    if page:  # after both
        ending = max(ending, _page_bytes(ready, voxels))
    results: int = len(ready.scenarios) * (forecast + more) + ending
    return (batches + drawn + statistics) * image + results + HEADROOM_BYTES


def _page_bytes(ready: Ready, voxels: int) -> int:
    from tadiff_rt.html.page import page_memory_bytes  # most requests are without a page

    return page_memory_bytes(voxels, len({scenario.day for scenario in ready.scenarios}))


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not of `getrusage`: on Linux it is that of the parent, where the parent had more.
        _, found, rest = status.read_text().partition("VmHWM:")
        if found:  # some sandboxes leave it out
            return int(rest.split()[0]) * 1024
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
