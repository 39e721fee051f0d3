"""A distilled network is sampled as it was trained or not at all, and says what it is."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from pydantic import ValidationError

from tadiff_rt.bundle import MANIFEST, describe_bundle, open_bundle
from tadiff_rt.card import ModelCard, SamplerCard
from tadiff_rt.certify import command, network
from tadiff_rt.certify.distilled import CLOSER, RATIOS, UNTRAINED, recorded_checks
from tadiff_rt.errors import NumericsError, UsageError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.readers import read_case
from tadiff_rt.request import PredictRequest
from tadiff_rt.sampling import SamplingRequest
from tadiff_rt.solvers import make_plan
from tests.rt.analytic import SCHEDULE, lam, level

START = -2.0
FIRST = SCHEDULE.t_of_lam(START)
TIMES = (FIRST, 250.0, 60.5)
TEACHER = "ab" * 32
STD = 0.05
"""Of the Gaussian around the last scan that the exact networks below know."""


def sampler(**fields) -> SamplerCard:
    known = {"times": TIMES, "teacher_sha256": TEACHER, "recipe": "as tested", **fields}
    return SamplerCard(**known)


def card(**fields) -> ModelCard:
    known = {"name": "few", "trained_on": "nothing", "start_lam": START, "sampler": sampler()}
    return ModelCard(**{**known, **fields})


def good(**changes: float) -> dict[str, float]:
    """What `tadiff-train distill` may have measured."""
    closer = {name: 0.01 for name in CLOSER}
    untrained = {UNTRAINED.format(name): 0.02 for name in CLOSER}
    return {**closer, **untrained, **dict.fromkeys(RATIOS, 0.97), **changes}


@pytest.fixture
def few(bundle, tmp_path):
    """The small bundle as if it had been distilled."""
    folder = shutil.copytree(bundle, tmp_path / "few.tadiff")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["card"]["start_lam"] = START
    manifest["card"]["sampler"] = sampler(measured=good()).model_dump(mode="json")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def case(case_folder):
    return read_case(case_folder)


# The card.


def test_a_card_comes_back_as_it_was_written():
    made = card(sampler=sampler(measured={"spread ratio": 0.98}))
    assert ModelCard.model_validate_json(made.model_dump_json()) == made


def test_a_card_of_before_is_of_no_distilled_network():
    old = json.loads(card(sampler=None).model_dump_json())
    del old["sampler"]
    assert ModelCard.model_validate(old).sampler is None


def test_the_bundled_model_is_not_distilled():
    from importlib.resources import as_file, files

    with as_file(files("tadiff_rt") / "data" / "demo.tadiff") as folder:
        demo = open_bundle(folder)
        card = json.loads((folder / MANIFEST).read_text())["card"]
    assert demo.manifest.card.sampler is None
    # Cards from before there were students do not have the field.
    assert ModelCard.model_validate({k: v for k, v in card.items() if k != "sampler"}) == (
        demo.manifest.card
    )
    assert "distilled" not in describe_bundle(demo)


@pytest.mark.parametrize(
    "times",
    [
        (FIRST, FIRST, 60.0),
        (FIRST, 60.0, 250.0),
        (FIRST, 250.0, 0.5),
        (250.0, 60.0),  # starts elsewhere than a forecast
        (1000.0, 250.0),
        (),
        (FIRST, math.nan),
    ],
)
def test_times_that_no_forecast_takes_are_refused(times):
    with pytest.raises(ValidationError):
        card(sampler={**sampler().model_dump(), "times": times})


def test_a_network_that_starts_from_pure_noise_starts_at_the_last_timestep():
    assert card(start_lam=None, sampler=sampler(times=(1000.0, 300.0))).sampler is not None
    with pytest.raises(ValidationError, match="fall from 1000 to 1"):
        card(start_lam=None)


@pytest.mark.parametrize("field", [{"solver": "dpmpp_2m"}, {"teacher_sha256": "ab"}, {"grid": 1}])
def test_other_samplers_are_refused(field):
    with pytest.raises(ValidationError):
        SamplerCard(**{**sampler().model_dump(), **field})


# The request.


def test_without_options_a_distilled_network_runs_as_it_was_trained():
    request = SamplingRequest()
    assert request.findings() == []
    plan = request.plan(SCHEDULE, START, (), sampler())
    np.testing.assert_allclose(plan.t, TIMES, rtol=0)
    assert (plan.solver, plan.grid) == ("ddim", "distilled")
    # DDIM by hand: x' = a' x0 + s' eps, the last step to clean data.
    for i in range(3):
        (a, s), (a2, s2) = level(TIMES[i]), level(TIMES[i + 1]) if i < 2 else (1.0, 0.0)
        assert plan.coef_x[i] == pytest.approx(s2 / s, abs=1e-12)
        assert plan.coef_x0[i] == pytest.approx(a2 - a * s2 / s, abs=1e-12)
    assert not plan.coef_x0_prev.any()
    assert not plan.coef_noise.any()


def test_what_was_trained_may_be_said():
    settled = SamplingRequest(steps="3", solver="ddim", grid="distilled").settled(sampler())
    assert (settled.steps, settled.solver, settled.grid) == (3, "ddim", "distilled")
    assert SamplingRequest().settled(sampler()) == dataclasses.replace(
        SamplingRequest(), steps=3, solver="ddim", grid="distilled"
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps": 20}, "--steps '20'"),
        ({"steps": "4"}, "--steps '4'"),
        ({"solver": "dpmpp_2m"}, "--solver 'dpmpp_2m'"),
        ({"grid": "logsnr"}, "--grid 'logsnr'"),
        ({"grid": "optimised"}, "--grid 'optimised'"),
        ({"round_times": True}, "--round-times"),
        ({"preset": "fast"}, "--fast"),
        ({"steps": 3, "solver": "ddim", "grid": "logsnr"}, "--grid 'logsnr'"),
    ],
)
def test_a_distilled_network_takes_nothing_else(fields, named):
    with pytest.raises(UsageError, match="TD3064") as refused:
        SamplingRequest(**fields).plan(SCHEDULE, START, (), sampler())
    message = refused.value.message
    assert "distilled to 3 evaluations of ddim" in message
    assert message.endswith(f"got {named}")
    assert refused.value.fix.startswith(f"leave out {named.split()[0]}, or use the bundle")
    assert TEACHER[:12] in refused.value.fix


def test_all_that_is_wrong_is_named():
    with pytest.raises(UsageError, match=r"--steps '9', --solver 'ddpm', --grid 'all'"):
        SamplingRequest(steps=9, solver="ddpm", grid="all").settled(sampler())


def test_other_networks_have_no_levels_of_distillation():
    with pytest.raises(UsageError, match="TD3065"):
        SamplingRequest(grid="distilled").plan(SCHEDULE, START)


@pytest.mark.parametrize("start", [None, START])
def test_other_networks_run_as_before(start):
    plain = make_plan(SCHEDULE, "dpmpp_2m", 20, "logsnr", start)
    np.testing.assert_array_equal(SamplingRequest().plan(SCHEDULE, start).table, plain.table)
    own = SamplingRequest(steps=7, solver="unipc_2").plan(SCHEDULE, start)
    made = make_plan(SCHEDULE, "unipc_2", 7, "logsnr", start)
    np.testing.assert_array_equal(own.table, made.table)
    asked = PredictRequest(days=["+9"], treatments=["TMZ"]).settled(None)
    assert (asked.steps, asked.solver, asked.grid) == (20, "dpmpp_2m", "logsnr")


# The bundle.


def test_a_forecast_reports_what_was_run(few, case):
    forecaster = Forecaster.load(few, threads=1)
    made = forecaster.predict(case, day="+9", treatment="TMZ", samples=2, slices="5")
    ran = made.report["sampling"]
    assert (ran["solver"], ran["grid"], ran["steps"]) == ("ddim", "distilled", 3)
    np.testing.assert_allclose(ran["times"], TIMES, atol=1e-4)
    assert ran["network_evaluations"] == 6
    with pytest.raises(UsageError, match="TD3064"):
        forecaster.predict(case, day="+9", treatment="TMZ", samples=2, steps=20, slices="5")


def test_info_says_what_it_is(few):
    said = describe_bundle(open_bundle(few))
    assert "distilled from weights abababababab, 3 evaluations of ddim, for times" in said
    assert "60.5 alone" in said
    assert "recipe: as tested" in said
    assert "spread ratio 0.97" in said


# The certificate.


class Exact:
    """The exact denoiser of N(last scan, STD²), or where it has levels to go to, what a perfect
    student of it returns: the noise estimate whose DDIM step ends on the probability flow."""

    name = description = "exact"
    precision = "fp32"
    runtime = "none"
    batch = 4
    partial = False

    def __init__(self, times=()):
        self.to = dict(zip(np.float32(times).tolist(), (*times, None)[1:], strict=True))

    def on_device(self):
        return None

    def condition(self, t, days, treatments):
        return t.astype(np.float32)[:, None]

    def denoise(self, sources, x, shifts):
        t, guess = float(shifts[0, 0]), sources[:, -3:]
        a, s = level(t)
        k2 = math.hypot(a * STD, s)
        z = (x - a * guess) / k2
        x0 = guess + a * STD**2 / k2 * z
        if t in self.to:
            a2, s2 = (1.0, 0.0) if self.to[t] is None else level(self.to[t])
            # Gaussian quantiles are kept by the flow: z at every level. A run ends at t = 1.
            k_end = math.hypot(a2 * STD, s2)
            if self.to[t] is None:
                k_end = level(1.0)[0] * STD**2 / math.hypot(level(1.0)[0] * STD, level(1.0)[1])
            end = a2 * guess + k_end * z
            x0 = (end - s2 / s * x) / (a2 - s2 / s * a)
        logits = np.repeat(40 * (x0.mean(axis=1, keepdims=True) - 0.4), 4, axis=1)
        return ((x - a * x0) / s).astype(np.float32), logits.astype(np.float32)


@pytest.fixture
def pair(bundle, few, monkeypatch):
    """A teacher that is exact, and a function that makes forecasters of its students."""
    monkeypatch.setattr(network, "DENSE_STEPS", 25)

    def made(folder, backend, **fields):
        opened = open_bundle(folder)
        card = opened.manifest.card.model_copy(update={"x0_range": None, **fields})
        manifest = opened.manifest.model_copy(update={"card": card})
        return Forecaster(dataclasses.replace(opened, manifest=manifest), backend, 0.0)

    teacher = made(bundle, Exact(), start_lam=START)
    own = sampler(teacher_sha256=teacher.bundle.manifest.weights_sha256, measured=good())
    return teacher, lambda backend: made(few, backend, sampler=own)


def certified(student, case, teacher):
    made = command.certify(student, SamplingRequest(), [case], samples=4, teacher=teacher)
    return made, {check.what.split(": ")[-1]: check for check in made.checks}


def test_a_perfect_student_is_certified_against_its_teacher(pair, case):
    teacher, student_of = pair
    made, checks = certified(student_of(Exact(TIMES)), case, teacher)
    assert (made.solver, made.grid, made.steps) == ("ddim", "distilled", 3)
    assert made.passed
    assert checks["spread ratio"].value == pytest.approx(1, abs=0.02)
    command.require(made)


def test_a_student_that_learnt_nothing_fails_in_spread(pair, case):
    """One exact denoiser at so few levels loses spread: that is what distilling is for."""
    teacher, student_of = pair
    made, checks = certified(student_of(Exact()), case, teacher)
    assert checks["spread ratio"].value < 0.8
    with pytest.raises(NumericsError, match="spread ratio") as failed:
        command.require(made)
    assert "distil again" in failed.value.fix


def test_without_its_teacher_only_what_was_recorded_is_judged(pair, case):
    _, student_of = pair
    made = command.certify(student_of(None), SamplingRequest(), [case])
    assert [check.what for check in made.checks] == [
        "levels: error at the network's times",
        "rows: error for a known image",
        *(f"recorded: {name}" for name in (*CLOSER, *RATIOS)),
    ]
    assert made.passed
    assert any("--teacher" in note for note in made.notes)


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"mean image": 0.021}, ["recorded: mean image"]),
        ({"spread": 0.03}, ["recorded: spread"]),
        ({"probability": 0.03}, ["recorded: probability"]),
        ({"image": 0.03}, ["recorded: image"]),
        ({"spread ratio": 0.89}, ["recorded: spread ratio"]),
        ({"spread ratio": 1.11}, ["recorded: spread ratio"]),
        ({"volume spread ratio": 0.5}, ["recorded: volume spread ratio"]),
        ({}, []),
    ],
)
def test_what_was_recorded_is_judged_by_spread_as_well_as_mean(changes, failing):
    checks = recorded_checks(good(**changes))
    assert [check.what for check in checks if not check.passed] == failing


def test_what_was_not_recorded_fails():
    assert not any(check.passed for check in recorded_checks({}))
    without = good()
    del without[UNTRAINED.format("image")]
    failed = [check.what for check in recorded_checks(without) if not check.passed]
    assert failed == ["recorded: image"]


def test_another_teacher_is_refused(pair, bundle, case):
    teacher, student_of = pair
    stranger = dataclasses.replace(
        teacher.bundle,
        manifest=teacher.bundle.manifest.model_copy(update={"weights_sha256": "cd" * 32}),
    )
    student = student_of(Exact(TIMES))
    with pytest.raises(UsageError, match=r"TD3066: .* not from cdcdcdcdcdcd"):
        command.certify(
            student, SamplingRequest(), [case], teacher=Forecaster(stranger, Exact(), 0.0)
        )
    with pytest.raises(UsageError, match=r"TD3066: .* has no teacher"):
        command.certify(teacher, SamplingRequest(), [case], teacher=student)


def test_levels_of_a_distilled_network_are_not_searched(few, case):
    with pytest.raises(UsageError, match="TD3064"):
        command.optimise(Forecaster.load(few, threads=1), SamplingRequest(steps=9), [case])


def test_the_start_is_that_of_the_card():
    assert lam(FIRST) == pytest.approx(START, abs=1e-9)
