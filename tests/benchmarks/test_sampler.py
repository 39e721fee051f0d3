"""Ensembles against forecasts, diffusers' scheduler against plans, rows against arithmetic."""

import numpy as np
import pytest

import benchmarks.sampler as sampler
from benchmarks.diffusers_run import nearest_ours, their_default
from benchmarks.floor import Roofline
from benchmarks.harness import load, save
from benchmarks.network_cost import Layer, layers
from benchmarks.plan_quality import STDS
from benchmarks.sampler import CASE, Contestant, contestants, rows
from benchmarks.slice_ensembles import Drawing, Slice
from tadiff_rt import Forecaster, read_case
from tadiff_rt.certify import analytic
from tadiff_rt.certify.network import HORIZON, distance, drawn
from tadiff_rt.presets import PRESETS
from tadiff_rt.solvers import make_plan, plan_at
from tadiff_train.network import NetworkConfig
from tests.rt.analytic import SCHEDULE

AT = 5
RATES = Roofline(1e9, {"fp32": 1e10})
START = -2.25


@pytest.fixture(scope="module")
def forecaster(bundle) -> Forecaster:
    return Forecaster.load(bundle, "onnxruntime", threads=1)


@pytest.fixture(scope="module")
def case(case_folder):
    return read_case(case_folder)


@pytest.fixture
def where(forecaster, case) -> Slice:
    return Slice(forecaster, case, AT)


@pytest.fixture(params=["from noise", "from a guess"])
def start(request, where) -> Slice:
    """The slice, with runs that begin in either way."""
    if request.param == "from a guess":
        where.card = where.card.model_copy(update={"start_lam": START})
    return where


def forecast_of(forecaster, case, solver: str, steps: int, samples: int, seed: int = 0):
    return drawn(
        forecaster.predict(
            case,
            day=HORIZON,
            treatment=case.sessions[-1].treatment,
            samples=samples,
            seed=seed,
            steps=steps,
            solver=solver,
            slices=str(AT),
            extrapolate=True,
        )
    )


@pytest.mark.parametrize("solver", ["dpmpp_2m", "sde_dpmpp_2m"])
def test_ensembles_are_those_of_a_forecast(solver, where, forecaster, case):
    drawing = Drawing(where.drawn_by(where.plan(solver, 3), seed=4), where)
    for _ in range(3):
        drawing()
    ours, whole = drawing.drawn(), forecast_of(forecaster, case, solver, 3, 3, seed=4)
    assert whole.brain.any() and whole.voxels.any()  # noqa: PT018
    for name in ("mean", "std", "probability", "brain"):
        one = getattr(ours, name)
        np.testing.assert_array_equal(one, getattr(whole, name).reshape(one.shape))
    assert ours.voxels.tolist() == whole.voxels.tolist()


@pytest.mark.parametrize("clip", [None, (0.0, 0.4)])
def test_diffusers_at_our_times_draws_our_samples(clip, start):
    """Image and fused logits, up to float32."""
    start.card = start.card.model_copy(update={"x0_range": clip})
    lam = start.card.start_lam
    plan = make_plan(start.schedule, "dpmpp_2m", 16, start_lam=lam, round_times=True)
    run = nearest_ours(start.schedule, 16, lam)
    np.testing.assert_array_equal(run.times(), plan.t)
    ours = start.drawn_by(plan)
    theirs, free = (start.drawn_by_diffusers(run, clipped=clipped) for clipped in (True, False))
    for sample in (0, 1):
        image, logits = ours(sample)
        their_image, their_logits = theirs(sample)
        assert np.abs(logits).max() > 0.1
        assert image.max() > 0.3
        np.testing.assert_allclose(their_image, image, atol=2e-3 * np.abs(image).max())
        np.testing.assert_allclose(their_logits, logits, atol=2e-3 * np.abs(logits).max())
        same = np.allclose(free(sample)[0], image, atol=2e-3 * np.abs(image).max())
        assert same is (clip is None), "unclipped is another run where there is a range"


@pytest.mark.parametrize("start_lam", [None, START])
@pytest.mark.parametrize("made", [their_default, nearest_ours])
def test_spread_of_diffusers_is_that_of_a_plan_at_its_times(made, start_lam):
    """Their scheduler with the ideal denoiser against our second-order rows at the same times."""
    run, informed = made(SCHEDULE, 20, start_lam), start_lam is not None
    plan = plan_at(SCHEDULE, "dpmpp_2m", run.times())
    runs = [analytic.gaussian_run(plan, std, informed=informed) for std in STDS]
    quality = run.quality(SCHEDULE, informed=informed)
    ratios = sorted(run.spread_ratio for run in runs)
    assert quality["spread"] == pytest.approx([ratios[0], ratios[-1]], abs=2e-4)
    assert quality["bias"] == pytest.approx(max(abs(run.bias) for run in runs), abs=2e-5)
    assert quality["keeps_spread"] is (made is nearest_ours)


def test_their_default_as_it_comes():
    """The times and the loss of spread that the tests of the solvers know."""
    run = their_default(SCHEDULE, 20)
    np.testing.assert_array_equal(run.times(), np.linspace(0, 999, 21).round()[:0:-1] + 1)
    assert run.quality(SCHEDULE)["spread"] == pytest.approx([0.27, 0.95], abs=0.006)


def test_image_to_image_leaves_out_the_times_above_the_start():
    run, first = their_default(SCHEDULE, 20, START), SCHEDULE.t_of_lam(START)
    times = run.times()
    assert len(times) == 20
    assert first - 34 < times[0] <= first + 1
    np.testing.assert_allclose(np.diff(times), -33.3, atol=0.8)


def test_a_run_does_not_depend_on_the_one_before(where):
    draw = where.drawn_by_diffusers(their_default(where.schedule, 3))
    first, _, again = draw(0), draw(1), draw(0)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def found(forecaster, case):
    """Rows of a run of two samples."""
    where = Slice(forecaster, case, AT)
    every = contestants(where, {"ddim": (2,)}, dense=30, theirs=3, ancestral=(40, 2))
    network = layers(NetworkConfig(**forecaster.bundle.manifest.network), 32)
    return {row["contestant"]: row for row in rows(where, every, 2, network, RATES)}


def test_rows_are_complete(found, tmp_path):
    presets = {f"{p.solver} {p.steps}": name for name, p in PRESETS.items()}
    assert list(found) == [
        "dpmpp_2m 30",
        "ddim 2",
        *presets,
        "dpmpp_2m 20, other noise",
        "diffusers default 3",
        "diffusers default 3, clipped",
        "diffusers at our times 3, clipped",
        "ddpm 40",
    ]
    assert {name: row["preset"] for name, row in found.items() if "preset" in row} == presets
    assert {row["case"] for row in found.values()} == {CASE}
    save("sampler", list(found.values()), tmp_path)
    assert len(load("sampler", tmp_path)) == len(found)


def test_the_floor_is_that_of_the_evaluations(found):
    one = found["ddim 2"]["floor_ms"] / 2
    for name, row in found.items():
        assert row["nfe"] == int(name.split(",")[0].split()[-1])
        assert row["floor_ms"] == pytest.approx(row["nfe"] * one, rel=2e-3), name


def test_distances_are_those_of_forecasts(found, forecaster, case):
    dense = forecast_of(forecaster, case, "dpmpp_2m", 30, 2)
    for name, plan in {
        "ddim 2": ("ddim", 2, 2),
        "unipc_2 8": ("unipc_2", 8, 2),
        "dpmpp_2m 20, other noise": ("dpmpp_2m", 20, 2, 1),
    }.items():
        row, other = found[name], distance(forecast_of(forecaster, case, *plan), dense)
        assert row["distance_to"] == "dpmpp_2m 30"
        for column, value in {
            "mean_distance": other.mean,
            "spread_distance": other.spread,
            "spread_ratio": other.spread_ratio,
            "probability_distance": other.probability,
            "dice": other.dice,
            "volume_distance": other.volume,
        }.items():
            assert row[column] == pytest.approx(value, abs=1e-6), (name, column)
    assert found["unipc_2 8"]["mean_distance"] < found["ddim 2"]["mean_distance"]


def test_what_is_no_forecast_has_no_distance(found):
    for name in ("dpmpp_2m 30", "ddpm 40"):
        assert not any("dist" in column or column == "dice" for column in found[name])
    paired = {name for name, row in found.items() if row["paired"]}
    assert found.keys() - paired == {"dpmpp_2m 20, other noise", "ddpm 40"}
    assert found["ddpm 40"]["extrapolated_from_steps"] == 2


def test_quality_is_of_the_run_and_of_one_from_noise(start):
    every = contestants(start, {"ddpm": (2,)}, dense=4, theirs=20, ancestral=(300, 2))
    informed = start.card.start_lam is not None
    begun = {"spread", "bias", "keeps_spread"}
    for name, one in every.items():
        assert one.columns["quality"].keys() == begun == one.columns["quality_from_noise"].keys()
        same = one.columns["quality"] == one.columns["quality_from_noise"]
        assert same is not informed, name
    assert not every["diffusers default 20"].columns["quality"]["keeps_spread"]
    assert every["diffusers at our times 20, clipped"].columns["quality"]["keeps_spread"]
    plan = make_plan(start.schedule, "ddpm", 300, "trailing")
    worst = analytic.gaussian_run(plan, STDS[0]).spread_ratio
    published = every["ddpm 300"].columns["quality_from_noise"]["spread"]
    assert published[0] == pytest.approx(worst, abs=1e-4)
    assert not every["ddpm 2"].columns["paired"]


def test_a_part_of_a_run_is_scaled_and_the_first_sample_is_not_timed(where, monkeypatch):
    """Made-up samples and seconds: what becomes of them is known."""

    def in_turns(runs, repeats):
        assert repeats == 3
        for run in runs.values():
            for _ in range(repeats + 1):
                run()
        return {name: [0.1, 0.2, 0.6] for name in runs}

    def made_up(offset: float):
        shape = where.brain.shape
        return lambda k: (np.full((3, *shape), k + offset, np.float32), np.ones(shape, np.float32))

    monkeypatch.setattr(sampler, "run_in_turns", in_turns)
    columns = {"quality": "made up"}
    every = {
        "dense": Contestant(made_up(0.0), 4, columns),
        "near": Contestant(made_up(0.25), 2, columns),
        "part": Contestant(made_up(9.0), 8, columns, scale=5.0, compared=False),
    }
    network = [Layer("c", "convolution", 10, 20, 3e6)]
    dense, near, part = rows(where, every, 4, network, RATES)
    assert (dense["ms"], near["ms"], part["ms"]) == (200.0, 200.0, 1000.0)
    assert part["roofline_fraction"] == pytest.approx(8 * 0.3 / 1000)
    assert (near["mean_distance"], near["spread_distance"]) == (0.25, 0)
    assert (near["spread_ratio"], near["dice"], near["volume_distance"]) == (1, 1, 0)
    assert "mean_distance" not in part
    assert all(row["slice"] == AT and row["samples"] == 4 for row in (dense, near, part))


def test_the_slice_of_the_bundled_case_holds_most_tumour():
    mask = read_case(sampler.DATA / sampler.DEMO_CASE).sessions[-1].mask
    areas = (mask.data > 0).sum(axis=(0, 1))
    assert areas[::-1][sampler.SLICE] == areas.max()  # files run up, canonical slices down
