"""What is a sampler worth at a number of evaluations, and what does it cost?

    python -m benchmarks.sampler [SAMPLES]

One slice with tumour of the bundled case, the bundled network, 8 samples, all solvers in one
process. The contestants take turns, one sample each, so that the time of a sample is measured on
the very samples that are compared; of the first, which warms up, the time is not taken. Solvers
run as the runtime runs them; diffusers' multistep scheduler drives the same network from the same
noised guess, as its image-to-image pipelines begin: with the settings it comes with; with
estimates of x0 clipped to the range of the data, as the runtime does and the scheduler has no
setting for; and clipped at our times, rounded to the integers that it takes.

Distances, inside the brain, are those of `certify.network.distance` from a dense run with the
same noise; "other noise" is what so many samples cannot resolve, and the least that a sampler
which draws noise on the way can reach. Beside them stands the spread that a way of sampling keeps
of Gaussian data, in closed form: as it is run here, and from pure noise. The floor is that of the
network's evaluations alone.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tadiff_rt
from benchmarks.diffusers_run import DiffusersRun, nearest_ours, their_default
from benchmarks.floor import Roofline, Row
from benchmarks.harness import run_in_turns, save
from benchmarks.network_cost import Layer, layers, network_row
from benchmarks.plan_quality import plan_quality
from benchmarks.slice_ensembles import Draw, Drawing, Slice
from tadiff_rt import Forecaster, read_case
from tadiff_rt.certify.network import DENSE_SOLVER, DENSE_STEPS, Drawn, distance
from tadiff_rt.commands import DEMO_BUNDLE, DEMO_CASE
from tadiff_rt.presets import DEFAULT, PRESETS
from tadiff_rt.solvers import make_plan
from tadiff_train.network import NetworkConfig

DATA = Path(tadiff_rt.__file__).parent / "data"
SLICE = 29
"""Of most tumour in the bundled case, in canonical order."""
SAMPLES = 5
CASE = "sampler/bundled"
SOLVERS = {
    "ddim": (5, 8, 10, 20, 50),
    "dpmpp_2m": (5, 8, 10, 15, 20, 50),
    "unipc_2": (5, 8, 10, 15, 20),
    "dpmpp_3m": (5, 8, 10, 20),
    "sde_dpmpp_2m": (10, 20),
}
"""Evaluations of a sample: as many as four minutes hold."""
THEIRS = 20
"""Evaluations of diffusers' scheduler."""
PUBLISHED, PUBLISHED_MEASURED = 600, 20
"""Steps of the published procedure; those that are timed."""
OTHER_SEED = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Contestant:
    """A way of sampling, with its columns beside time and distance."""

    draw: Draw
    nfe: int
    columns: Row
    scale: float = 1.0
    """Of its time: above 1 where a part of the run is timed and stands for all of it."""
    compared: bool = True
    """Whether its samples are forecasts to be compared."""


def in_this_runtime(where: Slice, solver: str, steps: int, *, seed: int = 0) -> Contestant:
    """A solver as the runtime runs it."""
    plan = where.plan(solver, steps)
    columns = {
        "paired": seed == 0 and not plan.coef_noise.any(),
        "quality": plan_quality(plan, informed=where.informed),
        "quality_from_noise": plan_quality(make_plan(where.schedule, solver, steps)),
    }
    return Contestant(where.drawn_by(plan, seed), steps, columns)


def by_diffusers(
    where: Slice, steps: int, made: Callable[..., DiffusersRun], *, clipped: bool
) -> Contestant:
    """Their scheduler as `made`."""
    run = made(where.schedule, steps, where.card.start_lam)
    columns = {
        "paired": True,
        "grid": "linspace" if made is their_default else "logsnr, whole times",
        "quality": run.quality(where.schedule, informed=where.informed),
        "quality_from_noise": made(where.schedule, steps).quality(where.schedule),
    }
    return Contestant(where.drawn_by_diffusers(run, clipped=clipped), steps, columns)


def published(where: Slice, steps: int, measured: int) -> Contestant:
    """Ancestral sampling at `steps` times even in t, of which `measured` are timed."""
    plan = where.plan("ddpm", steps, "trailing")
    columns = {
        "paired": False,
        "grid": "trailing",
        "extrapolated_from_steps": measured,
        "quality": plan_quality(plan, informed=where.informed),
        "quality_from_noise": plan_quality(make_plan(where.schedule, "ddpm", steps, "trailing")),
    }
    part = where.drawn_by(where.plan("ddpm", measured, "trailing"))
    return Contestant(part, steps, columns, steps / measured, compared=False)


def contestants(
    where: Slice,
    solvers: dict[str, tuple[int, ...]],
    *,
    dense: int = DENSE_STEPS,
    theirs: int = THEIRS,
    ancestral: tuple[int, int] = (PUBLISHED, PUBLISHED_MEASURED),
) -> dict[str, Contestant]:
    """The dense run first, then `solvers` and every preset, and the others."""
    settings = {(preset.solver, preset.steps): name for name, preset in PRESETS.items()}
    wanted = [(solver, steps) for solver, every in solvers.items() for steps in every]
    found = {f"{DENSE_SOLVER} {dense}": in_this_runtime(where, DENSE_SOLVER, dense)}
    for solver, steps in dict.fromkeys([*wanted, *settings]):
        one = in_this_runtime(where, solver, steps)
        if (solver, steps) in settings:
            one.columns["preset"] = settings[solver, steps]
        found[f"{solver} {steps}"] = one
    usual = PRESETS[DEFAULT]
    other = in_this_runtime(where, usual.solver, usual.steps, seed=OTHER_SEED)
    return {
        **found,
        f"{usual.solver} {usual.steps}, other noise": other,
        **{
            f"diffusers {what} {theirs}{', clipped' * clipped}": by_diffusers(
                where, theirs, made, clipped=clipped
            )
            for what, made, clipped in (
                ("default", their_default, False),
                ("default", their_default, True),
                ("at our times", nearest_ours, True),
            )
        },
        f"ddpm {ancestral[0]}": published(where, *ancestral),
    }


def rows(
    where: Slice,
    every: dict[str, Contestant],
    samples: int,
    network: Sequence[Layer],
    roofline: Roofline,
) -> list[Row]:
    """One a contestant; the first is what the others are compared with."""
    dense = next(iter(every))
    drawings = {name: Drawing(one.draw, where) for name, one in every.items()}
    seconds = run_in_turns(dict(drawings), samples - 1)
    reference = drawings[dense].drawn()
    found = []
    for name, one in every.items():
        columns = dict(one.columns, nfe=one.nfe, samples=samples, slice=where.at)
        if one.compared and name != dense:
            columns["distance_to"] = dense
            columns |= _distances(drawings[name].drawn(), reference)
        scaled = [one.scale * second for second in seconds[name]]
        floor = {"calls": one.nfe, **columns}
        found.append(network_row(CASE, name, scaled, network, 1, "fp32", roofline, **floor))
    return found


def _distances(one: Drawn, other: Drawn) -> Row:
    """Columns of a row; see `certify.network.Distance`."""
    found = dataclasses.asdict(distance(one, other))
    named = {"mean", "spread", "probability", "volume"}
    return {
        f"{key}_distance" if key in named else key: round(value, 6) for key, value in found.items()
    }


def main(samples: str = str(SAMPLES)) -> None:
    """Writes results/sampler.jsonl."""
    threads = len(os.sched_getaffinity(0))
    forecaster = Forecaster.load(DATA / DEMO_BUNDLE, "onnxruntime", threads)
    where = Slice(forecaster, read_case(DATA / DEMO_CASE), SLICE)
    network = layers(NetworkConfig(**forecaster.bundle.manifest.network), where.card.data.size)
    roofline = Roofline.of_this_cpu(threads)
    found = rows(where, contestants(where, SOLVERS), int(samples), network, roofline)
    save("sampler", [roofline.as_row(CASE), *found])


if __name__ == "__main__":
    main(*sys.argv[1:])
