"""An ensemble of one request: which samples of which slices, and the statistics they leave."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.ensemble import SliceStatistics
from tadiff_rt.journal import Journal
from tadiff_rt.kept import Packed
from tadiff_rt.volume import MIN_AUTO_SAMPLES, enough_samples

Float32Array = NDArray[np.float32]

AUTO_ROUND = 2
"""Samples added at a time until there are enough."""


@dataclass(frozen=True, eq=False)
class Work:
    """Samples to draw of one slice."""

    at: int
    """Index into `Runner.sources`."""
    samples: int
    """How many there shall be, more than in `so_far`."""
    so_far: SliceStatistics | None = None
    """Of the first samples; may be modified."""

    @property
    def first(self) -> int:
        """The first sample to draw."""
        return self.so_far.count if self.so_far else 0


class Runner(Protocol):
    """Draws the samples of one request."""

    sources: Float32Array
    """(d, 9, size, size) clean source images."""
    notes: list[str]
    """What happened that the user should know."""

    @property
    def conditioning(self) -> Float32Array:
        """(num_steps, p) shifts of the request."""

    @property
    def batch(self) -> int:
        """Rows computed at a time."""

    @property
    def runtime(self) -> str:
        """What the bits of a row depend on beside the bundle and the request."""

    def statistics(
        self, work: Sequence[Work], inside: NDArray[np.bool_]
    ) -> Iterator[tuple[int, SliceStatistics]]:
        """The statistics of every slice of `work`, as slices finish.

        Args:
            work: each slice once.
            inside: (size, size) voxels that exist; the rest holds no tumour.
        """

    @property
    def seconds(self) -> dict[str, float]:
        """Parts of the wall time of `statistics`, which do not overlap; empty where the way of
        running cannot tell them apart."""

    def report(self) -> dict[str, Any]:
        """Entries of the report of a forecast that only this way of running has."""


@dataclass(frozen=True)
class SampleSize:
    """How many samples: a number, or until the mean tumour volume is known well enough."""

    samples: int
    """Exactly so many; with `volume_ci` at most."""
    volume_ci: float | None = None
    """Relative half-width of the interval of the mean volume to reach; see `enough_samples`."""

    @property
    def at_a_time(self) -> int:
        """Samples that most rounds add."""
        return self.samples if self.volume_ci is None else min(AUTO_ROUND, self.samples)

    def next_round(self, tumour_voxels: Sequence[int]) -> int:
        """How many samples to add to those whose tumour voxels are given; 0 when done."""
        drawn = len(tumour_voxels)
        if self.volume_ci is None:
            return self.samples - drawn
        if drawn and enough_samples(tumour_voxels, self.volume_ci):
            return 0
        return min(AUTO_ROUND if drawn else MIN_AUTO_SAMPLES, self.samples - drawn)


@dataclass(eq=False)
class EnsembleResult:
    """Statistics of every forecast slice, on the network's grid; 0 in slices not forecast."""

    mean: Float32Array
    """(3, d, size, size) in [0, 1]."""
    std: Float32Array | None
    """(3, d, size, size); None for a single sample."""
    probability: Float32Array
    """(d, size, size)."""
    tumour_voxels: NDArray[np.int64]
    """(samples,) voxels with tumour in each sample, over the forecast slices."""
    tumour_overlaps: NDArray[np.int64]
    """(samples - 1,) of them, those that a sample shares with the one before."""
    notes: list[str] = field(default_factory=list)
    """What happened on the way that the user should know."""
    kept: dict[int, list[Packed]] = field(default_factory=dict)
    """Tumour probability of every sample by slice, where the runner keeps it."""

    @classmethod
    def empty(cls, depth: int, size: int, samples: int) -> "EnsembleResult":
        """All zero."""
        images = np.zeros((3, depth, size, size), np.float32)
        return cls(
            images,
            images.copy() if samples > 1 else None,
            np.zeros((depth, size, size), np.float32),
            np.zeros(samples, np.int64),
            np.zeros(samples - 1, np.int64),
        )

    def take(self, at: int, statistics: SliceStatistics) -> None:
        """Files the finished statistics of slice `at`."""
        self.mean[:, at] = statistics.mean
        if self.std is not None:
            self.std[:, at] = statistics.std
        self.probability[at] = statistics.tumour_probability
        self.tumour_voxels += statistics.areas
        self.tumour_overlaps += np.array(statistics.overlaps, np.int64)
        if statistics.kept is not None:
            self.kept[at] = statistics.kept


def run_ensemble(
    runner: Runner,
    inside: NDArray[np.bool_],
    slices: Sequence[int],
    size: SampleSize,
    journal: Journal | None = None,
) -> EnsembleResult:
    """Draws samples of every slice until there are as many as `size` asks for.

    Samples of a slice are adjacent and in order, hence statistics stream. Memory: one row of the
    result a slice, 12 float64 images of one channel for the statistics of each open slice, 18
    more while a sample is added, some hundred bytes a row, and what the runner says. With a
    fixed number of samples one slice is open at a time; with `volume_ci` every slice is, since
    whether to go on depends on all of them.

    Args:
        inside: (size, size) voxels that exist on the patient's grid; the rest is padding, which
            holds no tumour.
        slices: indices into `runner.sources`, increasing.
        journal: where finished slices are kept and taken from.

    Raises:
        NumericsError, ResourceError: see the runner.
    """
    ensemble = _Ensemble(runner, inside, journal)
    wanted = tuple(int(at) for at in slices)
    depth, _, height, _ = runner.sources.shape
    if size.volume_ci is None:
        result = EnsembleResult.empty(depth, height, size.samples)
        ensemble.draw(wanted, size.samples, {}, result.take)
    else:
        every = ensemble.draw_enough(wanted, size)
        result = EnsembleResult.empty(depth, height, every[wanted[0]].count)
        for at, statistics in every.items():
            result.take(at, statistics)
    result.notes += runner.notes
    return result


def _totals(areas: Sequence[Sequence[int]]) -> list[int]:
    """Sum over slices of each sample's voxels."""
    return [sum(column) for column in zip(*areas, strict=True)]


@dataclass(eq=False)
class _Ensemble:
    runner: Runner
    inside: NDArray[np.bool_]
    journal: Journal | None

    def draw_enough(self, slices: Sequence[int], size: SampleSize) -> dict[int, SliceStatistics]:
        """Adds samples to every slice until `size` is satisfied."""
        every: dict[int, SliceStatistics] = {}
        # An interrupted run had found so many to be not enough, or was drawing them.
        more = self.journal.most_samples(slices) if self.journal else 0
        more = more or size.next_round([])
        while more:
            drawn = every[slices[0]].count if every else 0
            self.draw(slices, drawn + more, every, every.__setitem__)
            more = size.next_round(_totals([every[at].areas for at in slices]))
        return every

    def draw(
        self,
        slices: Sequence[int],
        samples: int,
        so_far: dict[int, SliceStatistics],
        finished: Callable[[int, SliceStatistics], None],
    ) -> None:
        """Brings every slice to `samples` samples, from what `so_far` or the journal has of it."""
        work = []
        for at in slices:
            statistics = so_far.get(at) or (self.journal.load(at) if self.journal else None)
            if statistics is None or statistics.count > samples:
                work.append(Work(at, samples))
            elif statistics.count == samples:
                finished(at, statistics)
            else:
                work.append(Work(at, samples, statistics))
        for at, statistics in self.runner.statistics(work, self.inside):
            if self.journal:
                self.journal.save(at, statistics)
            finished(at, statistics)
