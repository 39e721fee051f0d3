"""The one loop over slices, samples and solver steps, in batches of a fixed size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.backends import Backend
from tadiff_rt.ensemble import SliceStatistics
from tadiff_rt.errors import NumericsError
from tadiff_rt.noise import initial_noise, step_noise
from tadiff_rt.solvers import SolverPlan, noised, solve

TARGET_SLOT = 3
"""Slot of the forecast among the four sessions; sources fill 0 ... 2."""

Progress = Callable[[int, int], None]
"""(network evaluations of the batch size done, in total)."""

Float32Array = NDArray[np.float32]


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

    @classmethod
    def empty(cls, depth: int, size: int, samples: int) -> "EnsembleResult":
        """All zero."""
        images = np.zeros((3, depth, size, size), np.float32)
        return cls(
            images,
            images.copy() if samples > 1 else None,
            np.zeros((depth, size, size), np.float32),
            np.zeros(samples, np.int64),
        )

    def take(self, at: int, statistics: SliceStatistics) -> None:
        """Files the finished statistics of slice `at`."""
        self.mean[:, at] = statistics.mean
        if self.std is not None:
            self.std[:, at] = statistics.std
        self.probability[at] = statistics.tumour_probability
        self.tumour_voxels += statistics.areas


def run_ensemble(
    backend: Backend,
    plan: SolverPlan,
    shifts: Float32Array,
    sources: Float32Array,
    inside: NDArray[np.bool_],
    slices: Sequence[int],
    samples: int,
    seed: int,
    x0_range: tuple[float, float] | None = None,
    informed: bool = False,
    progress: Progress | None = None,
) -> EnsembleResult:
    """Draws `samples` forecasts of every slice.

    Rows, one a (slice, sample) pair, fill batches of exactly `backend.batch`; the last batch is
    padded with zeros. A runtime computes a row of a batch alike wherever it stands and whatever
    the others hold, so the bits of a sample do not depend on what else was asked.
    Samples of a slice are adjacent and in order, hence statistics stream: beside the result, only
    one batch and the statistics of the slices in it are held.

    Args:
        shifts: (num_steps, p) conditioning, from `backend.condition`.
        sources: (d, 9, size, size) clean source images.
        inside: (size, size) voxels that exist on the patient's grid; the rest is padding, which
            holds no tumour.
        slices: indices into `sources`, increasing.
        x0_range: of the training data; see `solve`.
        informed: start from the noised last source instead of pure noise; see `noised`.

    Raises:
        NumericsError: the network gave NaN or infinity (TD6002); names slice, sample and step.
    """
    depth, _, size, _ = sources.shape
    rows = [(int(at), k) for at in slices for k in range(samples)]
    shape = (3, size, size)
    result = EnsembleResult.empty(depth, size, samples)
    open_statistics: dict[int, SliceStatistics] = {}
    num_batches = -(-len(rows) // backend.batch)
    for number in range(num_batches):
        batch = rows[number * backend.batch : (number + 1) * backend.batch]
        of_batch = sources[[at for at, _ in batch]]
        start = initial_noise(seed, batch, shape)
        if informed:
            start = noised(of_batch[:, -3:], start, plan)
        x0, logits = _run_batch(
            backend,
            plan,
            shifts,
            batch,
            of_batch,
            start,
            step_noise(seed, batch, shape) if plan.coef_noise.any() else None,
            lambda i, done=number * plan.num_steps: (  # type: ignore[misc]
                progress(done + i + 1, num_batches * plan.num_steps) if progress else None
            ),
            x0_range,
        )
        for k, (at, sample) in enumerate(batch):
            statistics = open_statistics.setdefault(at, SliceStatistics(shape, shape[1:]))
            statistics.add(x0[k], np.where(inside, logits[k, TARGET_SLOT], -np.inf))
            if sample == samples - 1:
                result.take(at, open_statistics.pop(at))
    return result


def _run_batch(
    backend: Backend,
    plan: SolverPlan,
    shifts: Float32Array,
    batch: Sequence[tuple[int, int]],
    sources: Float32Array,
    x_T: Float32Array,
    noise: Callable[[int], Float32Array] | None,
    on_step: Callable[[int], None],
    x0_range: tuple[float, float] | None,
) -> tuple[Float32Array, Float32Array]:
    """Runs the plan on one batch, padded to the backend's size; without the padding."""
    count = len(x_T)
    padded = _pad(sources, backend.batch)

    def denoise(x: Float32Array, t: float, i: int) -> tuple[Float32Array, Float32Array]:
        eps, logits = backend.denoise(padded, x, shifts[i : i + 1])
        # At every step: clipping would turn an infinite estimate into a plausible one.
        for k, (at, sample) in enumerate(batch):
            if not (np.isfinite(eps[k]).all() and np.isfinite(logits[k]).all()):
                raise NumericsError(
                    "TD6002",
                    f"sample {sample} of slice {at} is not finite at step {i} "
                    f"({backend.description})",
                    fix="check the source images; if they are sound, export the bundle again",
                )
        return eps, logits

    def padded_noise(i: int) -> Float32Array:
        assert noise is not None
        return _pad(noise(i), backend.batch)

    x0, logits = solve(
        denoise,
        _pad(x_T, backend.batch),
        plan,
        padded_noise if noise else None,
        on_step,
        x0_range,
    )
    return x0[:count], logits[:count]  # type: ignore[index]


def _pad(rows: Float32Array, count: int) -> Float32Array:
    """`rows` with zero rows appended, contiguous."""
    padded = np.zeros((count, *rows.shape[1:]), np.float32)
    padded[: len(rows)] = rows
    return padded
