"""Tables of GPU rows: which rows they show, what they say of targets, and the committed page."""

import json

import pytest

from benchmarks import gpu_table
from benchmarks.gpu_targets import LADDER, TARGETS, found, read, targets
from benchmarks.harness import RESULTS
from benchmarks.spread_table import with_blocks

GPU = {"name": "H100", "driver": "580", "sm_mhz": "1980", "max_sm_mhz": "1980"}
ORIGIN = {
    "session": "s1",
    "device": "cuda",
    "gpu": "H100",
    "hardware": {"gpu": GPU},
    "versions": {"commit": "abc", "torch": "2.11", "triton": "3.6"},
}


def row(case: str, contestant: str, **columns: object) -> dict[str, object]:
    return {"case": case, "contestant": contestant, **ORIGIN, **columns}


def network_rows(batch: int, per_image: float, strict: float) -> list[dict[str, object]]:
    return [
        row(
            f"network/192/batch {batch}",
            " ".join(rung),
            ms=batch * per_image,
            ms_per_image=per_image,
            roofline_fraction=strict,
            fraction_separate_norms=1.4 * strict,
            peak_mb=100.0 * batch,
            eps_max_error=0.25,
        )
        for rung in LADDER
    ]


def kernel_rows(case: str, compiled: float, ours: float) -> list[dict[str, object]]:
    return [
        row(case, "compiled", ms=compiled),
        row(
            case,
            "ours",
            ms=ours,
            of_compiled=compiled / ours,
            keep=compiled / ours >= 1.5,
            floor_ms=ours / 2,
            roofline_fraction=0.5,
            error=1e-4,
            allowed_error=4e-4,
        ),
    ]


def verdicts(rows: list[dict[str, object]]) -> dict[str, tuple[str, str]]:
    """What a target is about -> measured, met."""
    lines = [target.line(rows) for target in TARGETS]
    return {what: (measured, met) for what, _, measured, met in lines}


def test_committed_tables_are_those_of_the_rows():
    page = gpu_table.PAGE.read_text(encoding="utf-8")
    rows = read(RESULTS / "gpu.jsonl")
    assert with_blocks(page, gpu_table.blocks(rows)) == page


def test_without_rows_nothing_is_claimed(tmp_path):
    assert read(tmp_path / "none.jsonl") == []
    for name, text in gpu_table.blocks([]).items():
        assert "Not measured: no GPU was available." in text, name
    assert {v for v in verdicts([]).values()} == {("not measured", "-")}


def test_dry_runs_are_no_measurements(tmp_path):
    file = tmp_path / "gpu.jsonl"
    dry = {**row("conditioning/50 steps", "ours", ms=0.01), "device": "cpu"}
    file.write_text(json.dumps(dry) + "\n")
    assert read(file) == []


def test_a_table_shows_one_session():
    old = [{**r, "session": "s0"} for r in network_rows(1, 5.0, 0.1)]
    new = network_rows(40, 0.3, 0.2)
    other = [{**r, "session": "s2"} for r in kernel_rows("attention/1x2304x96", 2.0, 1.0)]
    rows = [*old, *new, *other]
    assert set(found(rows, "network/")) == {"network/192/batch 40"}
    assert set(found(rows, "attention/")) == {"attention/1x2304x96"}
    assert "5 ms" not in gpu_table.blocks(rows)["ladder"]


def test_a_batch_is_not_another_that_begins_like_it():
    rows = network_rows(16, 0.1, 0.9)
    assert found(rows, "network/192/batch 1") == {}
    assert verdicts(rows)["one evaluation, batch 1"] == ("not measured", "-")


def test_targets_are_judged_at_their_limits():
    rows = [
        *network_rows(1, 0.8, 0.3),
        *network_rows(40, 0.21, 0.45),
        row("conditioning/50 steps, 5000 shifts", "ours", ms=0.0501),
        row("conditioning/50 steps, 5000 shifts", "eager", ms=0.01),
        row("ensemble/192/155 slices, 5 samples, 20 steps", "fp16, graph", ms=3900.0),
        row("ensemble/192/155 slices, 5 samples, 20 steps", "fp16, no graph", ms=9000.0),
        *kernel_rows("attention/1", 3.0, 1.0),
        *kernel_rows("group_norm_silu/1", 1.4, 1.0),
    ]
    assert verdicts(rows) == {
        "conditioning of 50 steps": ("50.1 us", "**no**"),
        "one evaluation, batch 1": ("0.8 ms", "yes"),
        "an image, batch 40": ("0.21 ms", "**no**"),
        "of the floor, batch 40": ("45%", "**no**"),
        "the same, norms as passes of their own": ("63%", "yes"),
        "155 slices, 5 samples, 20 steps": ("3.9 s", "yes"),
        "operators against torch.compile, the least of all shapes": ("1.40x", "**no**"),
    }


def test_only_the_last_rung_counts_for_a_target():
    rows = network_rows(1, 0.9, 0.3)
    faster = [{**r, "ms_per_image": 0.5} for r in rows if r["contestant"] == "fused fp16"]
    assert verdicts(rows + faster)["one evaluation, batch 1"] == ("0.9 ms", "**no**")


def test_tables_show_what_rows_hold():
    rows = [
        row("roofline", "copy", ms=1.4, bytes_per_s=3.05e12),
        row("roofline", "product fp16", ms=1.4, flops_per_s=7.1e14),
        row("roofline", "launch in a graph", ms=0.0021),
        *network_rows(8, 0.25, 0.4),
        *network_rows(1, 0.7, 0.2),
        row("network/192/batch 1", "other noise", ensemble_dice=0.5),
        *kernel_rows("attention/40x2304x96 4 heads", 3.2, 2.0),
        row("solver_step/1 sde", "ours", ms=0.02, floor_ms=0.01, roofline_fraction=0.5),
        row("ensemble/192/155", "fp16, graph, bucket 40", ms=3900.0, slices_per_s=39.7),
        row("monai/192/batch 1", "MONAI", not_measured="ImportError: No module named 'monai'"),
        row("monai/192/batch 8", "MONAI", ms=1.25, roofline_fraction=0.5),
    ]
    made = gpu_table.blocks(rows)
    assert "| copy | 3.05 TB/s |" in made["what the machine reached"]
    assert "| product fp16 | 710 TFLOP/s |" in made["what the machine reached"]
    assert "| launch in a graph | 2.1 us |" in made["what the machine reached"]
    kernels = made["operators"]
    line = "| attention/40x2304x96 4 heads | - | 3.2 | 2 | 1.60x | 1 | 50% | 1.0e-04 of 4.0e-04 |"
    assert f"{line} yes |" in kernels
    assert "| solver_step/1 sde | - | - | 0.02 | - | 0.01 | 50% | - of - | - |" in kernels
    assert "|  | batch 1 | batch 8 | memory |" in made["ladder"], "in the order of batches"
    assert "| eager fp32 | 0.7 ms, 20% / 28% | 0.25 ms, 40% / 56% | 0.80 GB |" in made["ladder"]
    assert "| other noise | - | - | - | - | - | 0.5 | - |" in made["quality of the ladder"]
    assert "| eager fp32 | 0.25 |" in made["quality of the ladder"]
    assert "| fp16, graph, bucket 40 | 3.9 s | - | 39.7 | - / - | - |" in made["ensemble"]
    assert (
        "| monai/192/batch 1 | MONAI | ImportError: No module named 'monai' | - |" in made["MONAI"]
    )
    assert "| monai/192/batch 8 | MONAI | 1.25 ms | 50% |" in made["MONAI"]
    origin = "H100, driver 580, 1980 of 1980 MHz; torch 2.11, triton 3.6; commit abc; s1."
    assert all(text.endswith(origin) for name, text in made.items() if name != "targets")


def test_a_failure_is_shown_as_one():
    rows = [
        r for r in network_rows(1, 0.7, 0.2) if r["contestant"] not in ("fused fp16", "fused bf16")
    ]
    rows += [row("network/192/batch 1", "fused fp16", failed="RuntimeError: no")]
    rows += [row("attention/1", "ours", failed="ValueError: 1e-1 from float64")]
    made = gpu_table.blocks(rows)
    assert "| fused fp16 | failed | failed |" in made["ladder"]
    assert "| fused bf16 | - | - |" in made["ladder"]
    assert "| attention/1 | - | - | failed | failed |" in made["operators"]
    assert "| fused fp16 | failed |" in made["quality of the ladder"]
    assert verdicts(rows)["operators against torch.compile, the least of all shapes"] == (
        "not measured",
        "-",
    )


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.what)
def test_every_target_is_on_the_page(target):
    assert f"| {target.what} | " in gpu_table.PAGE.read_text(encoding="utf-8")
    assert f"| {target.what} | " in targets([])
