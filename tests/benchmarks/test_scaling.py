"""The benchmark of scaling: floors of what ran, the same bits everywhere, lines of medians."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import image_size, scaling
from benchmarks.floor import Roofline
from benchmarks.harness import load, save
from benchmarks.image_size import Evaluation, size_rows
from benchmarks.network_cost import layers, works
from benchmarks.plan_quality import plan_quality
from benchmarks.scaling import Loop, Measuring
from tadiff_rt.bundle import open_bundle
from tadiff_rt.solvers import make_plan
from tadiff_train.network import NetworkConfig

RATES = Roofline(1e10, {"fp32": 1e11})
SMALL = NetworkConfig(
    model_channels=32, num_res_blocks=1, num_heads=1, channel_mult=(1, 2), attention_strides=(2,)
)


@pytest.fixture(autouse=True)
def _rates(monkeypatch):
    monkeypatch.setattr(scaling, "roofline", lambda threads: RATES)


@pytest.fixture
def loop(bundle) -> Loop:
    return Loop.load(bundle, 1)


@pytest.mark.parametrize(("slices", "samples"), [(1, 4), (3, 3), (1, 2), (2, 5)])
def test_the_floor_is_of_the_rows_that_were_computed(loop, monkeypatch, slices, samples):
    backend, calls = loop.forecaster.backend, []
    denoise = backend.denoise

    def noted(sources, x, shifts):
        calls.append(len(x))
        return denoise(sources, x, shifts)

    monkeypatch.setattr(backend, "denoise", noted)
    one = replace(loop, slices=slices, samples=samples, steps=3)
    one.run()
    manifest = loop.forecaster.bundle.manifest
    every = layers(NetworkConfig(**manifest.network), manifest.card.data.size)
    expected = [work for rows in calls for work in works(every, rows, "fp32")]
    found = one.works()
    assert sum(calls) == 3 * slices * samples
    assert sum(w.flops for w in found) == pytest.approx(sum(w.flops for w in expected))
    assert sum(w.bytes for w in found) == pytest.approx(sum(w.bytes for w in expected))


def test_rows_of_a_loop(loop):
    loops = {"2": replace(loop, slices=2, seen=set()), "1": replace(loop, seen=set())}
    rows = scaling.loop_rows("slices", loops, 2)
    assert [row["contestant"] for row in rows] == ["2", "1"]
    for row, evaluations in zip(rows, (16, 8), strict=True):
        assert row["case"] == "scaling/slices"
        assert row["n"] == 2
        assert row["ms_per_evaluation"] == pytest.approx(row["ms"] / evaluations, abs=1e-3)
        assert row["quality"] == scaling.SAME_BITS
        floor_ms, _ = RATES.floor(loops[row["contestant"]].works())
        assert row["floor_ms"] == pytest.approx(floor_ms, rel=1e-3)


def test_other_bits_are_not_timed(loop, bundle, monkeypatch):
    other = Loop.load(bundle, 1)
    denoise = other.forecaster.backend.denoise

    def a_little_off(sources, x, shifts):
        eps, logits = denoise(sources, x, shifts)
        return np.nextafter(eps, np.float32(9)), logits

    monkeypatch.setattr(other.forecaster.backend, "denoise", a_little_off)
    with pytest.raises(SystemExit, match="2 results"):
        scaling.loop_rows("threads", {"1": loop, "2": other}, 1)


def test_steps_are_worth_what_their_plans_are(bundle, loop):
    rows = Measuring(bundle, 1, 1).axis("steps", "step", (2, 3, 5))
    assert [row["contestant"] for row in rows] == ["2", "3", "5", "line"]
    schedule = open_bundle(bundle).manifest.card.schedule.build()
    for row in rows[:3]:
        plan = make_plan(schedule, num_steps=int(row["contestant"]))
        assert row["quality"] == plan_quality(plan)
        assert row["ms_per_evaluation"] == pytest.approx(row["ms"] / (4 * plan.nfe), abs=1e-3)


def test_the_line_goes_through_the_medians():
    rows = [{"case": "scaling/slices", "contestant": str(n), "ms": 30 + 20 * n} for n in (1, 2, 4)]
    *same, line = scaling.with_line(rows, (1, 2, 4), "slice")
    assert same == rows
    assert (line["case"], line["contestant"]) == ("scaling/slices", "line")
    assert (line["slope_ms"], line["intercept_ms"], line["r2"]) == (20.0, 30.0, 1.0)
    assert line["linear"] is True
    rows[0]["ms"] *= 2
    assert scaling.with_line(rows, (1, 2, 4), "slice")[-1]["linear"] is False


def test_what_padding_would_cost(bundle, monkeypatch):
    def made_up(part, loops, repeats):
        assert [loop.samples for loop in loops.values()] == [1, 2, 3, 4, 5]
        sessions = {id(loop.forecaster) for loop in loops.values()}
        assert len(sessions) == 5  # each keeps the session of its last batch
        return [{"contestant": name, "ms": 10.0 * int(name)} for name in loops]

    monkeypatch.setattr(scaling, "loop_rows", made_up)
    monkeypatch.setattr(scaling, "first_call_ms", lambda forecaster, rows: 100.0 * rows)
    rows = Measuring(bundle, 1, 1).rows_of_a_bucket()
    assert [row["of_padded"] for row in rows] == [0.25, 0.5, 0.75, 1.0, 0.625]
    assert [row["setup_ms"] for row in rows] == [100.0, 200.0, 300.0, 400.0, 100.0]


def test_setting_up_is_what_only_the_first_call_takes(loop, monkeypatch):
    clock, calls = [0.0], []

    def denoise(sources, x, shifts):
        calls.append((sources.shape, x.shape))
        clock[0] += (5.0, 2.0, 1.0)[len(calls) - 1]

    monkeypatch.setattr(loop.forecaster.backend, "denoise", denoise)
    monkeypatch.setattr(scaling.time, "perf_counter", lambda: clock[0])
    assert scaling.first_call_ms(loop.forecaster, 3) == 4000.0
    assert calls == [((3, 9, 32, 32), (3, 3, 32, 32))] * 3


def one_session(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further loop runs on that of `loop`."""

    def load(engine, threads, **numbers):
        return replace(loop, threads=threads, seen=set(), **numbers)

    monkeypatch.setattr(Loop, "load", load)


@pytest.mark.parametrize(
    ("cores", "threads", "shared"),
    [
        (2, {"1": 1, "2": 2}, {"1 x 2": (1, 2), "2 x 1": (2, 1)}),
        (
            6,
            {"1": 1, "2": 2, "4": 4, "6": 6},
            {"1 x 6": (1, 6), "2 x 3": (2, 3), "3 x 2": (3, 2), "6 x 1": (6, 1)},
        ),
    ],
)
def test_cores_are_shared_in_every_way(bundle, loop, monkeypatch, cores, threads, shared):
    monkeypatch.setattr(scaling, "loop_rows", lambda part, loops, repeats: loops)
    one_session(loop, monkeypatch)
    measuring = Measuring(bundle, cores, 1)
    assert {name: one.threads for name, one in measuring.by_threads().items()} == threads
    workers = measuring.by_workers()
    assert {name: (one.workers, one.threads) for name, one in workers.items()} == shared
    # So many buckets that every worker has one.
    assert all(one.slices * one.samples >= 4 * cores for one in workers.values())


def test_sizes_are_compared_with_their_arithmetic():
    rows = size_rows("scaling/size", SMALL, (16, 32), 1, RATES, 1)
    assert [row["contestant"] for row in rows] == ["16", "32"]
    small, large = rows
    # Convolutions grow with the area, attention with its square.
    assert large["convolution_gflop"] == pytest.approx(4 * small["convolution_gflop"], abs=0.003)
    assert layers_gflop(32, "attention") == pytest.approx(16 * layers_gflop(16, "attention"))
    for row, size in zip(rows, (16, 32), strict=True):
        total = sum(layers_gflop(size, kind) for kind in ("convolution", "attention"))
        assert row["gflop"] == pytest.approx(total, abs=1e-3)
        assert row["ms_per_gflop"] == pytest.approx(row["ms"] / total, rel=1e-2)
        assert row["quality"]["largest_difference_to_pytorch"] < image_size.AGREES


def layers_gflop(size: int, kind: str) -> float:
    return sum(layer.flops for layer in layers(SMALL, size) if layer.kind == kind) / 1e9


def test_a_network_that_disagrees_with_pytorch_is_not_timed(monkeypatch):
    evaluation = Evaluation(SMALL, 16, 1)
    run = evaluation.run
    evaluation.check()
    for off in (1e-3, np.nan):
        share = np.float32(1 + off)
        monkeypatch.setattr(evaluation, "run", lambda share=share: [y * share for y in run()])
        with pytest.raises(SystemExit, match="from PyTorch"):
            evaluation.check()


def test_all_rows_together_are_a_file(bundle, loop, tmp_path, monkeypatch):
    one_session(loop, monkeypatch)
    for name, few in {"SLICES": (1, 2, 3), "SAMPLES": (4, 5, 8), "STEPS": (1, 2, 3)}.items():
        monkeypatch.setattr(scaling, name, few)
    row = {"no_floor": "made up", "quality": "made up", "case": "scaling/size"}
    monkeypatch.setattr(Measuring, "sizes", lambda self: [{**row, "contestant": "64"}])
    monkeypatch.setitem(scaling.PARTS, "size", Measuring.sizes)
    save("scaling", scaling.rows(measuring=Measuring(bundle, 2, 1)), tmp_path)
    names = {(row["case"], row["contestant"]) for row in load("scaling", tmp_path)}
    assert {(f"scaling/{part}", "line") for part in ("slices", "samples", "steps")} <= names
    assert {("scaling/rows", "5"), ("scaling/threads", "2"), ("scaling/slices", "1")} <= names
    assert {("scaling/workers x threads", "2 x 1"), ("scaling/size", "64")} <= names
    assert ("scaling/roofline", "this machine") in names
