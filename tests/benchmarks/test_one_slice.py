"""One slice by every way: what is run, what is compared, and what a row says."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from benchmarks import contestants as ways_of
from benchmarks import network, one_slice
from benchmarks.contestants import SCHEDULE, Eager, Slice
from benchmarks.harness import FLOOR, save
from benchmarks.one_slice import (
    FAST,
    KEPT,
    OURS,
    PUBLISHED,
    REFERENCE,
    Size,
    Way,
    differences,
    ways,
)
from benchmarks.plan_quality import plan_quality, published_quality
from benchmarks.turns import Contestant
from tadiff_rt.certify import analytic
from tadiff_rt.solvers import make_plan, solve

TINY = {"num_res_blocks": 1, "num_heads": 2, "channel_mult": (1, 2), "attention_strides": (2,)}
SIZE = Size(TINY, size=32, samples=3, threads=1)


def no_gate() -> None:
    """It is always its turn."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return one_slice.make_bundle(tmp_path_factory.mktemp("made"), SIZE)


def given(out):
    return {**dataclasses.asdict(SIZE), "out": str(out)}


def test_the_published_loop_is_ancestral_sampling_of_its_own_schedule(tmp_path, monkeypatch):
    """With few steps, against the textbook's formula for the mean and variance of q."""
    monkeypatch.setattr(ways_of, "PUBLISHED_STEPS", 4)
    monkeypatch.setattr(ways_of, "MASK_STEPS", 2)
    written = {}
    monkeypatch.setattr(Slice, "write", lambda self, name, *arrays: written.update({name: arrays}))
    work = Slice(**given(tmp_path))
    torch.manual_seed(5)
    ways_of.published(no_gate, **given(tmp_path))
    torch.manual_seed(5)
    beta = np.linspace(1e-4, 0.02, 4)
    bar = np.cumprod(1 - beta)
    with torch.no_grad(), ways_of.attention(ways_of.five_passes):
        net, x = Eager(work), torch.from_numpy(work.noise())  # making a network draws numbers
        z = torch.randn_like(x)
        eps, _ = net(x, 4)
        x0 = (x - math.sqrt(1 - bar[3]) * eps) / math.sqrt(bar[3])
        # Ho et al. 2020, Eq. 7
        mean = (math.sqrt(bar[2]) * beta[3] * x0 + math.sqrt(1 - beta[3]) * (1 - bar[2]) * x) / (
            1 - bar[3]
        )
        after = mean + math.sqrt(beta[3] * (1 - bar[2]) / (1 - bar[3])) * z
    torch.testing.assert_close(written["published"][0], eps)
    torch.testing.assert_close(written["published"][1], after, rtol=1e-4, atol=1e-4)


def test_the_published_loop_in_closed_form_is_what_chains_do():
    """The bias at 0.2 is in the published network's specification: 0.012 for 600 steps."""
    rng = np.random.default_rng(0)
    steps, std, chains = 600, 0.5, 20_000
    beta = np.linspace(1e-4, 0.02, steps)
    bar, trained = np.cumprod(1 - beta), SCHEDULE.alphas_cumprod
    x = rng.standard_normal(chains)
    for t in range(steps, 0, -1):
        signal, noise = math.sqrt(trained[t - 1]), math.sqrt(1 - trained[t - 1])
        x0 = analytic.MEAN + signal * std**2 / (signal**2 * std**2 + noise**2) * (
            x - signal * analytic.MEAN
        )
        eps = (x - signal * x0) / noise
        x = (x - beta[t - 1] / math.sqrt(1 - bar[t - 1]) * eps) / math.sqrt(1 - beta[t - 1])
        if t > 1:
            spread = beta[t - 1] * (1 - bar[t - 2]) / (1 - bar[t - 1])
            x += math.sqrt(spread) * rng.standard_normal(chains)
    told = published_quality()
    assert told["bias"] == pytest.approx(x.mean() - analytic.MEAN, abs=4 * std / chains**0.5)
    assert told["spread"][1] == pytest.approx(x.std() / std, abs=0.02)
    assert told["keeps_spread"] is False


def test_the_closed_form_of_a_schedule_that_is_not_rebuilt_is_the_usual_one():
    usual = plan_quality(make_plan(SCHEDULE, "ddpm", 1000, "all"))
    assert published_quality(1000)["spread"] == pytest.approx(usual["spread"], abs=2e-4)


def test_every_way_says_what_it_is_worth(tmp_path):
    every = ways(tmp_path, 1, 5)
    assert set(every) >= {PUBLISHED, REFERENCE, OURS, FAST}
    for way in every.values():
        assert set(way.quality) == {"spread", "bias", "keeps_spread"}
        assert way.measured <= (way.steps or way.evaluations)
    assert every[PUBLISHED].measured >= 20
    assert (every[OURS].steps, every[OURS].evaluations) == (100, 20)
    assert ways(tmp_path, 4, 5)[OURS].steps == 40
    assert sum(way.follows_default for way in every.values()) == 4
    json.dumps([way.quality for way in every.values()])


def test_eager_contestants_also_run_with_memory_kept(tmp_path):
    found = one_slice.contestants(ways(tmp_path, 1, 5), SIZE, str(tmp_path))
    kept = {name: pair for name, pair in found.items() if name.endswith(KEPT)}
    assert {name.removesuffix(KEPT) for name in kept} == {
        name for name, (way, _) in found.items() if way.eager and name not in kept
    }
    for _, contestant in kept.values():
        assert contestant.environment["MALLOC_MMAP_MAX_"] == "0"
    assert "MALLOC_MMAP_MAX_" not in found[PUBLISHED][1].environment


def written(folder, name, eps, images):
    np.savez(folder / f"{name}.npz", eps=eps, images=images)


@pytest.mark.parametrize("what", ["eps", "images"])
def test_a_wrong_contestant_is_not_timed(tmp_path, what):
    eps, images = np.array([1.0, -4.0]), np.array([0.2, 0.8])
    written(tmp_path, "right", eps, images)
    off = {"eps": eps + 0.003, "images": images}
    written(tmp_path, "near", **off)
    contestant = Contestant("x:y", {"out": str(tmp_path)})
    right = Way("eager", 20, {}, result="right", follows_default=True)
    near = Way("eager", 20, {}, result="near", follows_default=True)
    found = differences(
        {REFERENCE: (right, contestant), "near": (near, contestant)}, str(tmp_path)
    )
    assert found["near"] == {"estimate_differs": 0.00075, "images_differ": 0.0}
    off = {"eps": eps, "images": images}
    off[what] = off[what] + (0.01 if what == "eps" else 0.0015)
    written(tmp_path, "near", **off)
    with pytest.raises(SystemExit, match="near is wrong"):
        differences({REFERENCE: (right, contestant), "near": (near, contestant)}, str(tmp_path))


def test_images_that_are_not_numbers_are_wrong(tmp_path):
    written(tmp_path, "right", np.ones(2), np.ones(2))
    written(tmp_path, "nan", np.ones(2), np.full(2, np.nan))
    contestant = Contestant("x:y", {"out": str(tmp_path)})
    right = Way("eager", 20, {}, result="right", follows_default=True)
    nan = Way("eager", 20, {}, result="nan", follows_default=True)
    with pytest.raises(SystemExit, match="nan is wrong"):
        differences({REFERENCE: (right, contestant), "nan": (nan, contestant)}, str(tmp_path))


def test_the_runtime_draws_what_the_plan_says(bundle, tmp_path):
    path, rows_a_call = bundle
    calls = []
    told = ways_of.runtime(
        lambda: calls.append(1), bundle=str(path), preset="fast", **given(tmp_path)
    )
    assert told == {"rows_a_call": rows_a_call}
    assert len(calls) == ways(path, rows_a_call, SIZE.samples)[FAST].steps
    work = Slice(**given(tmp_path))
    plan = make_plan(SCHEDULE, "unipc_2", 8)
    with torch.no_grad(), ways_of.attention(ways_of.five_passes):
        net = Eager(work)
        images, _ = solve(net, torch.from_numpy(work.noise()), plan, None, None, (0.0, 1.0))
        eps, _ = net(torch.from_numpy(work.noise()), plan.t[0])
    arrays = np.load(tmp_path / "fast.npz")
    assert arrays["eps"].shape == eps.shape
    np.testing.assert_allclose(arrays["eps"], eps.numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(arrays["images"], images.numpy(), atol=2e-3)


@pytest.mark.slow
def test_rows_of_a_tiny_slice(bundle, tmp_path, monkeypatch):
    few = (PUBLISHED, REFERENCE, "our default plan, openvino", OURS, FAST)
    monkeypatch.setattr(
        one_slice, "ways", lambda *a: {n: w for n, w in ways(*a).items() if n in few}
    )
    path, rows_a_call = bundle
    rows = one_slice.rows(path, rows_a_call, SIZE, str(tmp_path))
    save("one_slice", rows, tmp_path)
    machine, *found = rows
    assert machine["no_floor"] == "it is the floor"
    assert [row["contestant"] for row in found] == [
        name + kept for name in few for kept in ["", KEPT][: 1 + (name in (PUBLISHED, REFERENCE))]
    ]
    by_name = {row["contestant"]: row for row in found}
    for row in found:
        assert all(row[key] for key in FLOOR)
        assert row["peak_mb"] > 50
        evaluations = row["evaluations"]
        assert row["floor_ms"] / by_name[OURS]["floor_ms"] == pytest.approx(
            evaluations / 20, rel=1e-2
        )
    assert by_name[PUBLISHED]["extrapolated_from_steps"] == 20
    assert by_name[PUBLISHED]["ms"] > 10 * by_name[REFERENCE]["ms"]
    assert by_name[OURS]["quality"]["images_differ"] < 1e-3
    assert by_name[OURS]["quality"]["estimate_differs"] > 0  # it is not compared with itself


@pytest.mark.slow
def test_rows_of_a_tiny_evaluation(tmp_path, monkeypatch):
    few = (network.EAGER, "eager PyTorch, tuned", network.OURS)
    every = network.engines
    monkeypatch.setattr(
        network, "engines", lambda batch: {n: e for n, e in every(batch).items() if e[0] in few}
    )
    rows = network.rows(SIZE, str(tmp_path), (2,))
    names = [row["contestant"] for row in rows[1:]]
    assert set(names) == {*few, network.EAGER + KEPT, "eager PyTorch, tuned" + KEPT}
    for row in rows[1:]:
        assert row["case"] == "one evaluation, A, 32 x 32, batch 2"
        assert row["quality"]["estimate_differs"] <= 1e-3
    save("network", rows, tmp_path)
