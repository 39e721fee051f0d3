"""Floors against counts by hand and by PyTorch; timing and memory on a GPU."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device import Bench, Replay, attempt
from benchmarks.engines_cpu import ATTENTION_GFLOP, CONV_GFLOP
from benchmarks.floor import Roofline, Work, timed_row
from benchmarks.gpu_bundle import network
from benchmarks.network_cost import layers, network_row, works
from tadiff_export.split import split
from tadiff_train.network import NetworkConfig

SMALL = NetworkConfig(num_res_blocks=1, num_heads=2, channel_mult=(1, 2), attention_strides=(2,))
RATES = Roofline(1e9, {"fp32": 1e10, "fp16": 4e10, "bf16": 4e10})


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    return Bench.start(str(tmp_path))


def test_a_floor_is_the_longer_of_moving_and_computing_layer_by_layer():
    moving, computing = Work(3e6, 1e6), Work(1e6, 8e8, "fp16")
    assert RATES.floor([moving]) == (3.0, "bandwidth")
    assert RATES.floor([computing]) == (20.0, "flops")
    assert RATES.floor([moving, computing]) == (23.0, "flops")
    # Not the longer of the sums: one layer does not move while another computes.
    assert RATES.floor([Work(5e6), Work(0, 5e7)]) == (10.0, "bandwidth")
    assert RATES.floor([moving.times(2.5)])[0] == 7.5
    assert RATES.floor([computing.times(2.5)])[0] == 50.0


def test_a_row_says_its_share_of_the_floor():
    row = timed_row("c", "x", [0.004, 0.005, 0.006], [Work(3e6)], RATES, calls=2)
    assert (row["ms"], row["floor_ms"], row["floor_kind"]) == (5.0, 3.0, "bandwidth")
    assert row["roofline_fraction"] == pytest.approx(0.6)
    assert row["calls"] == 2


def roofline_rows(**changed: float) -> list[dict[str, object]]:
    rows = [{"case": "roofline", "contestant": "copy", "bytes_per_s": changed.get("copy", 2e12)}]
    rates = {"fp32": 5e13, "fp16": 7e14, "bf16": 6e14} | changed
    for dtype in ("fp32", "fp16", "bf16"):
        name = f"product {dtype}"
        rows.append({"case": "roofline", "contestant": name, "flops_per_s": rates[dtype]})
    return rows


def test_the_roofline_is_that_of_the_last_session(tmp_path):
    file = tmp_path / "gpu.jsonl"
    with pytest.raises(SystemExit, match="has no roofline: run python -m"):
        Roofline.of(file)
    both = roofline_rows() + roofline_rows(copy=3e12, fp16=8e14)
    file.write_text("".join(json.dumps(row) + "\n" for row in both))
    read = Roofline.of(file)
    assert read == Roofline(3e12, {"fp32": 5e13, "fp16": 8e14, "bf16": 6e14})
    file.write_text("".join(json.dumps(row) + "\n" for row in roofline_rows()[:-1]))
    with pytest.raises(SystemExit, match="no roofline"):
        Roofline.of(file)


@pytest.mark.parametrize(("config", "size"), [(SMALL, 48), (NetworkConfig(), 64)])
def test_arithmetic_is_what_pytorch_counts(config, size):
    denoiser = split(network(config))[1]
    images = [torch.zeros(2, channels, size, size) for channels in (9, 3)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser(*images, torch.zeros(1, sum(denoiser.widths)))
    ours = sum(work.flops for work in works(layers(config, size), 2, "fp32"))
    assert ours == counter.get_total_flops()


def test_configuration_a_costs_what_is_known_of_it():
    every = layers(NetworkConfig(), 192)
    gflop = {kind: sum(x.flops for x in every if x.kind == kind) / 1e9 for kind in KINDS}
    assert gflop["convolution"] == pytest.approx(CONV_GFLOP, abs=0.01)
    assert gflop["attention"] == pytest.approx(ATTENTION_GFLOP, abs=0.01)
    assert gflop["norm"] == 0
    normed = sum(x.activations for x in every if x.kind == "norm")
    assert normed == pytest.approx(2 * 30.6e6, rel=0.002)


KINDS = ("convolution", "attention", "norm")


def test_bytes_are_every_input_and_output_once():
    every = {layer.name: layer for layer in layers(SMALL, 48)}
    pixels, small = 48 * 48, 24 * 24
    first = every["input_blocks.0.0"]
    assert first.activations == (12 + 32) * pixels
    assert first.weights == 12 * 32 * 9
    halving = every["input_blocks.2.0.op"]
    assert halving.activations == 32 * pixels + 32 * small
    doubling = every["output_blocks.1.2.conv"]
    assert doubling.activations == 64 * small + 64 * pixels, "reads the small image"
    attention = every["middle_block.1.attend"]
    assert attention.activations == 4 * 64 * small, "q, k, v and the result"
    moved = first.work(5, "bf16").bytes
    assert moved == 2 * (first.weights + 5 * first.activations), "weights are read once"


def test_norms_count_only_where_they_are_asked_for():
    every = layers(SMALL, 48)
    row = network_row("c", "x", [0.1], every, 3, "fp16", RATES, calls=4.0)
    norms = sum(2 * 3 * x.activations for x in every if x.kind == "norm") * 4
    assert row["floor_separate_norms_ms"] - row["floor_ms"] == pytest.approx(
        norms / 1e9 * 1e3, rel=2e-3
    )
    assert row["roofline_fraction"] == pytest.approx(row["floor_ms"] / 100, rel=1e-3)
    assert row["fraction_separate_norms"] > row["roofline_fraction"]


def test_what_fails_becomes_a_row(bench):
    failures: list[dict[str, object]] = []
    assert attempt("c", "x", lambda: 1 / 0, failures) is None
    assert attempt("c", "y", lambda: 7, failures) == 7
    assert failures == [
        {"case": "c", "contestant": "x", "failed": "ZeroDivisionError: division by zero"}
    ]
    assert bench.append([{"case": "c", "contestant": "y"}])
    assert not bench.append(failures)
    written = [json.loads(line) for line in bench.rows.read_text().splitlines()]
    assert [row["contestant"] for row in written] == ["y", "x"]
    assert {row["device"] for row in written} == {bench.device.type}
    assert all("versions" in row and "hardware" in row for row in written)


@pytest.mark.gpu
def test_time_is_that_of_the_device(bench):
    """A kernel that spins: twice the cycles, twice the time, whoever waits for it."""
    runs = {name: lambda n=int(name): torch.cuda._sleep(n * 1_000_000) for name in ("1", "2")}
    for cold in (False, True):
        seconds = bench.seconds(runs, cold=cold)
        medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
        assert medians["2"] / medians["1"] == pytest.approx(2, rel=0.1)
        assert medians["1"] == pytest.approx(1e6 / 1.5e9, rel=0.6)  # of 1 to 2.5 GHz


@pytest.mark.gpu
def test_memory_is_what_a_run_takes(bench):
    held = bench.normal(1 << 20)
    megabytes = bench.peak_mb(lambda: torch.empty(1 << 26, dtype=torch.uint8, device="cuda"))
    assert megabytes == pytest.approx((1 << 26) / 1e6, rel=0.01)
    replay = Replay(lambda: held + 1)
    assert bench.peak_mb(replay) == pytest.approx(4 * (1 << 20) / 1e6, rel=0.5)


@pytest.mark.gpu
def test_a_replay_computes(bench):
    x = bench.normal(1000)
    replay = Replay(lambda: x * 2)
    x.fill_(3.0)
    replay()
    assert (replay.result == 6).all()
