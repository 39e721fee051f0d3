"""How an ensemble is drawn, as it is typed: samples, steps, solver, grid, noise.

What the parts mean is said where they are computed: `runner.SampleSize`, `solvers.make_plan`,
`noise.NoiseSource`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tadiff_rt.card import SamplerCard
from tadiff_rt.errors import TadiffError, UsageError
from tadiff_rt.manifest import OptimisedLevels
from tadiff_rt.noise import NoiseSource
from tadiff_rt.presets import DEFAULT, PRESETS
from tadiff_rt.readers.tables import quoted
from tadiff_rt.runner import SampleSize
from tadiff_rt.schedule import GRIDS, NoiseSchedule
from tadiff_rt.solvers import SOLVERS, SolverPlan, make_plan, plan_at

MAX_SAMPLES = 10_000
MAX_STEPS = 100_000
"""Timesteps that any schedule may have; a bundle's own schedule has its own limit."""

MAX_SEED = 2**64 - 1

AUTO = "auto"
OPTIMISED = "optimised"
"""The grid that `tadiff-rt certify --optimise` found for a bundle."""
DISTILLED = "distilled"
"""The levels that a distilled network was trained for."""

DEFAULT_GRID = "logsnr"
"""Of networks that were not distilled."""


DEFAULT_VOLUME_CI = 0.1

_WHOLE = re.compile(r"[0-9]{1,20}", re.ASCII)
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,20})?)(%?)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """How to draw the ensemble; numbers may be text, as typed."""

    preset: str = DEFAULT
    """One of PRESETS: what "auto" stands for in steps and solver."""
    samples: int | str = 5
    """Members of the ensemble, or "auto": until the mean tumour volume is known to `volume_ci`."""
    volume_ci: float | str | None = None
    """With samples "auto": relative half-width of the 90 % interval of the mean, e.g. "10%"."""
    max_samples: int | str = 64
    """With samples "auto": no more than these."""
    steps: int | str = AUTO
    """Network evaluations a sample; "auto" here and in the next two: what the network was
    distilled for, else the defaults above."""
    seed: int | str = 0
    solver: str = AUTO
    grid: str = AUTO
    """One of `schedule.GRIDS`, "optimised", or of a distilled network "distilled"."""
    round_times: bool = False
    """Visit whole timesteps only."""
    coherence: float = 0.0
    """Correlation of the noise of neighbouring slices, 0 to 0.99."""
    latin: bool = False
    """Stratify the initial noise over the samples (Latin hypercube)."""

    def findings(self) -> list[TadiffError]:
        """Every problem of the request alone.

        TD3015 samples, TD3016 steps, TD3017 seed, TD3021 volume_ci, TD3041 grid, TD3042 solver,
        TD3048 coherence, TD3049 latin, TD3068 preset.
        """
        numbers = [
            *findings_of(self.size),
            *findings_of(lambda: self.steps == AUTO or parse_steps(self.steps)),
            *findings_of(lambda: parse_seed(self.seed)),
        ]
        grids, solvers = (*GRIDS, OPTIMISED, DISTILLED, AUTO), (*SOLVERS, AUTO)
        return [
            *numbers,
            *findings_of(lambda: _check_name("grid", self.grid, grids, "TD3041")),
            *findings_of(lambda: _check_name("solver", self.solver, solvers, "TD3042")),
            *findings_of(lambda: _check_name("preset", self.preset, tuple(PRESETS), "TD3068")),
            # The noise is made of the numbers, and would find their faults again.
            *([] if numbers else findings_of(self.noise)),
        ]

    def size(self) -> SampleSize:
        """How many samples; UsageError TD3015 or TD3021."""
        most = _whole(self.max_samples, 1, MAX_SAMPLES, "--max-samples", "TD3015")
        if self.samples != AUTO:
            if self.volume_ci is not None:
                what = "a volume interval is asked for with a fixed number of samples"
                raise UsageError("TD3021", what, where="--volume-ci", fix="pass --samples auto")
            return SampleSize(parse_samples(self.samples))
        share = DEFAULT_VOLUME_CI if self.volume_ci is None else parse_share(self.volume_ci)
        return SampleSize(most, share)

    def noise(self) -> NoiseSource:
        """Where the noise comes from; UsageError TD3017, TD3048 or TD3049."""
        size = self.size()
        if self.latin and (size.volume_ci is not None or size.samples < 2):
            what = "a Latin hypercube needs to know how many samples there are, 2 or more"
            raise UsageError("TD3049", what, where="--latin", fix="pass --samples N")
        seed = parse_seed(self.seed)
        return NoiseSource(seed, self.coherence, size.samples if self.latin else None)

    def settled(self, sampler: SamplerCard | None) -> "SamplingRequest":
        """The same request with steps, solver and grid of a network in place of "auto".

        Raises:
            UsageError: TD3064 the network was distilled for others than asked for, TD3065 it was
                not distilled and the levels of distillation are asked for.
        """
        if sampler is not None:
            return self._settled_as_distilled(sampler)
        if self.grid == DISTILLED:
            what = "the network was not distilled, and has no levels of its own"
            raise UsageError("TD3065", what, where="--grid", fix="leave out --grid")
        preset = PRESETS[self.preset]
        return replace(
            self,
            steps=preset.steps if self.steps == AUTO else self.steps,
            solver=preset.solver if self.solver == AUTO else self.solver,
            grid=DEFAULT_GRID if self.grid == AUTO else self.grid,
        )

    def _settled_as_distilled(self, sampler: SamplerCard) -> "SamplingRequest":
        only = {"steps": len(sampler.times), "solver": sampler.solver, "grid": DISTILLED}
        asked = {name: str(getattr(self, name)) for name in only}
        other = [
            f"--{name} {quoted(asked[name])}"
            for name, value in only.items()
            if asked[name] not in (AUTO, str(value))
        ] + ["--round-times"] * self.round_times
        if self.preset != DEFAULT:
            other.append(f"--{self.preset}")
        if other:
            raise UsageError(
                "TD3064",
                f"the network was distilled to {len(sampler.times)} evaluations of "
                f"{sampler.solver} at levels of its own, and can do nothing else; got "
                f"{', '.join(other)}",
                where=other[0].split()[0],
                fix=f"leave out {', '.join(word.split()[0] for word in other)}, or use the bundle "
                f"of its teacher, weights {sampler.teacher_sha256[:12]}",
            )
        return replace(self, steps=len(sampler.times), solver=sampler.solver, grid=DISTILLED)

    def plan(
        self,
        schedule: NoiseSchedule,
        start_lam: float | None,
        optimised: Sequence[OptimisedLevels] = (),
        sampler: SamplerCard | None = None,
    ) -> SolverPlan:
        """The solver table on a schedule, of a bundle with these optimised levels.

        Args:
            sampler: of a distilled network.

        Raises:
            UsageError: TD3016 more steps than the schedule has, TD3056 no such levels, TD3058
                they are to be rounded, and those of `settled` and `make_plan`.
        """
        settled = self.settled(sampler)
        if sampler is not None:
            return plan_at(schedule, sampler.solver, sampler.times, grid=DISTILLED)
        if settled.grid == OPTIMISED:
            return settled._optimised(schedule, start_lam, optimised)
        return settled.plan_on(schedule, start_lam, settled.grid)

    def _optimised(
        self,
        schedule: NoiseSchedule,
        start_lam: float | None,
        optimised: Sequence[OptimisedLevels],
    ) -> SolverPlan:
        steps = parse_steps(self.steps, schedule.num_train_timesteps)
        if self.round_times:
            what = "optimised levels are fractional times and cannot be rounded"
            raise UsageError("TD3058", what, where="--round-times", fix="leave it out")
        for levels in optimised:
            if (levels.solver, len(levels.times), levels.start_lam) == (
                self.solver,
                steps,
                start_lam,
            ):
                return plan_at(schedule, self.solver, levels.times, grid=OPTIMISED)
        held = ", ".join(f"{o.solver} with {len(o.times)} steps" for o in optimised) or "none"
        raise UsageError(
            "TD3056",
            f"the bundle holds no optimised levels for {self.solver} with {steps} steps; it holds "
            f"{held}",
            where="--grid",
            fix="make them: tadiff-rt certify BUNDLE --optimise "
            f"--solver {self.solver} --steps {steps}",
        )

    def plan_on(self, schedule: NoiseSchedule, start_lam: float | None, grid: str) -> SolverPlan:
        """The solver table on another grid, of a settled request."""
        steps = parse_steps(self.steps, schedule.num_train_timesteps)
        return make_plan(
            schedule, self.solver, steps, grid, start_lam, round_times=self.round_times
        )


def findings_of(parse: Callable[[], object]) -> list[TadiffError]:
    """The usage error that `parse` raises, if it does."""
    try:
        parse()
    except UsageError as error:
        return [error]
    return []


def parse_samples(value: str | int) -> int:
    """The number of samples; UsageError TD3015 outside 1 to MAX_SAMPLES."""
    return _whole(value, 1, MAX_SAMPLES, "--samples", "TD3015")


def parse_steps(value: str | int, num_train_timesteps: int = MAX_STEPS) -> int:
    """The number of solver steps; UsageError TD3016 outside 1 to `num_train_timesteps`."""
    return _whole(value, 1, num_train_timesteps, "--steps", "TD3016")


def parse_seed(value: str | int) -> int:
    """The seed; UsageError TD3017 outside 0 to 2^64 - 1."""
    return _whole(value, 0, MAX_SEED, "--seed", "TD3017")


def parse_share(value: str | float) -> float:
    """0.1 of "10%" or "0.1"; UsageError TD3021 outside 0.001 to 1."""
    match = _SHARE.fullmatch(str(value))
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0.001 <= share <= 1:
        what = f"--volume-ci must be in 0.1% to 100%, got {quoted(str(value))}"
        raise UsageError("TD3021", what, where="--volume-ci", fix="for example 10%")
    return share


def _check_name(option: str, value: str, known: Sequence[str], code: str) -> None:
    if value not in known:
        what = f"--{option} must be one of {', '.join(known)}, got {quoted(value)}"
        raise UsageError(code, what, where=f"--{option}")


def _whole(value: str | int, low: int, high: int, option: str, code: str) -> int:
    # The pattern, not int(): "1_000", " 7" and full-width digits are typing errors.
    text = str(value)
    if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
        what = f"{option} must be a whole number from {low} to {high}, got {quoted(text)}"
        raise UsageError(code, what, where=option)
    return int(text)
