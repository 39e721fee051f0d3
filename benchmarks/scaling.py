"""What does the time of a forecast grow with, and is it a straight line?

    python -m benchmarks.scaling [PART ...]        # slices, ..., workers; see PARTS; without: all

The loop over slices, samples and steps in one process (`BatchRunner`, the bundled model, random
images; time does not depend on them), against each of the three; the row "line" has the straight
line through the medians, which counts as linear where no point is further from it than
`fits.LINEAR` of itself. Then buckets that are not full, as the last batch of a forecast is, beside
what padding them would cost; the size of the image (made-up weights of the bundle's own
configuration, one evaluation; the line is over the arithmetic: convolutions grow with the area,
attention with its square); threads; and as many cores shared by workers and threads. All points
of a part take turns.

The floor is that of all evaluations, layer by layer, at the rates of as many threads, measured in
this run. Before a row is written: the first sample of the first slice must have the same bits in
every row of a part (they depend on nothing but the row), and a made-up network must agree with
PyTorch. About four minutes on two cores.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

import tadiff_rt
from benchmarks.fits import LINEAR, Line
from benchmarks.floor import Roofline, Row, Work, timed_row
from benchmarks.harness import run_in_turns, save
from benchmarks.image_size import size_rows
from benchmarks.network_cost import layers, works
from benchmarks.plan_quality import plan_quality
from tadiff_rt.backends import available_cores
from tadiff_rt.batches import BatchRunner, Sampling
from tadiff_rt.bundle import open_bundle
from tadiff_rt.forecast import Forecaster
from tadiff_rt.noise import NoiseSource
from tadiff_rt.solvers import SolverPlan, make_plan
from tadiff_train.network import NetworkConfig

QUESTION = "scaling"
ENGINE = Path(tadiff_rt.__file__).parent / "data" / "demo.tadiff"
REPEATS = 3
SLICES, SAMPLES, STEPS = (1, 2, 4, 8), (5, 8, 10, 20), (5, 10, 20)
SIZES = (64, 96, 128, 192)
FEW_STEPS = 2
"""Where steps are not what changes."""
DAYS, TREATMENTS = [0.0, 30.0, 60.0, 150.0], [0.0, 0.0, 1.0, 1.0]
SAME_BITS = "the same bits of the first sample in every row"


@cache
def roofline(threads: int) -> Roofline:
    """Measured once a run."""
    return Roofline.of_this_cpu(threads)


@dataclass(frozen=True, eq=False)
class Loop:
    """An ensemble to draw, and how."""

    forecaster: Forecaster
    threads: int
    """Of each worker: those that the forecaster was loaded with."""
    slices: int = 1
    samples: int = 1
    """`load` takes a full bucket, unless it is told."""
    steps: int = FEW_STEPS
    workers: int = 1
    seen: set[str] = field(default_factory=set)
    """Digests of the first sample of the first slice, of all runs."""

    @classmethod
    def load(cls, engine: Path, threads: int, **numbers: Any) -> "Loop":
        """On a session of its own."""
        forecaster = Forecaster.load(engine, "onnxruntime", threads)
        numbers.setdefault("samples", forecaster.backend.batch)
        return cls(forecaster, threads, **numbers)

    @cached_property
    def plan(self) -> SolverPlan:
        """The default solver's."""
        card = self.forecaster.bundle.manifest.card
        return make_plan(card.schedule.build(), num_steps=self.steps)

    def run(self) -> None:
        """Draws every sample of every slice."""
        backend, card = self.forecaster.backend, self.forecaster.bundle.manifest.card
        shape = (self.slices, 9, card.data.size, card.data.size)
        sources = np.random.default_rng(0).random(shape, dtype=np.float32)
        shifts = backend.condition(self.plan.t, DAYS, TREATMENTS)
        sampling = Sampling(self.plan, NoiseSource(0), card.x0_range)
        rows = [(at, sample) for at in range(self.slices) for sample in range(self.samples)]
        runner = BatchRunner(backend, sampling, shifts, sources, self.workers)
        for row, image, logits in runner.run(rows):
            if row == rows[0]:
                self.seen.add(hashlib.sha256(image.tobytes() + logits.tobytes()).hexdigest())

    def works(self) -> list[Work]:
        """Of every evaluation, without padding."""
        manifest, batch = self.forecaster.bundle.manifest, self.forecaster.backend.batch
        every = layers(NetworkConfig(**manifest.network), manifest.card.data.size)
        full, rest = divmod(self.slices * self.samples, batch)
        return [
            work.times(calls * self.plan.nfe)
            for rows, calls in ((batch, full), (rest, 1))
            if rows and calls
            for work in works(every, rows, "fp32")
        ]


def loop_rows(part: str, loops: Mapping[str, Loop], repeats: int) -> list[Row]:
    """A row a loop, timed in turns.

    Raises:
        SystemExit: loops of equal steps have other bits of the same sample.
    """
    seconds = run_in_turns({name: loop.run for name, loop in loops.items()}, repeats)
    for steps in {loop.steps for loop in loops.values()}:
        seen = set().union(*(loop.seen for loop in loops.values() if loop.steps == steps))
        if len(seen) != 1:
            raise SystemExit(f"{part}: {len(seen)} results of one sample of {steps} steps")
    alike = len({loop.steps for loop in loops.values()}) == 1
    rows = []
    for name, loop in loops.items():
        quality = SAME_BITS if alike else plan_quality(loop.plan)
        floor = roofline(loop.threads * loop.workers)
        evaluations = loop.slices * loop.samples * loop.plan.nfe
        entry = timed_row(
            f"{QUESTION}/{part}", name, seconds[name], loop.works(), floor, quality=quality
        )
        rows.append({**entry, "ms_per_evaluation": round(entry["ms"] / evaluations, 3)})
    return rows


def with_line(rows: Sequence[Row], x: Sequence[float], unit: str) -> list[Row]:
    """The rows, and the line through their medians at `x`."""
    line = Line.through(x, [row["ms"] for row in rows])
    entry: Row = {"case": rows[0]["case"], "contestant": "line", **line.columns("ms")}
    entry |= {"slope_of": unit, "no_floor": "a line through rows that have floors"}
    entry["quality"] = f"linear: no median further than {LINEAR:.0%} of itself from the line"
    return [*rows, entry]


@dataclass(frozen=True)
class Measuring:
    """What all parts share."""

    engine: Path = ENGINE
    threads: int = field(default_factory=available_cores)
    repeats: int = REPEATS

    def axis(self, part: str, unit: str, numbers: Sequence[int]) -> list[Row]:
        """Against `slices`, `samples` or `steps`, and the line."""
        first = Loop.load(self.engine, self.threads)
        loops = {}
        for n in numbers:
            changed: dict[str, Any] = {part: n, "seen": set()}
            loops[str(n)] = replace(first, **changed)
        return with_line(loop_rows(part, loops, self.repeats), numbers, unit)

    def rows_of_a_bucket(self) -> list[Row]:
        """Buckets of fewer rows than the full one, and one row more than it.

        Each on a session of its own: a forecast makes one for its last batch, which takes
        `setup_ms`. `of_padded` is the time as a share of that of full buckets.
        """
        full = Loop.load(self.engine, self.threads).forecaster.backend.batch
        loops, setup_ms = {}, {}
        for rows in range(1, full + 2):
            loop = Loop.load(self.engine, self.threads, samples=rows)
            loops[str(rows)] = loop
            setup_ms[str(rows)] = first_call_ms(loop.forecaster, rows % full or full)
        measured = loop_rows("rows", loops, self.repeats)
        of_full = next(row["ms"] for row in measured if row["contestant"] == str(full))
        return [
            {
                **row,
                "setup_ms": round(setup_ms[row["contestant"]], 1),
                "of_padded": round(row["ms"] / (-(-int(row["contestant"]) // full) * of_full), 3),
            }
            for row in measured
        ]

    def sizes(self, sizes: Sequence[int] = SIZES) -> list[Row]:
        """One evaluation of one image of each size, and the line over the arithmetic."""
        config = NetworkConfig(**open_bundle(self.engine).manifest.network)
        floor = roofline(self.threads)
        rows = size_rows(f"{QUESTION}/size", config, sizes, self.threads, floor, 3 * self.repeats)
        return with_line(rows, [row["gflop"] for row in rows], "GFLOP")

    def by_threads(self) -> list[Row]:
        """The same loop on 1, 2, 4, ... threads, up to all cores."""
        counts = sorted({*(2**k for k in range(8) if 2**k < self.threads), self.threads})
        loops = {str(n): Loop.load(self.engine, n, slices=2) for n in counts}
        return loop_rows("threads", loops, self.repeats)

    def by_workers(self) -> list[Row]:
        """All cores as workers times threads."""
        loops = {
            f"{n} x {self.threads // n}": Loop.load(
                self.engine, self.threads // n, slices=self.threads, workers=n
            )
            for n in range(1, self.threads + 1)
            if self.threads % n == 0
        }
        return loop_rows("workers x threads", loops, self.repeats)


def first_call_ms(forecaster: Forecaster, rows: int) -> float:
    """What a first call of so many rows takes beyond a later one: loading a session, memory."""
    backend, size = forecaster.backend, forecaster.bundle.manifest.card.data.size
    shifts = backend.condition(np.array([500.0]), DAYS, TREATMENTS)
    images = np.zeros((rows, 12, size, size), np.float32)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        backend.denoise(images[:, :9].copy(), images[:, 9:].copy(), shifts)
        seconds.append(time.perf_counter() - start)
    return 1000 * (seconds[0] - min(seconds[1:]))


PARTS: dict[str, Callable[[Measuring], list[Row]]] = {
    "slices": lambda m: m.axis("slices", "slice", SLICES),
    "samples": lambda m: m.axis("samples", "sample", SAMPLES),
    "steps": lambda m: m.axis("steps", "step", STEPS),
    "rows": Measuring.rows_of_a_bucket,
    "size": Measuring.sizes,
    "threads": Measuring.by_threads,
    "workers": Measuring.by_workers,
}


def rows(parts: Sequence[str] = (), measuring: Measuring | None = None) -> list[Row]:
    """Of the parts named, or all, and the rates that floors are of."""
    measuring = measuring or Measuring()
    found = [row for part in parts or PARTS for row in PARTS[part](measuring)]
    return [*found, roofline(measuring.threads).as_row(f"{QUESTION}/roofline")]


def main(parts: Sequence[str] = ()) -> None:
    """Writes the rows of `parts`, or all."""
    save(QUESTION, rows(parts))


if __name__ == "__main__":
    main(sys.argv[1:])
