"""How far is a short run from a dense one?

    python -m benchmarks.solver_distance BUNDLE COHORT WORK [PROCESSES]

For one slice of each of the first patients of a simulated cohort, an ensemble of every contestant
with the same noise; its mean, spread, mask and tumour area beside those of the dense run. The
floor is the distance of two dense ensembles with different noise: what 16 samples cannot resolve.
Ensembles are kept in WORK, so that a broken run goes on; rows go to results/quality.jsonl.
"""

import dataclasses
import sys
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import append
from tadiff_rt import Forecaster, read_case
from tadiff_rt.case import Case, Session
from tadiff_rt.certify.network import Drawn, distance, drawn, mean_distance

PATIENTS = 12
SAMPLES = 16
JUSTIFIED_ON = 2
"""Patients for which the dense run is compared with all trained timesteps."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A sampler, and the seed of its noise."""

    solver: str
    grid: str
    steps: int
    seed: int = 0

    @property
    def name(self) -> str:
        """For file names and rows."""
        return f"{self.solver} {self.grid} {self.steps}" + (f" seed {self.seed}" * (self.seed > 0))


DENSE = Contestant("dpmpp_2m", "logsnr", 100)
OTHER_NOISE = dataclasses.replace(DENSE, seed=1)
DEFAULT = Contestant("dpmpp_2m", "logsnr", 20)
SHORT = [
    *(Contestant("dpmpp_2m", "logsnr", n) for n in (5, 8, 10, 15, 20, 50)),
    *(Contestant("unipc_2", "logsnr", n) for n in (5, 8, 10, 15, 20)),
    *(Contestant("sde_dpmpp_2m", "logsnr", n) for n in (10, 20, 50)),
    *(Contestant("dpmpp_3m", "logsnr", n) for n in (8, 20)),
    Contestant("ddim", "logsnr", 20),
    Contestant("dpmpp_2m", "trailing", 20),
    Contestant("dpmpp_2m", "karras", 20),
]


def all_times(forecaster: Forecaster, solver: str) -> Contestant:
    """Every trained timestep from the start of the bundle's runs."""
    card = forecaster.bundle.manifest.card
    schedule = card.schedule.build()
    first = schedule.num_train_timesteps
    if card.start_lam is not None:
        first = int(schedule.t_of_lam(card.start_lam))
    return Contestant(solver, "all", first)


def known_part(subject: Path) -> tuple[Case, Session, int]:
    """The case without its last session; that session; the slice of most tumour before it."""
    case = read_case(subject)
    known = dataclasses.replace(case, sessions=case.sessions[:-1])
    mask = known.sessions[-1].mask
    assert mask is not None
    areas = (mask.data > 0).sum(axis=(0, 1))
    at = int(np.argmax(areas[::-1]))  # files run up, canonical slices down
    return known, case.sessions[-1], at


_forecaster: Forecaster


def _load(bundle: str) -> None:
    global _forecaster
    _forecaster = Forecaster.load(bundle, threads=1)


def _draw(job: tuple[Path, Contestant, Path]) -> str:
    """Draws one ensemble unless its file is there."""
    subject, contestant, file = job
    if file.exists():
        return file.name
    known, target, at = known_part(subject)
    forecast = _forecaster.predict(
        known,
        day=target.day,
        treatment=target.treatment,
        samples=SAMPLES,
        seed=contestant.seed,
        steps=contestant.steps,
        solver=contestant.solver,
        grid=contestant.grid,
        slices=str(at),
        extrapolate=True,
    )
    part = file.with_suffix(".part.npz")
    np.savez(part, **vars(drawn(forecast)))
    part.rename(file)
    return file.name


def file_of(work: Path, subject: Path, contestant: Contestant) -> Path:
    """Where the ensemble of a contestant on a subject's slice is kept."""
    return work / f"{subject.name} {contestant.name}.npz"


def load(work: Path, subject: Path, contestant: Contestant) -> Drawn:
    """A kept ensemble."""
    with np.load(file_of(work, subject, contestant)) as kept:
        return Drawn(**{field.name: kept[field.name] for field in dataclasses.fields(Drawn)})


def compare(
    work: Path, subjects: Iterable[Path], one: Contestant, other: Contestant
) -> dict[str, float]:
    """Distances, each the mean over subjects."""
    found = [distance(load(work, s, one), load(work, s, other)) for s in subjects]
    means = dataclasses.asdict(mean_distance(found))
    return {key: round(value, 6) for key, value in means.items()}


def jobs(forecaster: Forecaster, subjects: list[Path]) -> list[tuple[Path, Contestant]]:
    """Every ensemble to draw, the cheap and most wanted first."""
    planned = [(s, c) for c in (*SHORT[:6], DENSE, OTHER_NOISE) for s in subjects]
    for solver in ("dpmpp_2m", "ddpm"):
        planned += [(s, all_times(forecaster, solver)) for s in subjects[:JUSTIFIED_ON]]
    return planned + [(s, c) for c in SHORT[6:] for s in subjects]


def rows(forecaster: Forecaster, work: Path, subjects: list[Path]) -> list[dict[str, Any]]:
    """The floor, every contestant, and the dense run against all timesteps."""
    about = {"samples": SAMPLES, "weights": forecaster.bundle.manifest.weights_sha256[:12]}

    def entry(one: Contestant, other: Contestant, on: list[Path]) -> dict[str, Any]:
        named = {"case": f"distance to {other.name}", "contestant": one.name}
        return {**named, **compare(work, on, one, other), "slices": len(on), **about}

    table = [entry(one, DENSE, subjects) for one in (OTHER_NOISE, *SHORT)]
    few = subjects[:JUSTIFIED_ON]
    for solver in ("dpmpp_2m", "ddpm"):
        full = all_times(forecaster, solver)
        table += [entry(one, full, few) for one in (DENSE, OTHER_NOISE, DEFAULT)]
    return table


def main(bundle: str, cohort: str, work: str, processes: str = "2") -> None:
    """Draws what is missing, then writes rows."""
    folder = Path(work)
    folder.mkdir(parents=True, exist_ok=True)
    subjects = sorted(Path(cohort).glob("sub-*"))[:PATIENTS]
    forecaster = Forecaster.load(bundle, threads=1)
    wanted = [(s, c, file_of(folder, s, c)) for s, c in jobs(forecaster, subjects)]
    with get_context("spawn").Pool(int(processes), _load, (bundle,)) as pool:
        for done, name in enumerate(pool.imap(_draw, wanted), start=1):
            print(f"{done}/{len(wanted)} {name}", flush=True)  # noqa: T201
    append("quality", rows(forecaster, folder, subjects))


if __name__ == "__main__":
    main(*sys.argv[1:])
