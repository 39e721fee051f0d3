"""What `tadiff-rt certify` does, callable from Python."""

from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from tadiff_rt.batches import Progress
from tadiff_rt.bundle import MANIFEST, Bundle, open_bundle
from tadiff_rt.case import Case
from tadiff_rt.certify.analytic import ORDER_STEPS
from tadiff_rt.certify.distilled import NOTE, distilled_checks, require_teacher
from tadiff_rt.certify.network import Sample, certify_network
from tadiff_rt.certify.optimise import Judge, search, spread_of
from tadiff_rt.certify.path import POSTERIOR_STDS, gram_of_trajectory, shortest_path
from tadiff_rt.certify.report import (
    Certificate,
    Check,
    analytic_checks,
    network_checks,
    order_check,
)
from tadiff_rt.commands import DEMO_CASE
from tadiff_rt.errors import InputDataError, NumericsError, UsageError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.manifest import OptimisedLevels
from tadiff_rt.preprocess import prepare
from tadiff_rt.readers import read_case
from tadiff_rt.request import NUM_SOURCES, select_sources
from tadiff_rt.sampling import AUTO, DISTILLED, OPTIMISED, SamplingRequest
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.slices import choose_slices, parse_slices
from tadiff_rt.solvers import STOCHASTIC, SolverPlan, plan_at
from tadiff_rt.write import write_json

Say = Callable[[str], None]

FEWEST, MOST = 5, 12
"""Steps that levels are optimised for."""

SLICES_OF_A_CASE = 4
"""On which distances are measured, spread over the slices with tumour."""


def certify(
    forecaster: Forecaster,
    request: SamplingRequest,
    cases: Sequence[Case],
    *,
    samples: int = 8,
    progress: Progress | None = None,
    teacher: Forecaster | None = None,
) -> Certificate:
    """The certificate of the plan that `request` would run on a bundle.

    Args:
        teacher: of a distilled network; without it the distance is not measured again.
        cases: on the first of which the distance from a dense run is measured; none for the
            analytic part alone.
        samples: of each of the three ensembles of that measurement.
    """
    manifest = forecaster.bundle.manifest
    schedule, start_lam = manifest.card.schedule.build(), manifest.card.start_lam
    sampler = manifest.card.sampler
    if teacher is not None:
        require_teacher(forecaster, teacher)
    request = request.settled(sampler)
    plan = request.plan(schedule, start_lam, manifest.optimised, sampler)
    if sampler is None:
        checks, notes = _exact_checks(request, plan, schedule, informed=start_lam is not None)
    else:
        checks, notes = list(distilled_checks(sampler, plan, schedule)), [NOTE]
    if sampler is not None and teacher is None:
        notes.append("distance to the teacher not measured again: pass --teacher")
    elif cases:
        slices = _text(tumour_slices(forecaster, cases[0])[:SLICES_OF_A_CASE])
        checks += network_checks(
            certify_network(
                forecaster,
                cases[0],
                request,
                samples=samples,
                slices=slices,
                progress=progress,
                teacher=teacher,
            )
        )
    else:
        notes.append("distance to a dense run not measured: no case; pass --case")
    return Certificate(request.solver, request.grid, plan.num_steps, tuple(checks), tuple(notes))


def _exact_checks(
    request: SamplingRequest, plan: SolverPlan, schedule: NoiseSchedule, *, informed: bool
) -> tuple[list[Check], list[str]]:
    """What the plan does to exact denoisers, and notes."""
    checks: list[Check] = []
    notes: list[str] = []
    if schedule.num_train_timesteps < max(ORDER_STEPS):
        notes.append(f"order not measured: the schedule has fewer than {max(ORDER_STEPS)} steps")
    elif request.grid not in (OPTIMISED, "all"):
        checks.append(order_check(schedule, request.solver, request.grid))
    checks += analytic_checks(plan, schedule, informed=informed)
    return checks, notes


def require(certificate: Certificate) -> None:
    """Raises NumericsError TD6005 for a plan that fails, naming every failed check."""
    failed = [check for check in certificate.checks if not check.passed]
    if failed:
        named = "; ".join(f"{c.what} {c.value:.4g}, demanded {c.demanded}" for c in failed)
        raise NumericsError(
            "TD6005",
            f"{certificate.solver} with {certificate.steps} steps on grid {certificate.grid} "
            f"fails: {named}",
            fix="use its teacher, or distil again: for longer, or to more evaluations"
            if certificate.grid == DISTILLED
            else "use more steps or the grid logsnr; the default is dpmpp_2m, 20 steps, logsnr",
        )


def check_search(request: SamplingRequest, *, analytic: bool) -> None:
    """UsageError TD3058 for options of a search that contradict it."""
    options = {
        "--grid": request.grid not in (AUTO, "logsnr"),
        "--round-times": request.round_times,
        "--analytic": analytic,
    }
    for option, given in options.items():
        if given:
            what = f"--optimise finds levels of its own on images; {option} contradicts it"
            raise UsageError("TD3058", what, where=option, fix=f"leave out {option}")
    if request.solver in STOCHASTIC:
        what = f"levels are found by following a dense run, and {request.solver} draws noise"
        raise UsageError("TD3058", what, where="--solver", fix="use dpmpp_2m or unipc_2")


def optimise(
    forecaster: Forecaster,
    request: SamplingRequest,
    cases: Sequence[Case],
    *,
    samples: int = 4,
    say: Say = lambda message: None,
) -> OptimisedLevels:
    """Searches levels for the solver and steps of `request`, and measures them on other images.

    Args:
        cases: the search sees every second one; with a single case every second of its slices.
        samples: of each ensemble.

    Raises:
        UsageError: the steps are not in FEWEST to MOST (TD3016), or there is no case (TD3057).
        NumericsError: nothing was found that passes every analytic check and comes nearer to the
            dense run than as many levels even in log-SNR (TD6005).
    """
    card = forecaster.bundle.manifest.card
    if card.sampler is not None:
        what = "levels of a distilled network are those that it was trained for"
        raise UsageError("TD3064", what, where="--optimise", fix="optimise those of its teacher")
    request = request.settled(None)
    steps, seed = int(request.steps), int(request.seed)
    if not FEWEST <= steps <= MOST:
        what = f"levels are optimised for {FEWEST} to {MOST} steps, got {steps}"
        raise UsageError("TD3016", what, where="--steps", fix="for example --steps 8")
    schedule, informed = card.schedule.build(), card.start_lam is not None
    seen, unseen = _split(forecaster, cases)
    say("recording a dense run")
    gram, dense = gram_of_trajectory(forecaster, seen, samples, seed)
    even = request.plan_on(schedule, card.start_lam, "logsnr").t.tolist()
    paths = [shortest_path(gram, dense, steps, std) for std in POSTERIOR_STDS]
    candidates = [even, *(dense.t[path].tolist() for path in paths)]
    say("searching")
    judge = Judge(forecaster, seen, samples, seed, request.solver)
    times, _ = search(judge, schedule, candidates, informed=informed, say=say)
    say("measuring on images that the search did not see")
    # Other noise than the search had: slices of equal number share theirs across cases.
    test = Judge(forecaster, unseen, samples, seed ^ 2, request.solver)
    found = {
        "these levels": test.score(test.of_times(times)),
        "as many, even in log-SNR": test.score(test.of_grid(steps)),
        "20, even in log-SNR": test.score(test.of_grid(min(20, schedule.num_train_timesteps))),
        "other noise": test.score(test.floor),
    }
    plan = plan_at(schedule, request.solver, times)
    checks = analytic_checks(plan, schedule, informed=informed)
    _refuse_if_no_gain(found, checks)
    spread = spread_of(plan, informed=informed)
    return OptimisedLevels(
        solver=request.solver,
        start_lam=card.start_lam,
        times=tuple(times),
        distance={name: round(value, 4) for name, value in found.items()},
        spread={name: round(value, 4) for name, value in spread.items()},
        searched_on=f"{len(seen)} of {len(cases)} cases, {samples} samples a slice; distances on "
        + ("other cases" if len(cases) > 1 else "other slices"),
    )


def _refuse_if_no_gain(found: dict[str, float], checks: Sequence[Check]) -> None:
    even, these = found["as many, even in log-SNR"], found["these levels"]
    failed = [f"{check.what} {check.value:.4g}" for check in checks if not check.passed]
    if failed or not these < even:  # so that NaN is refused
        raise NumericsError(
            "TD6005",
            f"no better levels were found: distance {these:.4f} against {even:.4f} of levels even "
            f"in log-SNR{'; failed: ' * bool(failed)}{'; '.join(failed)}",
            fix="use the grid logsnr, or search with more --case",
        )


def store(bundle: Bundle, levels: OptimisedLevels) -> None:
    """Writes `levels` into the manifest of a bundle, in place of any for the same run.

    Raises:
        EngineError: the bundle has gone, or is damaged.
        OutputError, ResourceError: the manifest cannot be written; the old one is still there.
    """
    # Read again: another search may have stored its levels since this one began.
    manifest = open_bundle(bundle.path).manifest
    kept = tuple(
        old
        for old in manifest.optimised
        if (old.solver, len(old.times), old.start_lam)
        != (levels.solver, len(levels.times), levels.start_lam)
    )
    manifest = manifest.model_copy(update={"optimised": (*kept, levels)})
    write_json(bundle.path / MANIFEST, manifest.model_dump(mode="json"))


def read_cases(forecaster: Forecaster, folders: Sequence[Path], say: Say) -> list[Case]:
    """The cases in `folders`; without any, the bundled one where the bundle can take it."""
    if folders:
        return [read_case(folder, last=NUM_SOURCES) for folder in folders]
    with as_file(files("tadiff_rt") / "data" / DEMO_CASE) as folder:
        if not folder.is_dir():
            return []
        case = read_case(folder, last=NUM_SOURCES)
        card = forecaster.bundle.manifest.card
        try:
            prepare(select_sources(case)[0], card.data)
        except InputDataError:
            return []
        if not {session.treatment for session in case.sessions} <= card.treatments.keys():
            return []
    say("measuring on the bundled simulated case; pass --case for your own")
    return [case]


def tumour_slices(forecaster: Forecaster, case: Case) -> list[int]:
    """Slices of a case for measurements, spread over the tumour, or over the brain without one.

    The first 2·SLICES_OF_A_CASE at even distances; a first half is as spread out as the whole.
    """
    prepared = prepare(select_sources(case)[0], forecaster.bundle.manifest.card.data)
    held = None if prepared.masks is None else prepared.masks.any(axis=(0, 2, 3))
    kind = "brain" if held is None or not held.any() else "tumour"
    chosen = choose_slices(prepared, parse_slices(kind))
    wanted = 2 * SLICES_OF_A_CASE
    if len(chosen) > wanted:  # not the ends of the tumour, where there is little of it
        places = np.linspace(0, len(chosen) - 1, wanted + 2)[1:-1]
        chosen = tuple(chosen[int(place)] for place in places)
    spread = sorted(chosen)
    return [*spread[::2], *spread[1::2]]


def _split(
    forecaster: Forecaster, cases: Sequence[Case]
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """What the search sees, and what it does not."""
    if not cases:
        what = "levels are searched on images, and there is no case"
        raise UsageError("TD3057", what, where="--case", fix="pass --case sub-XX")
    slices = [tumour_slices(forecaster, case) for case in cases]
    if len(cases) == 1:
        if len(slices[0]) < 2:
            what = "a search needs two slices, and the case has one to measure on"
            raise UsageError("TD3057", what, where="--case", fix="pass another --case sub-XX")
        half = len(slices[0]) // 2
        parts = (slices[0][:half], slices[0][half:])
        seen, unseen = ((Sample(cases[0], _text(part)),) for part in parts)
        return seen, unseen
    samples = [
        Sample(case, _text(at[:SLICES_OF_A_CASE])) for case, at in zip(cases, slices, strict=True)
    ]
    return tuple(samples[::2]), tuple(samples[1::2])


def _text(slices: Sequence[int]) -> str:
    return ",".join(map(str, slices))
