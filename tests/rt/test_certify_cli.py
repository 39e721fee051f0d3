"""`tadiff-rt certify` as it is typed: exit codes, what goes to which stream, and what is kept."""

import dataclasses
import hashlib
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tadiff_rt.bundle import MANIFEST, open_bundle
from tadiff_rt.card import ScheduleConfig
from tadiff_rt.certify import command, network, optimise, path
from tadiff_rt.certify.network import Sample
from tadiff_rt.cli import app
from tadiff_rt.console import run_app
from tadiff_rt.forecast import Forecaster
from tadiff_rt.sampling import SamplingRequest
from tests.conftest import restamp

DATA = Path(__file__).parents[2] / "tadiff_rt" / "data"
DEMO = DATA / "demo.tadiff"
STEPS = 9
"""Of the optimised levels here."""


class Ending(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def codes(self) -> list[str]:
        return re.findall(r"TD\d{4}", self.err)


@pytest.fixture
def tadiff_rt(capsys) -> Iterator[Callable[..., Ending]]:
    """Runs the command in this process, which gets its signals back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*argv: object) -> Ending:
        with pytest.raises(SystemExit) as ended:
            run_app(app, "tadiff-rt", [str(a) for a in argv])
        return Ending(ended.value.code, *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def small(monkeypatch):
    """Dense runs, searches and cases that take seconds."""
    monkeypatch.setattr(network, "DENSE_STEPS", 25)
    monkeypatch.setattr(path, "RECORDED_LEVELS", 13)
    monkeypatch.setattr(optimise, "SWEEPS", 1)
    monkeypatch.setattr(command, "SLICES_OF_A_CASE", 1)


@pytest.fixture
def own(bundle, tmp_path):
    """A copy of the bundle, informed and in buckets of two rows, that a test may write to."""
    folder = shutil.copytree(bundle, tmp_path / "own.tadiff")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["card"]["start_lam"] = -2.0
    (denoiser,) = (a for a in manifest["artefacts"] if a["role"] == "denoiser")
    assert denoiser["dynamic_batch"]
    denoiser["batch"] = 2
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def rows(table):
    """What -> passed, of a certificate as text."""
    lines = [line for line in table.splitlines() if line[:4] in ("ok  ", "FAIL")]
    return {re.split(r"  +", line[6:])[0]: line.startswith("ok") for line in lines}


# Without the network.


def test_the_default_passes(bundle, tadiff_rt):
    ending = tadiff_rt("certify", bundle, "--analytic")
    assert (ending.code, ending.err) == (0, "")
    assert ending.out.startswith("dpmpp_2m, 20 steps, grid logsnr\n")
    assert ending.out.endswith("\nthe plan passes\n")
    assert "note: distance to a dense run not measured: no case" in ending.out
    found = rows(ending.out)
    assert len(found) == 1 + 4 * 2 + 4
    assert next(iter(found)) == "order of convergence"
    assert all(found.values())


def test_a_plan_that_loses_spread_fails_by_name(bundle, tadiff_rt):
    ending = tadiff_rt("certify", bundle, "--analytic", "--grid", "trailing")
    assert (ending.code, ending.codes) == (6, ["TD6005"])
    found = rows(ending.out)
    assert not found["spread, Gaussian of std 0.05: sampled / true"]
    assert found["bias, Gaussian of std 0.05"]
    assert ending.out.endswith("\nthe plan FAILS\n")
    assert "dpmpp_2m with 20 steps on grid trailing fails" in ending.err
    assert "spread, Gaussian of std 0.05: sampled / true 0.2768, demanded 0.95" in ending.err
    assert "mask: error of a probability 0.8177, demanded at most 0.05" in ending.err
    assert "bias" not in ending.err
    assert "fix:" in ending.err
    for what, passed in found.items():
        assert (what in ending.err) is not passed


@pytest.mark.parametrize("grid", ["logsnr", "trailing"])
def test_json_says_the_same(grid, bundle, tadiff_rt):
    line = ("certify", bundle, "--analytic", "--grid", grid)
    table, ending = tadiff_rt(*line), tadiff_rt(*line, "--json", "--errors=json")
    found = json.loads(ending.out)
    assert (found["solver"], found["grid"], found["steps"]) == ("dpmpp_2m", grid, 20)
    assert {check["what"]: check["passed"] for check in found["checks"]} == rows(table.out)
    assert found["passed"] is (grid == "logsnr")
    assert ending.code == table.code == (0 if found["passed"] else 6)
    errors = [json.loads(line) for line in ending.err.splitlines()]
    assert [(e["code"], e["exit"]) for e in errors] == ([] if found["passed"] else [("TD6005", 6)])


@pytest.mark.parametrize(
    ("line", "code", "failing"),
    [
        ("--steps 10", 0, ""),
        ("--steps 10 --round-times", 0, ""),
        ("--steps 9", 6, "spread, Gaussian of std 0.05"),
        ("--steps 1", 6, "mask"),
        ("--solver ddim", 6, "spread, Gaussian of std 0.5"),
        ("--solver unipc_2 --steps 10", 0, ""),
        ("--solver ddpm", 6, "two modes"),
        ("--grid all --steps 1000", 0, ""),
    ],
)
def test_settings_that_pass_and_that_do_not(line, code, failing, bundle, tadiff_rt):
    ending = tadiff_rt("certify", bundle, "--analytic", *line.split())
    assert (ending.code, ending.codes) == (code, ["TD6005"] if code else [])
    assert failing in ending.err
    assert ("order of convergence" in rows(ending.out)) is ("--grid all" not in line)


def test_analytic_runs_no_network_for_any_case(bundle, case_folder, monkeypatch, tadiff_rt):
    monkeypatch.setattr(Forecaster, "predict", None)
    ending = tadiff_rt("certify", bundle, "--analytic", "--case", case_folder)
    assert (ending.code, len(rows(ending.out))) == (0, 13)


def test_the_bundled_model_passes_and_is_not_touched(tadiff_rt):
    before = hashes(DEMO)
    for steps in (10, 20):
        ending = tadiff_rt("certify", DEMO, "--analytic", "--steps", steps)
        assert (ending.code, ending.err) == (0, "")
    assert hashes(DEMO) == before


def test_an_informed_bundle_is_certified_from_its_own_start(bundle, own, tadiff_rt):
    """Eight steps from half log-SNR -2 keep what eight from pure noise lose."""
    assert tadiff_rt("certify", own, "--analytic", "--steps", 8).code == 0
    assert tadiff_rt("certify", bundle, "--analytic", "--steps", 8).code == 6


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("--solver heun", ["TD3042"]),
        ("--grid uniform", ["TD3041"]),
        ("--solver heun --grid uniform --steps 0", ["TD3016", "TD3041", "TD3042"]),
        ("--steps 1001", ["TD3016"]),
        ("--steps ten", ["TD3016"]),
        ("--seed -1", ["TD3017"]),
        ("--grid optimised", ["TD3056"]),
        ("--grid all", ["TD3010"]),
        ("--samples 1", ["TD3000"]),
        ("--samples 65", ["TD3000"]),
        ("--nonsense", ["TD3000"]),
        ("--optimise --steps 4", ["TD3016"]),
        ("--optimise --steps 20", ["TD3016"]),
        ("--optimise --steps 8 --analytic", ["TD3058"]),
        ("--optimise --steps 8 --round-times", ["TD3058"]),
        ("--optimise --steps 8 --grid trailing", ["TD3058"]),
        ("--optimise --steps 8 --grid optimised", ["TD3058"]),
        ("--optimise --steps 8 --solver ddpm", ["TD3058"]),
        ("--optimise --steps 8 --grid logsnr", ["TD3057"]),
        ("--optimise --steps 8 --samples 1", ["TD3000"]),
    ],
)
def test_what_cannot_be_asked(line, codes, bundle, tadiff_rt):
    before = hashes(bundle)
    analytic = () if "--optimise" in line else ("--analytic",)
    ending = tadiff_rt("certify", bundle, *analytic, *line.split())
    assert (ending.code, sorted(ending.codes), ending.out) == (2, codes, "")
    assert hashes(bundle) == before


def test_bundles_and_cases_that_are_not_there(bundle, tmp_path, tadiff_rt):
    missing = tadiff_rt("certify", tmp_path / "none.tadiff", "--analytic")
    assert (missing.code, missing.codes, missing.out) == (5, ["TD5002"], "")
    address = tadiff_rt("certify", "https://example.org/a.tadiff", "--analytic")
    assert (address.code, address.codes) == (2, ["TD3053"])
    case = tadiff_rt("certify", bundle, "--case", tmp_path / "sub-00")
    assert (case.code, case.out) == (3, "")


def test_a_damaged_bundle_is_not_certified(own, tadiff_rt):
    with open(own / "conditioner.onnx", "r+b") as file:
        file.seek(100)
        file.write(b"\0\0\0\0")
    ending = tadiff_rt("certify", own, "--analytic")
    assert (ending.code, ending.codes, ending.out) == (5, ["TD5001"], "")


def test_a_schedule_too_short_for_an_order_is_certified_without(own, tadiff_rt):
    manifest = json.loads((own / MANIFEST).read_text())
    manifest["card"]["schedule"] = {
        "num_train_timesteps": 200,
        "beta_start": 1e-4,
        "beta_end": 0.1,
    }
    (own / MANIFEST).write_text(json.dumps(manifest))
    restamp(own)
    ending = tadiff_rt("certify", own, "--analytic")
    assert (ending.code, ending.err) == (0, "")
    assert "note: order not measured: the schedule has fewer than 257 steps" in ending.out
    assert len(rows(ending.out)) == 12


@pytest.mark.parametrize(("timesteps", "measured"), [(256, False), (257, True)])
def test_the_shortest_schedule_with_an_order(timesteps, measured, bundle):
    schedule = ScheduleConfig(num_train_timesteps=timesteps, beta_start=1e-4, beta_end=0.08)
    made = command.certify(fitting(bundle, schedule=schedule), SamplingRequest(), [])
    assert (made.checks[0].what == "order of convergence") is measured
    assert any("order not measured" in note for note in made.notes) is not measured
    assert made.passed


# With the network.


def test_a_case_is_measured_on(own, case_folder, small, tadiff_rt):
    line = ("certify", own, "--case", case_folder, "--samples", 2, "--threads", 1)
    ending = tadiff_rt(*line)
    assert ending.code == 0
    found = rows(ending.out)
    assert len(found) == 13 + 5
    network_rows = [what for what in found if what.startswith("network, 2 samples, 1 slices: ")]
    assert len(network_rows) == 5
    assert "not measured" not in ending.out
    assert ending.err.splitlines()[-1].startswith("certify: 100 %")
    quiet = tadiff_rt(*line, "--quiet", "--json")
    assert (quiet.code, quiet.err) == (0, "")
    checks = {check["what"]: check["value"] for check in json.loads(quiet.out)["checks"]}
    assert checks.keys() == found.keys()
    assert 0 < checks["network, 2 samples, 1 slices: mean image"] < 0.1
    again = tadiff_rt(*line, "--quiet", "--json", "--seed", 5)
    assert json.loads(again.out)["checks"][-5] != json.loads(quiet.out)["checks"][-5]


def test_a_plan_farther_than_other_noise_fails_by_name(
    own, case_folder, small, monkeypatch, tadiff_rt
):
    """Twenty sound steps, whose measured distances change places with those of other noise."""
    measure = network.certify_network

    def exchanged(*asked, **how):
        found = measure(*asked, **how)
        return dataclasses.replace(found, plan=found.floor, floor=found.plan)

    monkeypatch.setattr(command, "certify_network", exchanged)
    ending = tadiff_rt("certify", own, "--case", case_folder, "--samples", 2, "-q")
    assert (ending.code, ending.codes) == (6, ["TD6005"])
    assert not rows(ending.out)["network, 2 samples, 1 slices: mean image"]
    assert "network, 2 samples, 1 slices: mean image" in ending.err
    assert "(other noise)" in ending.err
    assert "Gaussian" not in ending.err


def test_a_bundle_that_does_not_fit_the_bundled_case_is_certified_without(bundle, tadiff_rt):
    ending = tadiff_rt("certify", bundle)
    assert ending.code == 0
    assert "not measured: no case; pass --case" in ending.out
    assert "bundled simulated case" not in ending.err


def test_levels_are_not_searched_without_a_case(bundle, tadiff_rt):
    """The bundled case, of 96 x 96 voxels, does not fit in 32 x 32."""
    before = hashes(bundle)
    ending = tadiff_rt("certify", bundle, "--optimise", "--steps", 8)
    assert (ending.code, ending.codes, ending.out) == (2, ["TD3057"], "")
    assert "--case" in ending.err
    assert hashes(bundle) == before


def fitting(bundle, **card):
    """A forecaster that takes the bundled case; its network is never run."""
    opened = open_bundle(bundle)
    data = open_bundle(DEMO).manifest.card.data
    card = opened.manifest.card.model_copy(update={"data": data, **card})
    manifest = opened.manifest.model_copy(update={"card": card})
    return Forecaster(type(opened)(opened.path, manifest, opened.manifest_sha256), None, 0.0)


def test_the_bundled_case_is_the_default_where_it_fits(bundle, case_folder):
    heard = []
    (case,) = command.read_cases(fitting(bundle), [], heard.append)
    assert case.name == "sub-demo"
    assert ["simulated case" in message for message in heard] == [True]
    (given,) = command.read_cases(fitting(bundle), [case_folder], heard.append)
    assert (given.name, len(heard)) == ("sub-17", 1)
    two = command.read_cases(fitting(bundle), [case_folder, case_folder], heard.append)
    assert len(two) == 2


def test_the_bundled_case_does_not_fit_a_network_for_other_treatments(bundle):
    """Its sessions are under CRT and TMZ; a network trained on one of them refuses it."""
    assert command.read_cases(fitting(bundle, treatments={"TMZ": 1}), [], lambda said: None) == []


@pytest.fixture
def searched(own, case_folder, small, monkeypatch):
    """The command line of a search that cannot lose: it measures on what it searched."""

    def split(forecaster, cases):
        sample = (Sample(cases[0], "5"),)
        return sample, sample

    monkeypatch.setattr(command, "_split", split)
    whole = command.Judge  # with one seed throughout
    monkeypatch.setattr(
        command, "Judge", lambda judged, on, size, seed, solver: whole(judged, on, size, 0, solver)
    )
    given = ("--case", case_folder, "--samples", 2, "--threads", 1)
    return ("certify", own, "--optimise", "--steps", STEPS, *given)


@pytest.mark.slow
def test_optimised_levels_are_kept_and_used(searched, own, case_folder, tmp_path, tadiff_rt):
    before = hashes(own)
    ending = tadiff_rt(*searched)
    assert ending.code == 0
    assert ending.out.startswith("times: ")
    assert f"tadiff-rt predict --grid optimised --steps {STEPS}" in ending.out
    assert "searching" in ending.err
    (levels,) = open_bundle(own).manifest.optimised
    assert len(levels.times) == STEPS
    assert ", 2 samples a slice" in levels.searched_on
    assert ending.out.splitlines()[0] == "times: " + ", ".join(f"{t:.1f}" for t in levels.times)
    for name, value in levels.distance.items():
        assert f"  {name}: {value:.4f}" in ending.out
    after = hashes(own)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {MANIFEST}

    out = tmp_path / "forecast"
    request = f"--day +90 --treatment TMZ --samples 2 --slices 5 --grid optimised --steps {STEPS}"
    inputs = ("--engine", own, "--case", case_folder, "-o", out, "-q")
    assert tadiff_rt("predict", *inputs, *request.split()).code == 0
    (entry,) = json.loads((out / "forecast.json").read_text())["scenarios"].values()
    sampling = entry["sampling"]
    assert (sampling["grid"], sampling["steps"]) == ("optimised", STEPS)
    assert sampling["times"] == [round(t, 4) for t in levels.times]

    certified = tadiff_rt("certify", own, "--analytic", "--grid", "optimised", "--steps", STEPS)
    assert certified.out.startswith(f"dpmpp_2m, {STEPS} steps, grid optimised\n")
    found = rows(certified.out)
    assert "order of convergence" not in found
    assert all(passed for what, passed in found.items() if what.startswith("spread"))
    rounded = tadiff_rt(
        "certify", own, "--analytic", "--grid=optimised", "--steps", STEPS, "--round-times"
    )
    assert (rounded.code, rounded.codes) == (2, ["TD3058"])
    other = tadiff_rt("certify", own, "--analytic", "--grid", "optimised", "--steps", STEPS + 1)
    assert (other.code, other.codes) == (2, ["TD3056"])
    assert f"it holds dpmpp_2m with {STEPS} steps" in other.err


def test_nothing_is_kept_where_nothing_was_gained(searched, own, monkeypatch, tadiff_rt):
    plan = SamplingRequest(steps=STEPS).plan(open_bundle(own).manifest.card.schedule.build(), -2.0)
    monkeypatch.setattr(command, "search", lambda *judged, **how: (plan.t.tolist(), 0.1))
    before = hashes(own)
    ending = tadiff_rt(*searched, "-q")
    assert (ending.code, ending.codes, ending.out) == (6, ["TD6005"], "")
    assert "no better levels were found" in ending.err
    assert hashes(own) == before


def told(monkeypatch, tadiff_rt, *argv):
    """What `certify --optimise` asks for."""
    asked = []

    def stop(forecaster, request, cases, **how):
        asked.append((request, how))
        raise SystemExit(0)

    monkeypatch.setattr(command, "optimise", stop)
    monkeypatch.setattr(command, "read_cases", lambda *asked: [])
    tadiff_rt("certify", *argv, "--optimise")
    return asked[0]


def test_a_search_is_for_the_solver_steps_and_seed_that_are_asked_for(
    bundle, monkeypatch, tadiff_rt
):
    line = ("--solver", "unipc_2", "--steps", 7, "--seed", 12)
    request, _ = told(monkeypatch, tadiff_rt, bundle, *line)
    assert (request.solver, request.steps, request.seed) == ("unipc_2", "7", "12")


def test_a_search_takes_the_samples_that_are_asked_for(bundle, monkeypatch, tadiff_rt):
    _, how = told(monkeypatch, tadiff_rt, bundle, "--steps", 8, "--samples", 3)
    assert how["samples"] == 3
    _, how = told(monkeypatch, tadiff_rt, bundle, "--steps", 8)
    assert how["samples"] == 4


@pytest.mark.parametrize(("line", "samples"), [((), 8), (("--samples", 3), 3)])
def test_a_certificate_takes_the_samples_that_are_asked_for(
    line, samples, bundle, monkeypatch, tadiff_rt
):
    asked = []

    def stop(*positional, **how):
        asked.append(how["samples"])
        raise SystemExit(0)

    monkeypatch.setattr(command, "certify", stop)
    tadiff_rt("certify", bundle, "--analytic", *line)
    assert asked == [samples]


def test_a_search_answers_in_json(searched, own, monkeypatch, tadiff_rt):
    schedule = open_bundle(own).manifest.card.schedule.build()
    levels = optimise.OptimisedLevels(
        solver="dpmpp_2m",
        start_lam=-2.0,
        times=schedule.levels(STEPS, start_lam=-2.0).t,
        distance={"these levels": 0.1},
        spread={"0.05": 1.0},
        searched_on="nothing",
    )
    monkeypatch.setattr(command, "optimise", lambda *asked, **how: levels)
    ending = tadiff_rt(*searched, "--json")
    assert ending.code == 0
    assert len(json.loads(ending.out)["times"]) == STEPS


@pytest.mark.parametrize("option", ["--round-times", "--grid=trailing", "--analytic"])
def test_a_search_refuses_what_contradicts_it(option, own, monkeypatch, tadiff_rt):
    """Levels that are found are fractional, of no named grid, and found on images."""
    monkeypatch.setattr(command, "read_cases", None)
    before, name = hashes(own), option.split("=")[0]
    ending = tadiff_rt("certify", own, "--optimise", "--steps", 8, option)
    assert (ending.code, ending.codes, ending.out) == (2, ["TD3058"], "")
    assert f"{name} contradicts it" in ending.err
    assert f"leave out {name}" in ending.err
    assert hashes(own) == before
