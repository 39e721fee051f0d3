"""What does one slice with five samples cost, by every way there is to get it?

`python -m benchmarks.one_slice`. Configuration A at 192 x 192, made-up weights (time does not
depend on them), in fp32 on all cores: the published procedure, a corrected DDIM, diffusers'
scheduler, torch.compile, openvino and this runtime (`benchmarks.contestants`). Each runs in a
process of its own and takes its turn step by step; those in eager PyTorch run once more with an
allocator that keeps its memory. Steps of one contestant do equal work, so a row is the median step
times their number; `extrapolated_from_steps` says where not all were run. Loading and compiling
are in `setup_seconds`. No row is written unless the noise estimates agree, and the images of those
that follow the same plan.
"""

import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import PUBLISHED_STEPS, SCHEDULE
from benchmarks.diffusers_run import their_default
from benchmarks.floor import Roofline, Row
from benchmarks.harness import row, save
from benchmarks.made_case import card_of, write_bundle, write_checkpoint
from benchmarks.network_cost import layers, works
from benchmarks.plan_quality import plan_quality, published_quality
from benchmarks.turns import KEEPING, Contestant, take_turns
from tadiff_rt.backends import available_cores
from tadiff_rt.bundle import open_bundle
from tadiff_rt.presets import DEFAULT, PRESETS
from tadiff_rt.solvers import make_plan
from tadiff_train.network import NetworkConfig

CASE = "one slice, 5 samples, A, 192 x 192"
SAMPLES = 5
KEPT = ", memory kept"
DEFAULT_STEPS = PRESETS[DEFAULT].steps
DDIM_STEPS, THEIR_STEPS = 50, 20
ALLOWED = 1e-3
"""Largest difference of noise estimates, relative to the largest value, and of images."""
REFERENCE = "our default plan, eager PyTorch"
PUBLISHED = f"published, {PUBLISHED_STEPS} steps, eager PyTorch"
OURS, FAST = "this runtime, default", "this runtime, fast"
FEW = 10
"""Steps measured of what is slow, does equal work in every step and is in nobody's claim."""


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
    """Of them; 0: all."""
    eager: bool = False
    result: str = ""
    """Name of what it writes; empty: the estimate is not of the same noise level."""
    follows_default: bool = False


def ways(bundle: Path, rows_a_call: int, samples: int) -> dict[str, Way]:
    """All of them, by the name in the table."""
    default = plan_quality(make_plan(SCHEDULE, num_steps=DEFAULT_STEPS))
    ddim = make_plan(SCHEDULE, "ddim", DDIM_STEPS, "trailing")
    plan: dict[str, Any] = {"solver": "dpmpp_2m", "steps": DEFAULT_STEPS, "grid": "logsnr"}
    short = {"solver": "ddim", "steps": DDIM_STEPS, "grid": "trailing"}
    fast = PRESETS["fast"]
    calls = -(-samples // rows_a_call)
    few = {"measured": FEW, "eager": True}
    same: dict[str, Any] = {"quality": default, "follows_default": True}
    given: dict[str, Any] = {"steps": DEFAULT_STEPS}
    ours = {"bundle": str(bundle)}
    return {
        PUBLISHED: Way("published", PUBLISHED_STEPS, published_quality(), measured=20, eager=True),
        f"DDIM, {DDIM_STEPS} steps, eager PyTorch": Way(
            "eager",
            DDIM_STEPS,
            plan_quality(ddim),
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
            eager=True,
            result="eager",
            **same,
        ),
        "our default plan, torch.compile": Way(
            "compiled", DEFAULT_STEPS, arguments=given, result="compiled", **same
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
            arguments={"preset": DEFAULT, **ours},
            steps=DEFAULT_STEPS * calls,
            result=DEFAULT,
            **same,
        ),
        FAST: Way(
            "runtime",
            fast.steps,
            plan_quality(make_plan(SCHEDULE, fast.solver, fast.steps)),
            {"preset": "fast", **ours},
            steps=fast.steps * calls,
            result="fast",
        ),
    }


@dataclass(frozen=True)
class Size:
    """Of the work; another for tests."""

    network: dict[str, Any] = field(default_factory=dict)
    size: int = 192
    samples: int = SAMPLES
    threads: int = field(default_factory=available_cores)


def contestants(every: dict[str, Way], size: Size, out: str) -> dict[str, tuple[Way, Contestant]]:
    """One of each way, and of the eager ones another whose allocator keeps its memory."""
    found = {}
    for name, way in every.items():
        shared = {**way.arguments, **asdict(size), "out": out}
        threads = {"OMP_NUM_THREADS": str(size.threads)}
        contest = f"benchmarks.contestants:{way.function}"
        found[name] = way, Contestant(contest, shared, threads)
        if way.eager:
            kept = {**shared, "out": f"{out}/kept"}
            found[name + KEPT] = way, Contestant(contest, kept, {**threads, **KEEPING})
    return found


def differences(every: dict[str, tuple[Way, Contestant]], out: str) -> dict[str, dict[str, Any]]:
    """How far each is from the reference; what was not run to its end, or starts elsewhere, no.

    Raises:
        SystemExit: one is wrong.
    """
    reference = np.load(Path(out) / f"{every[REFERENCE][0].result}.npz")
    found: dict[str, dict[str, Any]] = {}
    for name, (way, contestant) in every.items():
        path = Path(contestant.arguments["out"]) / f"{way.result}.npz"
        found[name] = {}
        if not path.exists():
            continue
        arrays = np.load(path)
        eps = np.abs(arrays["eps"] - reference["eps"]).max() / np.abs(reference["eps"]).max()
        found[name]["estimate_differs"] = float(f"{eps:.1e}")
        if way.follows_default:
            images = np.abs(arrays["images"] - reference["images"]).max()
            found[name]["images_differ"] = float(f"{images:.1e}")
        if not all(value <= ALLOWED for value in found[name].values()):  # NaN is no number less
            raise SystemExit(f"{name} is wrong: {found[name]}")
    return found


def rows(bundle: Path, rows_a_call: int, size: Size, out: str) -> list[Row]:
    """A row a contestant, and the rates that their floors are of."""
    rates = Roofline.of_this_cpu(size.threads)
    every = contestants(ways(bundle, rows_a_call, size.samples), size, out)
    (Path(out) / "kept").mkdir()
    counts = {
        name: way.measured or way.steps or way.evaluations for name, (way, _) in every.items()
    }
    take_turns({name: c for name, (_, c) in every.items()}, counts, say)
    wrong = differences(every, out)
    work = works(layers(NetworkConfig(**size.network), size.size), size.samples, "fp32")
    found = [rates.as_row(CASE)]
    for name, (way, contestant) in every.items():
        steps = way.steps or way.evaluations
        entry = row(CASE, name, [steps * s for s in contestant.seconds])
        floor = rates.columns(entry["ms"], [w.times(way.evaluations) for w in work])
        found.append(
            {
                **entry,
                **floor,
                "evaluations": way.evaluations,
                "extrapolated_from_steps": way.measured or None,
                "setup_seconds": round(contestant.setup_seconds, 2),
                "peak_mb": contestant.peak_mb,
                "page_faults_a_step": contestant.page_faults // len(contestant.seconds),
                "threads": size.threads,
                "quality": {**way.quality, **wrong[name]},
            }
        )
    return found


def make_bundle(folder: Path, size: Size) -> tuple[Path, int]:
    """The bundle that this runtime runs, and its rows a call."""
    folder = Path(os.environ.get("WORK") or folder)
    config, bundle = NetworkConfig(**size.network), folder / f"{size.size}.tadiff"
    if not bundle.exists():  # questions of `benchmarks.all` share it
        write_bundle(write_checkpoint(folder / "run", config, card_of(size.size)), bundle)
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
