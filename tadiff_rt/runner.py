"""An ensemble of one request: which samples of which slices, and the statistics they leave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.batches import BatchRunner, Float32Array, Row
from tadiff_rt.ensemble import SliceStatistics
from tadiff_rt.journal import Journal
from tadiff_rt.volume import MIN_AUTO_SAMPLES, enough_samples

TARGET_SLOT = 3
"""Slot of the forecast among the four sessions; sources fill 0 ... 2."""

AUTO_ROUND = 2
"""Samples added at a time until there are enough."""


@dataclass(frozen=True)
class SampleSize:
    """How many samples: a number, or until the mean tumour volume is known well enough."""

    samples: int
    """Exactly so many; with `volume_ci` at most."""
    volume_ci: float | None = None
    """Relative half-width of the interval of the mean volume to reach; see `enough_samples`."""

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


def run_ensemble(
    runner: BatchRunner,
    inside: NDArray[np.bool_],
    slices: Sequence[int],
    size: SampleSize,
    journal: Journal | None = None,
) -> EnsembleResult:
    """Draws samples of every slice until there are as many as `size` asks for.

    Samples of a slice are adjacent and in order, hence statistics stream. Memory: one row of the
    result a slice, 12 float64 images of one channel for the statistics of each open slice, 18
    more while a sample is added, some hundred bytes a row, and what `BatchRunner` says. With a
    fixed number of samples one slice is open at a time; with `volume_ci` every slice is, since
    whether to go on depends on all of them.

    Args:
        inside: (size, size) voxels that exist on the patient's grid; the rest is padding, which
            holds no tumour.
        slices: indices into `runner.sources`, increasing.
        journal: where finished slices are kept and taken from.

    Raises:
        NumericsError, ResourceError: see `BatchRunner.run`.
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
    runner: BatchRunner
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
        begun: dict[int, SliceStatistics] = {}
        rows: list[Row] = []
        for at in slices:
            statistics = so_far.get(at) or (self.journal.load(at) if self.journal else None)
            if statistics is None or statistics.count > samples:
                rows += [(at, k) for k in range(samples)]
            elif statistics.count == samples:
                finished(at, statistics)
            else:
                begun[at] = statistics
                rows += [(at, k) for k in range(statistics.count, samples)]
        for (at, sample), image, logits in self.runner.run(rows):
            statistics = begun.setdefault(at, self._new())
            statistics.add(image, np.where(self.inside, logits[TARGET_SLOT], -np.inf))
            if sample == samples - 1:
                if self.journal:
                    self.journal.save(at, statistics)
                finished(at, begun.pop(at))

    def _new(self) -> SliceStatistics:
        _, _, height, width = self.runner.sources.shape
        return SliceStatistics((3, height, width), (height, width))
