"""Rows of an ensemble, one a (slice, sample) pair, through the network in buckets.

A runtime computes a row of a bucket alike wherever it stands and whatever the others hold, noise
is a function of the row's identity, and onnxruntime's CPU kernels give the same bits in buckets of
any size and on any number of threads. So the bits of a row depend on nothing but the row: not on
the bucket, the order, the number of workers, or what was computed before an interruption.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.backends import Backend
from tadiff_rt.ensemble import TARGET_SLOT, SliceStatistics
from tadiff_rt.errors import NumericsError, ResourceError
from tadiff_rt.noise import NoiseSource
from tadiff_rt.runner import Work
from tadiff_rt.solvers import SolverPlan, noised, solve
from tadiff_rt.stopwatch import PARTS_OF_SAMPLING, SharedStopwatch

Float32Array = NDArray[np.float32]

Row = tuple[int, int]
"""(slice, sample)."""

Progress = Callable[[int, int], None]
"""(network evaluations done, in total), counted in rows."""

LAST_SOURCE = slice(-3, None)
"""Channels of the last session among those of the sources."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """How a row is drawn."""

    plan: SolverPlan
    noise: NoiseSource
    x0_range: tuple[float, float] | None = None
    """Of the training data; see `solve`."""
    informed: bool = False
    """Start from the noised last source instead of pure noise; see `noised`."""


class _Stopped(Exception):
    """Another batch failed; this one need not go on."""


@dataclass(eq=False)
class BatchRunner:
    """Draws rows of one request on one backend.

    Memory, in float32 images of one channel: for each worker and row of the bucket at most
    51 + 3 · `plan.history`, of which 18 are sources and 14 the outputs of this evaluation and the
    last; for each worker 18 to draw noise in; and 14 for each row of one bucket, for batches that
    are done. Beside it there is what the network takes inside and what `noise` says of its
    options.
    """

    backend: Backend
    sampling: Sampling
    shifts: Float32Array
    """(num_steps, p) conditioning, from `backend.condition`."""
    sources: Float32Array
    """(d, 9, size, size) clean source images."""
    workers: int = 1
    """Batches computed at a time, each in a thread of its own."""
    progress: Progress | None = None
    keep: bool = False
    """The tumour probability of every sample stays with the statistics."""
    notes: list[str] = field(default_factory=list)
    """What happened that the user should know."""

    def __post_init__(self) -> None:
        self._done = 0
        self._total = 0
        self._watch = SharedStopwatch(PARTS_OF_SAMPLING)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @property
    def conditioning(self) -> Float32Array:
        """See `Runner.conditioning`."""
        return self.shifts

    @property
    def batch(self) -> int:
        """See `Runner.batch`."""
        return self.backend.batch

    @property
    def runtime(self) -> str:
        """See `Runner.runtime`."""
        return self.backend.runtime

    @property
    def seconds(self) -> dict[str, float]:
        """See `Runner.seconds`: of `stopwatch.PARTS_OF_SAMPLING`."""
        return self._watch.seconds

    def report(self) -> dict[str, Any]:
        """See `Runner.report`: none."""
        return {}

    def statistics(
        self, work: Sequence[Work], inside: NDArray[np.bool_]
    ) -> Iterator[tuple[int, SliceStatistics]]:
        """See `Runner.statistics`; slices finish in the order of `work`. Raises as `run` does."""
        shape = self.sources.shape[2:]
        items = {item.at: item for item in work}
        rows = [(item.at, k) for item in work for k in range(item.first, item.samples)]
        begun = {item.at: item.so_far for item in work if item.so_far}
        for (at, sample), image, logits in self.run(rows):
            statistics = begun.get(at) or SliceStatistics((3, *shape), shape, keep=self.keep)
            begun[at] = statistics
            with self._watch.stage("statistics"):
                statistics.add(image, np.where(inside, logits[TARGET_SLOT], -np.inf))
            if sample == items[at].samples - 1:
                yield at, begun.pop(at)

    def run(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Float32Array, Float32Array]]:
        """Every row with its image (3, size, size) and mask logits (4, size, size), in order.

        Where memory runs out the bucket is halved, which is noted, and the failed rows are drawn
        again; their bits do not change.

        Raises:
            NumericsError: the network gave NaN or infinity (TD6002); names slice, sample and step.
            ResourceError: there is no memory for a bucket of one row (TD7001).
        """
        self._total += len(rows) * self.sampling.plan.num_steps
        self._stop.clear()
        first = 0
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while first < len(rows):
                    for batch, images, logits in self._until_memory_ends(pool, rows[first:]):
                        yield from zip(batch, images, logits, strict=True)
                        first += len(batch)
            finally:
                self._stop.set()  # a batch still running ends at its next step

    def _until_memory_ends(
        self, pool: ThreadPoolExecutor, rows: Sequence[Row]
    ) -> Iterator[tuple[Sequence[Row], Float32Array, Float32Array]]:
        """Batches of `rows` in order; ends early, with a smaller bucket, where memory runs out."""
        batches = iter(
            [rows[k : k + self.backend.batch] for k in range(0, len(rows), self.backend.batch)]
        )
        running: deque[tuple[Sequence[Row], Future[tuple[Float32Array, Float32Array]]]] = deque()

        def submit(count: int) -> None:
            for batch in itertools.islice(batches, count):
                running.append((batch, pool.submit(self._draw, batch)))

        submit(self.workers + 1)  # one waits, so that no worker does
        while running:
            batch, result = running.popleft()
            try:
                images, logits = result.result()
            except (ResourceError, MemoryError) as error:
                self._halve(error, [others for _, others in running])
                return
            submit(1)
            yield batch, images, logits

    def _halve(self, error: Exception, others: Sequence[Future[Any]]) -> None:
        """Goes on with half the bucket; `others` are given up first, they use the same memory."""
        self._stop.set()
        for other in others:
            if not other.cancel():
                other.exception()
        self._stop.clear()
        before = self.backend.batch
        if not self.backend.halve():
            if isinstance(error, ResourceError):
                raise error
            what = f"out of memory for a batch of {before}"
            raise ResourceError("TD7001", what, fix="use fewer workers") from None
        self.notes.append(
            f"out of memory with {before} rows a call; went on with {self.backend.batch}"
        )

    def _draw(self, batch: Sequence[Row]) -> tuple[Float32Array, Float32Array]:
        """Runs the plan on one batch, padded to the bucket where it must be; without padding."""
        sampling, plan = self.sampling, self.sampling.plan
        bucket = len(batch) if self.backend.partial else self.backend.batch
        shape = (3, *self.sources.shape[2:])
        with self._watch.stage("noise"):
            start = sampling.noise.initial(batch, shape)
        sources = self.sources[[at for at, _ in batch]]
        if sampling.informed:
            start = noised(sources[:, LAST_SOURCE], start, plan)
        draw = sampling.noise.step(batch, shape)
        padded = _pad(sources, bucket)

        def fresh(i: int) -> Float32Array:
            with self._watch.stage("noise"):
                return _pad(draw(i), bucket)

        def denoise(x: Float32Array, t: float, i: int) -> tuple[Float32Array, Float32Array]:
            if self._stop.is_set():
                raise _Stopped
            with self._watch.stage("denoise"):
                eps, logits = self.backend.denoise(padded, x, self.shifts[i : i + 1])
            self._check(batch, eps, logits, i)
            return eps, logits

        with self._watch.stage("solve"):
            images, logits = solve(
                denoise,
                _pad(start, bucket),
                plan,
                fresh,
                lambda i: self._count(len(batch)),
                sampling.x0_range,
            )
        assert logits is not None
        return images[: len(batch)], logits[: len(batch)]

    def _check(
        self, batch: Sequence[Row], eps: Float32Array, logits: Float32Array, i: int
    ) -> None:
        # At every step: clipping would turn an infinite estimate into a plausible one.
        for k, row in enumerate(batch):
            if not (np.isfinite(eps[k]).all() and np.isfinite(logits[k]).all()):
                raise not_finite(row, i, self.backend.description)

    def _count(self, rows: int) -> None:
        if self.progress is not None:
            with self._lock:
                self._done += rows
                self.progress(min(self._done, self._total), self._total)


def not_finite(row: Row, i: int, description: str) -> NumericsError:
    """What the network's NaN or infinity at step i of a row is told as (TD6002)."""
    at, sample = row
    return NumericsError(
        "TD6002",
        f"sample {sample} of slice {at} is not finite at step {i} ({description})",
        fix="check the source images; if they are sound, export the bundle again",
    )


def _pad(rows: Float32Array, count: int) -> Float32Array:
    """`rows` with zero rows appended where there are fewer than `count`."""
    if len(rows) == count:
        return rows
    padded = np.zeros((count, *rows.shape[1:]), np.float32)
    padded[: len(rows)] = rows
    return padded
