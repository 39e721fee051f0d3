"""The operators of the sampling loop, on images of configuration A, and plain counterparts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import Bench
from benchmarks.floor import Work
from benchmarks.gpu_bundle import config_and_size
from benchmarks.kernel_problems import Contestant, Problem, batches
from tadiff_kernels.accuracy import relative_error
from tadiff_kernels.ensemble_step import PLANES, TARGET_SLOT, THRESHOLD
from tadiff_kernels.philox import draw_words, normal_reference, row_words
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import SolverPlan, make_plan

STEP = 10
"""Row of a plan of 20 that is timed: it has a history and no part in the masks."""
X0_RANGE = (0.0, 1.0)
SEED = 7
NETWORK_CHANNELS = 8
"""Of the network's output in half precision: four masks, three of noise, one of padding."""


@dataclass(frozen=True)
class Row:
    """Coefficients of one row of a plan, as Python numbers."""

    alpha: float
    sigma: float
    coef_x: float
    coef_x0: float
    coef_x0_prev: float
    coef_noise: float


@dataclass
class State:
    """What a row of a plan reads and writes."""

    x: Tensor
    estimates: Tensor
    fused: Tensor
    broken: Tensor
    eps: Tensor
    logits: Tensor

    @classmethod
    def fresh(cls, bench: Bench, b: int, size: int, history: int) -> "State":
        """Made-up values; outputs lie in memory as the network leaves them."""
        out = bench.normal(b, NETWORK_CHANNELS, size, size, seed=1)
        out = out.contiguous(memory_format=torch.channels_last)
        return cls(
            bench.normal(b, 3, size, size),
            bench.normal(history + 1, b, 3, size, size, seed=2).clamp(*X0_RANGE),
            torch.zeros(b, 4, size, size, device=bench.device),
            torch.full((b,), 2**31 - 1, dtype=torch.int32, device=bench.device),
            out[:, 4:7],
            out[:, :4],
        )


def plain_row(
    x: Tensor, before: Tensor, x0: Tensor, broken: Tensor, eps: Tensor, logits: Tensor, row: Row
) -> None:
    """A row without noise as one writes it in PyTorch, coefficients and clipping built in."""
    x0.copy_(((x - row.sigma * eps) / row.alpha).clamp(*X0_RANGE))
    x.copy_(row.coef_x * x + row.coef_x0 * x0 + row.coef_x0_prev * before)
    finite = eps.isfinite().flatten(1).all(1) & logits.isfinite().flatten(1).all(1)
    broken.copy_(torch.where(finite, broken, broken.clamp(max=STEP)))


def solver_step(bench: Bench) -> Iterator[Problem]:
    """A row of the default solver, and one of a solver that draws noise, in ours alone."""
    _, size = config_and_size(bench.quick)
    for b in batches(bench):
        for solver in ("dpmpp_2m", "sde_dpmpp_2m"):
            yield _solver_step(bench, b, size, solver)


def _solver_step(bench: Bench, b: int, size: int, solver: str) -> Problem:
    plan = make_plan(NoiseSchedule.linear(1000), solver=solver, num_steps=20)
    row = Row(*(float(getattr(plan, name)[STEP]) for name in Row.__dataclass_fields__))
    assert plan.mask_weight[STEP] == 0 == plan.coef_x0_prev2[STEP]
    noisy, history = bool(plan.coef_noise.any()), plan.history
    keys = [(k // 5, k % 5) for k in range(b)]
    slots = [(STEP - k) % (history + 1) for k in (0, 1)]
    ours = _in_ours(bench, plan, keys)

    def plain(s: State, apply: Callable[..., None] = plain_row) -> Tensor:
        x0, before = (s.estimates[slot] for slot in slots)
        apply(s.x, before, x0, s.broken, s.eps, s.logits, row)
        return s.x

    def fresh() -> State:
        return State.fresh(bench, b, size, history)

    noise = None
    if noisy:
        noise = normal_reference(SEED, keys, STEP + 1, (3, size, size), bench.device)
    exact, rounded = (
        _row_in(dtype, fresh(), row, slots, noise) for dtype in (torch.float64, torch.float32)
    )
    contestants = {"ours": ours}
    if not noisy:
        apply = bench.compiled(plain_row)
        contestants = {"eager": plain, "compiled": lambda s: plain(s, apply), **contestants}
    image = 4.0 * b * 3 * size**2
    return Problem(
        f"solver_step/{b}x3x{size}x{size} {solver}",
        # x, eps and logits, and the x0 before are read; x and x0 are written.
        Work(image * 5 + image * 4 / 3),
        1,
        exact,
        2 * relative_error(rounded, exact) + torch.finfo(torch.float32).eps,
        {name: _contestant(f, fresh) for name, f in contestants.items()},
    )


def _in_ours(
    bench: Bench, plan: SolverPlan, keys: list[tuple[int, int]]
) -> Callable[[State], Tensor]:
    """A row of `plan` by our operator; `keys` are slices and samples."""
    table = torch.from_numpy(plan.table).float().to(bench.device)
    rows, seed = row_words(keys, bench.device), draw_words(SEED, 0, bench.device)[:2]
    how = (STEP, plan.history, bool(plan.coef_noise.any()), list(X0_RANGE))

    def apply(s: State) -> Tensor:
        state = (s.x, s.estimates, s.fused, s.broken, s.eps, s.logits)
        torch.ops.tadiff.solver_step(*state, table, rows, seed, *how)
        return s.x

    return apply


def _contestant(apply: Callable[[Any], Tensor], fresh: Callable[[], Any]) -> Contestant:
    """`apply` on one state that stays, and on a fresh one."""
    held = fresh()
    return Contestant(lambda: apply(held), lambda: apply(fresh()))


def _row_in(
    dtype: torch.dtype, s: State, row: Row, slots: list[int], noise: Tensor | None
) -> Tensor:
    """The new x by the definition, in one type."""
    x, eps, before = (v.to(dtype) for v in (s.x, s.eps, s.estimates[slots[1]]))
    x0 = ((x - row.sigma * eps) / row.alpha).clamp(*X0_RANGE)
    x = row.coef_x * x + row.coef_x0 * x0 + row.coef_x0_prev * before
    return x if noise is None else x + row.coef_noise * noise.to(dtype)


@dataclass
class Samples:
    """Samples of some slices, and statistics that begin with them."""

    images: Tensor
    logits: Tensor
    inside: Tensor
    segments: Tensor
    sums: Tensor
    counts: Tensor

    @classmethod
    def fresh(cls, bench: Bench, slices: int, samples: int, size: int) -> "Samples":
        """Made-up values; a slot a slice."""
        b, device = slices * samples, bench.device
        segments = [(k * samples, samples, k, 0) for k in range(slices)]
        return cls(
            bench.normal(b, 3, size, size),
            bench.normal(b, 4, size, size, seed=1),
            (bench.normal(size, size, seed=2) > -1).to(torch.uint8),
            torch.tensor(segments, dtype=torch.int32, device=device),
            torch.zeros(slices, PLANES, size, size, device=device),
            torch.zeros(slices, samples, 2, dtype=torch.int32, device=device),
        )


def plain_statistics(
    images: Tensor, logits: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(slices, samples, ...) in float64: mean, squares, pairs, probabilities, areas, overlaps."""
    target = torch.where(inside != 0, logits[:, :, TARGET_SLOT], -torch.inf).double()
    probability = torch.sigmoid(target)
    mask = probability > THRESHOLD
    mean = images[:, 0].double()
    squares, pairs = torch.zeros_like(mean), torch.zeros_like(mean)
    for k in range(1, images.shape[1]):
        sample = images[:, k].double()
        before = sample - mean
        mean = mean + before / (k + 1)
        squares = squares + before * (sample - mean)
        pairs = pairs + (sample - images[:, k - 1].double()).abs()
    areas = mask.sum((2, 3), dtype=torch.int32)
    overlaps = (mask[:, 1:] & mask[:, :-1]).sum((2, 3), dtype=torch.int32)
    return mean, squares, pairs, probability.sum(1), areas, overlaps


def ensemble_step(bench: Bench) -> Iterator[Problem]:
    """The first samples of the slices of a bucket; the plain form keeps float64."""
    _, size = config_and_size(bench.quick)
    slices, samples = (2, 2) if bench.quick else (8, 5)
    held = Samples.fresh(bench, slices, samples, size)
    shaped = [v.unflatten(0, (slices, samples)) for v in (held.images, held.logits)]

    def ours() -> None:
        torch.ops.tadiff.ensemble_step(
            held.sums, held.counts, held.images, held.logits, held.inside, held.segments
        )

    def our_moments() -> Tensor:
        ours()
        hi, lo = held.sums[:, :12].double().unflatten(1, (2, 2, 3)).unbind(2)
        return (hi + lo).flatten(1, 2)

    def plain(apply: Callable[..., Any]) -> Contestant:
        def run() -> Any:
            return apply(*shaped, held.inside)

        return Contestant(run, lambda: torch.cat(run()[:2], dim=1))

    floats = 4 * slices * samples + PLANES * slices
    yield Problem(
        f"ensemble_step/{slices} slices, {samples} samples, {size}x{size}",
        # Images and one channel of the logits are read, slots are written.
        Work(4.0 * floats * size**2),
        1,
        torch.cat(plain_statistics(*shaped, held.inside)[:2], dim=1),
        torch.finfo(torch.float32).eps,
        {
            "eager": plain(plain_statistics),
            "compiled": plain(bench.compiled(plain_statistics)),
            "ours": Contestant(ours, our_moments),
        },
    )
