"""What does one slice with five samples cost, by every way there is to get it?

`python -m benchmarks.one_slice`. Configuration A at 192 x 192, made-up weights (time does not
depend on them), in fp32 on all cores: the published procedure, a corrected DDIM, diffusers'
scheduler, torch.compile, openvino and this runtime (`benchmarks.contestants`); and this runtime in
bf16, where the processor multiplies in it. Each runs in a process of its own and takes its turn
step by step; those in eager PyTorch run once more with an allocator that keeps its memory,
torch.compile with that alone, which is its best. Steps of one contestant do equal work, so a row
is the median step times their number; where not all were run, `extrapolated_from_steps` says so.
Loading and compiling are in `setup_seconds`. No row is written unless the noise estimates agree,
and the images of those that follow the same plan in fp32 to its end.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import AT_PUBLISHED, PUBLISHED_STEPS, SCHEDULE
from benchmarks.diffusers_run import their_default
from benchmarks.floor import Roofline, Row
from benchmarks.harness import row, save
from benchmarks.made_case import card_of, write_bundle, write_checkpoint
from benchmarks.network_cost import layers, works
from benchmarks.plan_quality import plan_verdict, published_quality
from benchmarks.turns import KEEPING, Contestant, take_turns
from tadiff_rt.backends import available_cores, ov
from tadiff_rt.bundle import open_bundle
from tadiff_rt.certificate import Precision
from tadiff_rt.presets import DEFAULT, PRESETS
from tadiff_rt.solvers import make_plan
from tadiff_train.network import NetworkConfig

CASE = "one slice, 5 samples, A, 192 x 192"
SAMPLES = 5
KEPT = ", memory kept"
EXACT, HALF = "onnxruntime:fp32", "openvino:bf16"
"""Backends of this runtime."""
DEFAULT_STEPS = PRESETS[DEFAULT].steps
DDIM_STEPS, THEIR_STEPS = 50, 20
ALLOWED = 1e-3
"""Largest difference of noise estimates, relative to the largest value, and of images."""
REFERENCE = "our default plan, eager PyTorch"
PUBLISHED = f"published, {PUBLISHED_STEPS} steps, eager PyTorch"
OURS, FAST = "this runtime, default", "this runtime, fast"
BF16 = "this runtime, default, bf16"
ALLOWED_BF16 = 0.05
"""The same, of noise estimates that were rounded to bf16 on the way."""
FEW = 3
"""Steps measured of what takes seconds a step, where enough others of the same work are run."""


@dataclass(frozen=True)
class Way:
    """One way to get the samples."""

    function: str
    """Of `benchmarks.contestants`."""
    evaluations: int
    """Of the network, a sample."""
    quality: dict[str, object]
    arguments: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    """In all; 0: as many as evaluations."""
    measured: int = 0
    """Of them with the usual allocator; 0: all."""
    measured_kept: int | None = None
    """Of them with one that keeps its memory; None: it does not run with it."""
    usual: bool = True
    """Whether it runs with the usual allocator."""
    result: str = ""
    """Name of what it writes."""
    compared_with: str = "eager"
    """Name of the noise estimate that its own must be."""
    follows_default: bool = False
    """Its images must be those of the reference."""
    dtype: str = "fp32"
    """What it multiplies in; where it is not fp32, its images are others."""


def ways(bundle: Path, rows_a_call: int, samples: int) -> dict[str, Way]:
    """All of them, by the name in the table."""
    default = plan_verdict(make_plan(SCHEDULE, num_steps=DEFAULT_STEPS), SCHEDULE)
    ddim = make_plan(SCHEDULE, "ddim", DDIM_STEPS, "trailing")
    plan: dict[str, Any] = {"solver": "dpmpp_2m", "steps": DEFAULT_STEPS, "grid": "logsnr"}
    short = {"solver": "ddim", "steps": DDIM_STEPS, "grid": "trailing"}
    fast = PRESETS["fast"]
    calls = -(-samples // rows_a_call)
    few = {"measured": FEW, "measured_kept": FEW}
    same: dict[str, Any] = {"quality": default, "follows_default": True}
    given: dict[str, Any] = {"steps": DEFAULT_STEPS}
    ours = {"bundle": str(bundle)}
    found = {
        PUBLISHED: Way(
            "published",
            PUBLISHED_STEPS,
            published_quality(),
            measured=20,
            measured_kept=20,
            result="published",
            compared_with=AT_PUBLISHED,
        ),
        f"DDIM, {DDIM_STEPS} steps, eager PyTorch": Way(
            "eager",
            DDIM_STEPS,
            plan_verdict(ddim, SCHEDULE),
            {"name": "ddim", **short},
            result="ddim",
            **few,
        ),
        f"diffusers' DPM-Solver, {THEIR_STEPS} steps, eager PyTorch": Way(
            "diffusers",
            THEIR_STEPS,
            their_default(SCHEDULE, THEIR_STEPS).quality(SCHEDULE),
            {"steps": THEIR_STEPS},
            result="diffusers",
            **few,
        ),
        REFERENCE: Way(
            "eager",
            DEFAULT_STEPS,
            arguments={"name": "eager", **plan},
            measured=FEW,
            measured_kept=0,
            result="eager",
            **same,
        ),
        "our default plan, torch.compile": Way(
            "compiled",
            DEFAULT_STEPS,
            arguments=given,
            measured_kept=0,
            usual=False,
            result="compiled",
            **same,
        ),
        "our default plan, openvino": Way(
            "openvino",
            DEFAULT_STEPS,
            arguments={"precision": "f32", **given, **ours},
            result="openvino f32",
            **same,
        ),
        OURS: Way(
            "runtime",
            DEFAULT_STEPS,
            arguments={"preset": DEFAULT, "backend": EXACT, **ours},
            steps=DEFAULT_STEPS * calls,
            result=f"{DEFAULT} {EXACT}",
            **same,
        ),
        BF16: Way(
            "runtime",
            DEFAULT_STEPS,
            default,
            {"preset": DEFAULT, "backend": HALF, **ours},
            steps=DEFAULT_STEPS * calls,
            result=f"{DEFAULT} {HALF}",
            dtype="bf16",
        ),
        FAST: Way(
            "runtime",
            fast.steps,
            plan_verdict(make_plan(SCHEDULE, fast.solver, fast.steps), SCHEDULE),
            {"preset": "fast", "backend": EXACT, **ours},
            steps=fast.steps * calls,
            result=f"fast {EXACT}",
        ),
    }
    if "bf16" not in ov.precisions():
        del found[BF16]
    return found


@dataclass(frozen=True)
class Size:
    """Of the work; another for tests."""

    network: dict[str, Any] = field(default_factory=dict)
    size: int = 192
    samples: int = SAMPLES
    threads: int = field(default_factory=available_cores)


@dataclass(frozen=True)
class Run:
    """A way with an allocator."""

    way: Way
    contestant: Contestant
    measured: int

    @property
    def steps(self) -> int:
        """In all."""
        return self.way.steps or self.way.evaluations


def runs(every: dict[str, Way], size: Size, out: str) -> dict[str, Run]:
    """Each way with the usual allocator, with one that keeps its memory, or with both."""
    found = {}
    for name, way in every.items():
        shared = {**way.arguments, **asdict(size)}
        threads = {"OMP_NUM_THREADS": str(size.threads)}
        steps, contest = way.steps or way.evaluations, f"benchmarks.contestants:{way.function}"
        if way.usual:
            usual = Contestant(contest, {**shared, "out": out}, threads)
            found[name] = Run(way, usual, way.measured or steps)
        if way.measured_kept is not None:
            given = {**shared, "out": f"{out}/kept"}
            kept = Contestant(contest, given, {**threads, **KEEPING})
            found[name + KEPT] = Run(way, kept, way.measured_kept or steps)
    return found


def differences(every: dict[str, Run], out: str) -> dict[str, dict[str, float]]:
    """How far noise estimates and images are from those of the reference, which keeps memory.

    Raises:
        SystemExit: one is wrong.
        FileNotFoundError: one was not written.
    """
    reference = Path(out) / "kept"
    found: dict[str, dict[str, float]] = {}
    for name, run in every.items():
        way, folder = run.way, Path(run.contestant.arguments["out"])
        expected = np.load(reference / f"{way.compared_with} eps.npy")
        eps = np.abs(np.load(folder / f"{way.result} eps.npy") - expected)
        differs = {"estimate_differs": eps.max() / np.abs(expected).max()}
        if way.follows_default and run.measured == run.steps:
            expected = np.load(reference / "eager images.npy")
            images = np.load(folder / f"{way.result} images.npy")
            differs["images_differ"] = np.abs(images - expected).max()
        allowed = ALLOWED if way.dtype == "fp32" else ALLOWED_BF16
        if not all(value <= allowed for value in differs.values()):  # NaN is no number less
            raise SystemExit(f"{name} is wrong: {differs}")
        found[name] = {key: float(f"{value:.1e}") for key, value in differs.items()}
    return found


def rows(bundle: Path, rows_a_call: int, size: Size, out: str) -> list[Row]:
    """A row a contestant, and the rates that their floors are of."""
    rates = Roofline.of_this_cpu(size.threads)
    every = runs(ways(bundle, rows_a_call, size.samples), size, out)
    (Path(out) / "kept").mkdir()
    counts = {name: run.measured for name, run in every.items()}
    take_turns({name: run.contestant for name, run in every.items()}, counts, say)
    wrong = differences(every, out)
    every_layer = layers(NetworkConfig(**size.network), size.size)
    found = [rates.as_row(CASE)]
    for name, run in every.items():
        contestant, evaluations = run.contestant, run.way.evaluations
        work = works(every_layer, size.samples, run.way.dtype)
        entry = row(CASE, name, [run.steps * s for s in contestant.seconds])
        floor = rates.columns(entry["ms"], [w.times(evaluations) for w in work])
        faults = contestant.page_faults / run.measured * run.steps / evaluations
        found.append(
            {
                **entry,
                **floor,
                "evaluations": evaluations,
                "extrapolated_from_steps": None if run.measured == run.steps else run.measured,
                "setup_seconds": round(contestant.setup_seconds, 2),
                "peak_mb": contestant.peak_mb,
                "page_faults_an_evaluation": round(faults),
                "threads": size.threads,
                "quality": {**run.way.quality, **wrong[name]},
            }
        )
    return found


def make_bundle(
    folder: Path, size: Size, precisions: Sequence[Precision] = ("fp32", "bf16")
) -> tuple[Path, int]:
    """The bundle that this runtime runs, and its rows a call."""
    folder = Path(os.environ.get("WORK") or folder)
    config = NetworkConfig(**size.network)
    name = hashlib.sha256(repr((config, size.size, *precisions)).encode()).hexdigest()[:12]
    bundle = folder / f"{name}.tadiff"
    if not bundle.exists():  # questions of `benchmarks.all` share it
        run = write_checkpoint(folder / name, config, card_of(size.size))
        write_bundle(run, bundle, precisions)
    return bundle, open_bundle(bundle).manifest.denoisers[0].batch or 1


def say(text: str) -> None:
    """Progress, apart from rows."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """Writes results/one_slice.jsonl."""
    size = Size()
    with tempfile.TemporaryDirectory() as folder:
        bundle, rows_a_call = make_bundle(Path(folder), size)
        save("one_slice", rows(bundle, rows_a_call, size, folder))


if __name__ == "__main__":
    main()
