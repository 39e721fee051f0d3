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
    BF16,
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
from tadiff_rt.backends import ov
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
    monkeypatch.setattr(Slice, "write", lambda self, name, **a: written.update({name: a}))
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
    torch.testing.assert_close(written["published"]["eps"], eps)
    torch.testing.assert_close(written["published"]["images"], after, rtol=1e-4, atol=1e-4)


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
        assert set(way.quality) - {"certificate"} == {"spread", "bias", "keeps_spread"}
        assert way.measured <= (way.steps or way.evaluations)
    assert every[PUBLISHED].measured >= 20
    assert (every[OURS].steps, every[OURS].evaluations) == (100, 20)
    assert ways(tmp_path, 4, 5)[OURS].steps == 40
    assert sum(way.follows_default for way in every.values()) == 4
    json.dumps([way.quality for way in every.values()])
    assert every[OURS].quality["certificate"] == "passes"
    assert every[FAST].quality["certificate"].startswith("spread, Gaussian of std 0.05")
    assert "certificate" not in every[PUBLISHED].quality, "no plan of ours"


def test_bf16_is_a_way_where_the_processor_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ov, "precisions", lambda: ("fp32",))
    assert BF16 not in ways(tmp_path, 1, 5)
    assert all("bf16" not in name for name in network.engines(1))
    monkeypatch.setattr(ov, "precisions", lambda: ("bf16", "fp32"))
    way = ways(tmp_path, 1, 5)[BF16]
    assert (way.arguments["backend"], way.dtype) == ("openvino:bf16", "bf16")
    assert {network.ALL_BF16, network.BF16} < set(network.engines(1))


def test_bf16_may_differ_more_and_not_by_much(tmp_path):
    assert compared(tmp_path, [1.1, -4.0], None, measured=4, dtype="bf16")
    with pytest.raises(SystemExit, match="other is wrong"):
        compared(tmp_path, [1.3, -4.0], None, measured=4, dtype="bf16")


def test_eager_contestants_also_run_with_memory_kept(tmp_path):
    found = one_slice.runs(ways(tmp_path, 1, 5), SIZE, str(tmp_path))
    kept = {name.removesuffix(KEPT): run for name, run in found.items() if name.endswith(KEPT)}
    eager = {name for name in found if name.endswith("eager PyTorch")}
    assert set(kept) == {*eager, "our default plan, torch.compile"}
    for run in kept.values():
        assert run.contestant.environment["MALLOC_MMAP_MAX_"] == "0"
        assert run.contestant.arguments["out"] == f"{tmp_path}/kept"
    for name in eager:
        assert "MALLOC_MMAP_MAX_" not in found[name].contestant.environment
    assert "our default plan, torch.compile" not in found
    assert found[REFERENCE].measured < found[REFERENCE + KEPT].measured == 20
    assert found[PUBLISHED].measured == found[PUBLISHED + KEPT].measured == 20


def run_of(name, folder, measured=20, **columns):
    way = Way("eager", 20, {}, result=name, follows_default=True, **columns)
    return one_slice.Run(way, Contestant("x:y", {"out": str(folder)}), measured)


def compared(folder, eps, images, **run):
    """What is found of a contestant beside the reference [1, -4], [0.2, 0.8]."""
    kept = folder / "kept"
    kept.mkdir(exist_ok=True)
    for where, name, arrays in (
        (kept, "eager", ([1.0, -4.0], [0.2, 0.8])),
        (folder, "other", (eps, images)),
    ):
        for kind, values in zip(("eps", "images"), arrays, strict=True):
            if values is not None:
                np.save(where / f"{name} {kind}.npy", np.array(values))
    return differences({"other": run_of("other", folder, **run)}, str(folder))["other"]


def test_a_wrong_contestant_is_not_timed(tmp_path):
    found = compared(tmp_path, [1.003, -4.0], [0.2, 0.8])
    assert found == {"estimate_differs": 0.00075, "images_differ": 0.0}
    with pytest.raises(SystemExit, match="other is wrong"):
        compared(tmp_path, [1.01, -4.0], [0.2, 0.8])
    with pytest.raises(SystemExit, match="other is wrong"):
        compared(tmp_path, [1.0, -4.0], [0.2, 0.8015])


@pytest.mark.parametrize("images", [[np.nan, 0.8], [np.inf, 0.8]])
def test_images_that_are_not_numbers_are_wrong(tmp_path, images):
    with pytest.raises(SystemExit, match="other is wrong"):
        compared(tmp_path, [1.0, -4.0], images)


def test_a_contestant_that_is_cut_short_is_compared_as_far_as_it_came(tmp_path):
    found = compared(tmp_path, [1.0, -4.0], None, measured=4)
    assert found == {"estimate_differs": 0.0}
    with pytest.raises(FileNotFoundError):
        compared(tmp_path / "kept" / "..", [1.0, -4.0], None)


def test_a_contestant_that_wrote_nothing_is_not_timed(tmp_path):
    compared(tmp_path, [1.0, -4.0], [0.2, 0.8])
    with pytest.raises(FileNotFoundError):
        differences({"silent": run_of("silent", tmp_path)}, str(tmp_path))


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
    written = {
        kind: np.load(tmp_path / f"fast onnxruntime:fp32 {kind}.npy") for kind in ("eps", "images")
    }
    assert written["eps"].shape == eps.shape
    np.testing.assert_allclose(written["eps"], eps.numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(written["images"], images.numpy(), atol=2e-3)


@pytest.mark.slow
def test_rows_of_a_tiny_slice(bundle, tmp_path, monkeypatch):
    few = (PUBLISHED, REFERENCE, "our default plan, openvino", OURS, BF16, FAST)
    few = tuple(name for name in few if name in ways(*bundle, SIZE.samples))
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
        if row["contestant"] != BF16:
            assert row["floor_ms"] / by_name[OURS]["floor_ms"] == pytest.approx(
                evaluations / 20, rel=1e-2
            )
    assert by_name[PUBLISHED]["extrapolated_from_steps"] == 20
    assert by_name[PUBLISHED]["ms"] > 10 * by_name[REFERENCE]["ms"]
    assert by_name[REFERENCE]["extrapolated_from_steps"] == one_slice.FEW
    assert by_name[OURS]["quality"]["images_differ"] < 1e-3
    assert by_name[OURS]["quality"]["estimate_differs"] > 0  # it is not compared with itself
    if BF16 in few:
        assert by_name[BF16]["floor_ms"] < by_name[OURS]["floor_ms"]
        assert 1e-4 < by_name[BF16]["quality"]["estimate_differs"] < 0.05


@pytest.mark.slow
def test_rows_of_a_tiny_evaluation(tmp_path, monkeypatch):
    few = (network.EAGER, network.TUNED, network.OURS, network.BF16, network.ALL_BF16)
    few = few if "bf16" in ov.precisions() else few[:3]
    every = network.engines
    monkeypatch.setattr(
        network, "engines", lambda batch: {n: e for n, e in every(batch).items() if e[0] in few}
    )
    rows = network.rows(SIZE, str(tmp_path), (2,))
    names = [row["contestant"] for row in rows[1:]]
    assert set(names) == {*few, network.EAGER + KEPT, network.TUNED + KEPT}
    for row in rows[1:]:
        assert row["case"] == "one evaluation, A, 32 x 32, batch 2"
        allowed = 0.05 if "bf16" in row["contestant"] else 1e-3
        assert row["quality"]["estimate_differs"] <= allowed
    save("network", rows, tmp_path)
