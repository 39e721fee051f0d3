"""How much faster is the default run than the published one?

    python -m benchmarks.sampler_speed BUNDLE [THREADS]

One slice, 5 samples, in turns in one process: the default plan in full; 20 steps of ancestral
sampling in the same runtime, from which 1000 are extrapolated; and 20 steps of it in eager PyTorch
with the published form of attention, from which 600 are extrapolated, the published number.
Random weights in PyTorch: time does not depend on them. Then 16 samples of the slice by one worker
with all threads and by as many workers as threads.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.harness import append, row, run_in_turns
from benchmarks.network_cpu import attention, five_passes
from tadiff_export.split import TARGET_SLOT
from tadiff_rt import Forecaster
from tadiff_rt.batches import BatchRunner, Sampling
from tadiff_rt.noise import NoiseSource
from tadiff_rt.solvers import SolverPlan, make_plan, solve
from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS, NetworkConfig, TaDiffNet

SAMPLES = 5
MANY = 16
MEASURED = 20
"""Steps of each long run that are timed."""
REPEATS = 5
DAYS = [0.0, 30.0, 60.0, 150.0]
TREATMENTS = [0.0, 0.0, 1.0, 1.0]


def in_this_runtime(
    forecaster: Forecaster, plan: SolverPlan, samples: int = SAMPLES, workers: int = 1
) -> Callable[[], object]:
    """A call that draws samples of one slice by `plan`."""
    backend, card = forecaster.backend, forecaster.bundle.manifest.card
    size = card.data.size
    sources = np.random.default_rng(0).random((1, 9, size, size), dtype=np.float32)
    shifts = backend.condition(plan.t, DAYS, TREATMENTS)
    sampling = Sampling(plan, NoiseSource(0), card.x0_range)
    rows = [(0, sample) for sample in range(samples)]
    return lambda: list(BatchRunner(backend, sampling, shifts, sources, workers).run(rows))


def as_published(forecaster: Forecaster, plan: SolverPlan) -> Callable[[], object]:
    """The same in eager PyTorch: the whole network at every step, a batch of all samples."""
    manifest = forecaster.bundle.manifest
    size = manifest.card.data.size
    net = TaDiffNet(NetworkConfig(**manifest.network)).eval()
    sources = torch.rand(SAMPLES, 9, size, size)
    days = torch.tensor([DAYS]).expand(SAMPLES, -1)
    treatments = torch.tensor([TREATMENTS]).expand(SAMPLES, -1)
    target = torch.full((SAMPLES,), TARGET_SLOT)

    def denoise(x: torch.Tensor, t: float, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        given = torch.cat([sources, x], dim=1)
        y = net(given, torch.full((SAMPLES,), t), days, treatments, target)
        return y[:, -NUM_MODALITIES:], y[:, :NUM_SESSIONS]

    def run() -> None:
        x_T = torch.randn(SAMPLES, NUM_MODALITIES, size, size)
        with torch.no_grad(), attention(five_passes):
            solve(denoise, x_T, plan, lambda i: torch.randn_like(x_T))

    return run


def main(bundle: str, threads: int) -> None:
    """Writes rows to results/cpu.jsonl."""
    torch.set_num_threads(threads)
    forecaster = Forecaster.load(bundle, threads=threads)
    schedule = forecaster.bundle.manifest.card.schedule.build()
    ancestral = make_plan(schedule, "ddpm", MEASURED)
    default = "dpmpp_2m, 20 steps, onnxruntime"
    long, published = "ddpm, 1000 steps, onnxruntime", "ddpm, 600 steps, eager PyTorch"
    seconds = run_in_turns(
        {
            default: in_this_runtime(forecaster, make_plan(schedule)),
            long: in_this_runtime(forecaster, ancestral),
            published: as_published(forecaster, ancestral),
        },
        REPEATS,
    )
    steps = {default: MEASURED, long: 1000, published: 600}
    median = float(np.median(seconds[default]))
    size = forecaster.bundle.manifest.card.data.size
    rows = []
    for name, measured in seconds.items():
        scaled = [second * steps[name] / MEASURED for second in measured]
        rows.append(
            row(
                f"one slice, {SAMPLES} samples, {size} x {size}, {threads} threads",
                name,
                scaled,
                times_the_default=round(float(np.median(scaled)) / median, 1),
                extrapolated_from_steps=None if name == default else MEASURED,
            )
        )
    append("cpu", [*rows, *by_workers(bundle, threads)])


def by_workers(bundle: str, threads: int) -> list[dict[str, object]]:
    """Rows of the same work by threads and by workers."""
    plan = make_plan(Forecaster.load(bundle).bundle.manifest.card.schedule.build())
    seconds = run_in_turns(
        {
            f"1 worker, {threads} threads": in_this_runtime(
                Forecaster.load(bundle, threads=threads), plan, MANY
            ),
            f"{threads} workers, 1 thread": in_this_runtime(
                Forecaster.load(bundle, threads=1), plan, MANY, threads
            ),
        },
        REPEATS,
    )
    return [row(f"one slice, {MANY} samples", name, found) for name, found in seconds.items()]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
