"""The fused operators on configuration A's main shapes, with what they compete against.

Which shapes those are is read off the fused network itself.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.device import Bench, Run
from benchmarks.floor import Work
from benchmarks.gpu_bundle import config_and_size, network
from tadiff_export.fuse import fuse, fuse_conditioner
from tadiff_kernels.accuracy import relative_error
from tadiff_kernels.attention import attention_reference
from tadiff_kernels.conditioning import conditioning_reference
from tadiff_kernels.group_norm_silu import group_norm_silu_reference

HALF = torch.float16
MAIN_SHAPES = 4
"""Of an operator: those that move most in one evaluation."""
CONDITIONED_STEPS = 50

Call = tuple[str, tuple[Any, ...]]
"""Operator and its arguments, tensors as shapes."""


@dataclass(frozen=True)
class Contestant:
    """One implementation on fixed buffers."""

    run: Run
    result: Callable[[], Tensor]
    """Runs it once on fresh buffers."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is computed, by whom, how exactly, and what it cannot do without."""

    case: str
    work: Work
    calls: int
    """In one evaluation, or in one step."""
    exact: Tensor
    allowed: float
    """Relative error: twice the reference's, as `accuracy.error_budget` has it."""
    contestants: dict[str, Contestant]


def functional(
    bench: Bench,
    case: str,
    work: Work,
    calls: int,
    reference: Callable[..., Tensor],
    ours: Callable[..., Tensor],
    args: Sequence[Any],
) -> Problem:
    """Of an operator that changes none of its arguments."""
    exact = reference(*(_double(a) for a in args))
    rounded = reference(*args)
    functions = {"eager": reference, "compiled": bench.compiled(reference), "ours": ours}
    return Problem(
        case,
        work,
        calls,
        exact,
        2 * relative_error(rounded, exact) + torch.finfo(rounded.dtype).eps,
        {
            name: Contestant(lambda f=f: f(*args), lambda f=f: f(*args))
            for name, f in functions.items()
        },
    )


def _double(value: Any) -> Any:
    if isinstance(value, list):
        return [_double(v) for v in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Recorder(TorchDispatchMode):
    """Counts calls of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function.namespace == "tadiff":
            shapes = tuple(tuple(a.shape) if isinstance(a, Tensor) else a for a in args)
            self.calls[function.name().partition("::")[2], shapes] += 1
        return function(*args, **(kwargs or {}))


def calls_of_an_evaluation(bench: Bench, operator: str) -> list[tuple[tuple[Any, ...], int]]:
    """Arguments and number of calls of one image, most data first."""
    config, size = config_and_size(bench.quick)
    net = fuse(network(config), HALF).to("meta")
    images = [torch.empty(1, channels, size, size, device="meta") for channels in (9, 3)]
    with torch.no_grad(), _Recorder() as recorder:
        net(*images, torch.empty(1, sum(net.widths), device="meta"))
    found = [(shapes, n) for (name, shapes), n in recorder.calls.items() if name == operator]
    return sorted(found, key=lambda item: -item[1] * _elements(item[0]))[:MAIN_SHAPES]


def _elements(shapes: Sequence[Any]) -> int:
    return sum(torch.Size(s).numel() for s in shapes if isinstance(s, tuple))


def batches(bench: Bench) -> tuple[int, ...]:
    """A single image, and the bucket of a volume."""
    return (1, 2) if bench.quick else (1, 40)


def group_norm_silu(bench: Bench) -> Iterator[Problem]:
    """Norms of residual and attention blocks."""
    every = calls_of_an_evaluation(bench, "group_norm_silu")
    for b in batches(bench):
        for (x, skip, shift, weight, _, *rest), calls in every:
            channels = weight[0]
            images = [
                bench.normal(b, *s[1:], dtype=HALF, seed=k).to(memory_format=torch.channels_last)
                if s
                else None
                for k, s in enumerate((x, skip))
            ]
            moved = bench.normal(1, channels, seed=2) if shift else None
            affine = [1 + 0.1 * bench.normal(channels, seed=3), bench.normal(channels, seed=4)]
            what = f"{b}x{x[1]}{f'+{skip[1]}' if skip else ''}x{x[2]}x{x[3]}"
            kinds = [kind for kind, on in (("shift", shift), ("silu", rest[-1])) if on]
            yield functional(
                bench,
                f"group_norm_silu/{' '.join([what, *kinds])}",
                Work(2 * 2 * sum(i.numel() for i in images if i is not None)),
                calls,
                group_norm_silu_reference,
                torch.ops.tadiff.group_norm_silu,
                [*images, moved, *affine, *rest],
            )


def attention(bench: Bench) -> Iterator[Problem]:
    """softmax_one attention of both levels."""
    every = calls_of_an_evaluation(bench, "attention")
    for b in batches(bench):
        for ((_, positions, width), heads), calls in every:
            qkv = bench.normal(b, positions, width, dtype=HALF)
            flops = 4.0 * b * positions**2 * width / 3
            yield functional(
                bench,
                f"attention/{b}x{positions}x{width // 3} {heads} heads",
                Work(2 * qkv.numel() * 4 / 3, flops, "fp16"),
                calls,
                attention_reference,
                torch.ops.tadiff.attention,
                [qkv, heads],
            )


def conditioning(bench: Bench) -> Iterator[Problem]:
    """All solver steps of one request."""
    config, _ = config_and_size(bench.quick)
    weights = list(fuse_conditioner(network(config)).to(bench.device).weights)
    t = torch.linspace(1000, 1, CONDITIONED_STEPS, device=bench.device)
    days = torch.tensor([[0.0, 91.0, 196.0, 1061.5]], device=bench.device)
    treatments = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=bench.device)
    wide, p = weights[-2].shape
    moved = sum(w.numel() for w in weights) + len(t) * p
    yield functional(
        bench,
        f"conditioning/{len(t)} steps, {p} shifts",
        Work(4 * moved, 2.0 * len(t) * wide * p),
        1,
        conditioning_reference,
        torch.ops.tadiff.conditioning,
        [t, days, treatments, weights],
    )
