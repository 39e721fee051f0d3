"""One slice, five samples: ways to get them, each a `turns.Contest`.

All run configuration A (or what `Slice` says) with the same made-up weights, sources, days and
treatments. Those that follow the same plan start from the same noise, so their images must agree.
Each writes the network's first noise estimate to "OUT/NAME eps.npy" and, where it comes to its
end, the images to "OUT/NAME images.npy", and calls the gate before every evaluation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import engines_cpu
from benchmarks.diffusers_run import their_default
from benchmarks.gpu_bundle import network
from benchmarks.network_cpu import attention, five_passes
from benchmarks.turns import Gate
from tadiff_export.split import TARGET_SLOT, split
from tadiff_rt.backends import load_backend
from tadiff_rt.backends.ort import load_conditioner
from tadiff_rt.batches import BatchRunner, Sampling
from tadiff_rt.bundle import open_bundle
from tadiff_rt.noise import NoiseSource
from tadiff_rt.presets import PRESETS
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import SolverPlan, make_plan, solve
from tadiff_train.network import NUM_MODALITIES, NetworkConfig, TaDiffNet

DAYS, TREATMENTS = (0.0, 30.0, 60.0, 150.0), (0.0, 0.0, 1.0, 1.0)
X0_RANGE = (0.0, 1.0)
SCHEDULE = NoiseSchedule.linear()
PUBLISHED_STEPS, MASK_STEPS = 600, 10
AT_PUBLISHED = "eager at the first time of the published loop"

Columns = dict[str, Any]
Array = NDArray[np.float32]
Denoise = Callable[[Any, float, int], tuple[Any, Any]]


@dataclass(frozen=True)
class Slice:
    """The work, and where its results go."""

    out: str
    network: dict[str, Any]
    """Fields of `NetworkConfig`; empty: configuration A."""
    size: int = 192
    samples: int = 5
    threads: int = 2

    def net(self) -> TaDiffNet:
        """The network, and PyTorch on as many threads as everyone."""
        torch.set_num_threads(self.threads)
        return network(NetworkConfig(**self.network))

    def sources(self) -> Array:
        """(1, 9, size, size), the same for all."""
        return np.random.default_rng(0).random((1, 9, self.size, self.size), dtype=np.float32)

    def noise(self) -> Array:
        """(samples, 3, size, size): x_T of the samples of slice 0, seed 0."""
        rows = [(0, sample) for sample in range(self.samples)]
        return NoiseSource(0).initial(rows, (NUM_MODALITIES, self.size, self.size))

    def write(self, name: str, **arrays: Any) -> None:
        """What is compared between contestants: `eps`, `images`."""
        for kind, array in arrays.items():
            np.save(Path(self.out) / f"{name} {kind}.npy", np.asarray(array))


class Eager:
    """The whole network as published, every evaluation with its embeddings, in PyTorch."""

    def __init__(self, work: Slice) -> None:
        self.net = work.net()
        b = work.samples
        self.sources = torch.from_numpy(work.sources()).expand(b, -1, -1, -1)
        self.days = torch.tensor([DAYS]).expand(b, -1)
        self.treatments = torch.tensor([TREATMENTS]).expand(b, -1)
        self.target = torch.full((b,), TARGET_SLOT)

    def __call__(self, x: Tensor, t: float, i: int = 0) -> tuple[Tensor, Tensor]:
        """Noise like x and the logits of four masks, at one-based t."""
        given = torch.cat([self.sources, x], dim=1)
        times = torch.full((len(x),), float(t))
        y = self.net(given, times, self.days, self.treatments, self.target)
        return y[:, -NUM_MODALITIES:], y[:, :-NUM_MODALITIES]


@torch.no_grad()
def published(gate: Gate, **work: Any) -> Columns:
    """The published procedure: its loop over 600 steps of a schedule rebuilt for 600.

    Written from its description: noise is drawn before the evaluation, masks are averaged over
    the last ten steps. Unlike the original it survives a batch of one.
    """
    of = Slice(**work)
    beta = torch.linspace(1e-4, 0.02, PUBLISHED_STEPS, dtype=torch.float64)
    alpha, alpha_bar = 1 - beta, torch.cumprod(1 - beta, 0)
    weight = alpha_bar[:MASK_STEPS] / alpha_bar[:MASK_STEPS].sum()
    with attention(five_passes):
        net, x = Eager(of), torch.from_numpy(of.noise())
        masks = torch.zeros_like(net(x, PUBLISHED_STEPS)[1])
        for t in range(PUBLISHED_STEPS, 0, -1):
            gate()
            z = torch.randn_like(x) if t > 1 else torch.zeros_like(x)
            eps, logits = net(x, t)
            b, a, bar = (float(v[t - 1]) for v in (beta, alpha, alpha_bar))
            before = float(alpha_bar[t - 2]) if t > 1 else 1.0
            x = (x - b / (1 - bar) ** 0.5 * eps) / a**0.5
            x = x + (b * (1 - before) / (1 - bar)) ** 0.5 * z
            if t <= MASK_STEPS:
                masks += float(weight[t - 1]) * logits
            if t == PUBLISHED_STEPS:
                of.write("published", eps=eps, images=x)
    return {}


@torch.no_grad()
def eager(gate: Gate, *, name: str, solver: str, steps: int, grid: str, **work: Any) -> Columns:
    """A plan of ours around the network as published, in eager PyTorch."""
    of = Slice(**work)
    with attention(five_passes):
        net = Eager(of)
        eps, _ = net(torch.from_numpy(of.noise()), PUBLISHED_STEPS)
        of.write(AT_PUBLISHED, eps=eps)
        return _solved(gate, of, name, make_plan(SCHEDULE, solver, steps, grid), net)


def _solved(gate: Gate, of: Slice, name: str, plan: SolverPlan, denoise: Denoise) -> Columns:
    """Runs a plan on tensors."""

    def in_turn(x: Tensor, t: float, i: int) -> tuple[Tensor, Tensor]:
        gate()
        eps, logits = denoise(x, t, i)
        if i == 0:
            of.write(name, eps=eps)
        return eps, logits

    images, _ = solve(in_turn, torch.from_numpy(of.noise()), plan, None, None, X0_RANGE)
    of.write(name, images=images)
    return {}


@torch.no_grad()
def diffusers(gate: Gate, *, steps: int, **work: Any) -> Columns:
    """DPMSolverMultistepScheduler as it comes, around the same network in eager PyTorch."""
    of = Slice(**work)
    run = their_default(SCHEDULE, steps)
    times = run.times()
    with attention(five_passes):
        net = Eager(of)
        net(torch.from_numpy(of.noise()), 1.0)

        def denoise(x: Array, i: int) -> Array:
            gate()
            eps, _ = net(torch.from_numpy(x), times[i])
            if i == 0:
                of.write("diffusers", eps=eps)
            return eps.numpy()

        of.write("diffusers", images=run.sample(denoise, of.noise(), None))
    return {}


@torch.no_grad()
def compiled(gate: Gate, *, steps: int, **work: Any) -> Columns:
    """The default plan around our denoiser in torch.compile, with frozen weights."""
    of = Slice(**work)
    plan = make_plan(SCHEDULE, num_steps=steps)
    conditioner, denoiser = split(of.net())
    given = torch.tensor(plan.t).float(), torch.tensor([DAYS]), torch.tensor([TREATMENTS])
    shifts = conditioner(*given)
    sources = torch.from_numpy(of.sources()).expand(of.samples, -1, -1, -1).contiguous()
    x = torch.from_numpy(of.noise())
    engines_cpu.in_blocks(denoiser, engines_cpu.QUERY_CHUNK)
    run = engines_cpu.compiled_program(denoiser)
    run(sources, x, shifts[:1])
    return _solved(gate, of, "compiled", plan, lambda x, t, i: run(sources, x, shifts[i : i + 1]))


def openvino(gate: Gate, *, bundle: str, steps: int, precision: str, **work: Any) -> Columns:
    """The default plan around the graph of a bundle in openvino."""
    of = Slice(**work)
    plan = make_plan(SCHEDULE, num_steps=steps)
    opened = open_bundle(bundle)
    shifts = load_conditioner(opened).condition(plan.t, DAYS, TREATMENTS)
    sources = np.repeat(of.sources(), of.samples, axis=0)
    graph = opened.read(opened.manifest.denoisers[0])
    feed = [sources, of.noise(), shifts[:1]]
    run = engines_cpu.openvino_request(graph, feed, of.threads, precision)
    run(feed)

    def denoise(x: Array, t: float, i: int) -> tuple[Array, Array]:
        gate()
        eps, logits = run([sources, x, shifts[i : i + 1]])
        if i == 0:
            of.write(f"openvino {precision}", eps=eps)
        return eps, logits

    images, _ = solve(denoise, of.noise(), plan, None, None, X0_RANGE)
    of.write(f"openvino {precision}", images=images)
    return {}


def runtime(
    gate: Gate, *, bundle: str, preset: str, backend: str = "onnxruntime:fp32", **work: Any
) -> Columns:
    """The runtime as a forecast uses it: engine bundle, buckets, noise, finite checks, solver.

    A step is a call of the network, which may hold one sample; their number is told.
    """
    of = Slice(**work)
    wanted = PRESETS[preset]
    plan = make_plan(SCHEDULE, wanted.solver, wanted.steps)
    loaded = load_backend(backend, open_bundle(bundle), of.threads)
    shifts = loaded.condition(plan.t, DAYS, TREATMENTS)
    warm = of.noise()[: loaded.batch]
    loaded.denoise(np.repeat(of.sources(), len(warm), axis=0), warm, shifts[:1])
    first: list[Array] = []
    whole = loaded.denoise

    def in_turn(sources: Array, x: Array, shift: Array) -> tuple[Array, Array]:
        gate()
        eps, logits = whole(sources, x, shift)
        if np.array_equal(shift, shifts[:1]):
            first.append(eps)
        return eps, logits

    loaded.denoise = in_turn  # type: ignore[method-assign]
    sampling = Sampling(plan, NoiseSource(0), X0_RANGE)
    rows = [(0, sample) for sample in range(of.samples)]
    drawn = BatchRunner(loaded, sampling, shifts, of.sources()).run(rows)
    images = np.stack([image for _, image, _ in drawn])
    of.write(f"{preset} {backend}", eps=np.concatenate(first)[: of.samples], images=images)
    return {"rows_a_call": loaded.batch}
