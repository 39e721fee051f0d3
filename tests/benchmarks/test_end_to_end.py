"""The breakdown of a forecast: what it counts, what it refuses, and what it is measured on."""

import json

import numpy as np
import pytest

from benchmarks import end_to_end, harness, made_case
from benchmarks.end_to_end import DENOISER, PARTS, REST, TOTAL, Case, Run
from benchmarks.floor import Roofline
from benchmarks.made_case import card_of, write_bundle, write_case, write_checkpoint
from benchmarks.network_cost import layers
from tadiff_export import graphs
from tadiff_export.checkpoint import Asked, load_any
from tadiff_export.draft import digest
from tadiff_rt.backends import load_backend
from tadiff_rt.bundle import open_bundle
from tadiff_rt.errors import NumericsError
from tadiff_rt.preprocess import prepare
from tadiff_rt.readers import read_case
from tadiff_train.network import NetworkConfig
from tests.conftest import remember_graphs

ROOFLINE = Roofline(1e9, {"fp32": 1e9})
PROCESS = {"start": 0.25, "import": 0.5, "end": 0.125}
SECONDS = {
    **{"check": 1.0, "load": 2.0, "read": 3.0, "prepare": 4.0, "condition": 5.0, "denoise": 60.0},
    **{"noise": 1.0, "solve": 2.0, "statistics": 3.0, "sample": 0.5, "map back": 1.0},
    **{"compare": 0.5, "write": 2.0, "overview": 1.0, "hash": 0.5, "other": 0.25, "total": 86.75},
}


def test_every_stage_is_in_one_row_and_rows_sum_to_the_wall_time():
    found = end_to_end.parts(88.0, PROCESS, SECONDS)
    assert tuple(found) == (*PARTS, REST)
    assert sum(found.values()) == 88.0
    assert found["start of Python and imports"] == 0.75
    assert found["read and check the case"] == 4.0
    assert found[DENOISER] == 60.0
    assert found["noise, solver and statistics"] == 6.5
    assert found[REST] == pytest.approx(88.0 - 0.875 - 86.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"page": 1.0}, "expected"),
        ({"denoise": None}, "expected"),
        ({"denoise": 62.0}, "overlap"),
        ({"denoise": 63.0, "total": 89.75}, "overlap"),
    ],
    ids=["unknown", "missing", "more than their total", "more than the wall time"],
)
def test_stages_that_do_not_sum_are_refused(change, said):
    changed = {name: s for name, s in {**SECONDS, **change}.items() if s is not None}
    with pytest.raises(SystemExit, match=said):
        end_to_end.parts(88.0, PROCESS, changed)


def run_of(rest: float, files: object = None) -> Run:
    parts = {DENOISER: 10.0 - rest, REST: rest}
    return Run(10.0, parts, {"files": files})


def test_at_most_two_per_cent_may_be_unaccounted_for():
    end_to_end.require_accounted("case", run_of(0.199))
    with pytest.raises(SystemExit, match=r"case: 2\.1% of 10\.00 s"):
        end_to_end.require_accounted("case", run_of(0.21))


def test_runs_that_differ_are_refused():
    one, other = ({"a.nii.gz": {"bytes": 5, "sha256": digit}} for digit in "01")
    end_to_end.require_same("case", [run_of(0, one), run_of(0.1, dict(one))])
    with pytest.raises(SystemExit, match="different bytes"):
        end_to_end.require_same("case", [run_of(0, one), run_of(0, one), run_of(0, other)])


def test_only_full_buckets_are_padded():
    assert end_to_end.padded(10, 4, partial=False) == 12
    assert end_to_end.padded(12, 4, partial=False) == 12
    assert end_to_end.padded(10, 4, partial=True) == 10


@pytest.mark.parametrize(("rows", "calls"), [(10, 3), (8, 2), (3, 1)])
def test_the_floor_is_of_rows_and_not_of_padding(rows, calls):
    """Activations of every row, weights once a call: added up by hand."""
    config = NetworkConfig(num_res_blocks=1, channel_mult=(1, 2), attention_strides=(2,))
    every = [layer for layer in layers(config, 16) if layer.kind != "norm"]
    found = end_to_end.needed(config, 16, rows, 4, nfe=7)
    assert sum(work.flops for work in found) == 7 * rows * sum(layer.flops for layer in every)
    numbers = sum(calls * layer.weights + rows * layer.activations for layer in every)
    assert sum(work.bytes for work in found) == 7 * 4 * numbers


@pytest.fixture(scope="module")
def table(bundle, case_folder, tmp_path_factory) -> list[dict]:
    """Two processes of a small forecast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(end_to_end, "ALLOWED_REST", 0.5)  # of a second, on a machine in use
        case = Case("tiny", bundle, case_folder, "4:6", runs=2, steps="2")
        return end_to_end.rows(case, tmp_path_factory.mktemp("runs"), ROOFLINE)


def test_the_table_of_a_case_sums(table):
    by_name = {entry["contestant"]: entry for entry in table}
    assert tuple(by_name) == (*PARTS, REST, TOTAL)
    total = by_name.pop(TOTAL)
    # Of two runs the median is the mean, and means of sums are sums of means.
    assert sum(entry["ms"] for entry in by_name.values()) == pytest.approx(total["ms"], abs=0.01)
    assert sum(entry["share"] for entry in by_name.values()) == pytest.approx(1, abs=1e-3)
    assert min(entry["ms"] for name, entry in by_name.items() if name != REST) > 0
    assert total["n"] == 2


def test_the_total_says_what_was_computed(table):
    *_, total = table
    (floor,) = [entry["floor_ms"] for entry in table if entry["contestant"] == DENOISER]
    assert total["floor_ms"] == floor > 0
    assert (total["evaluations"], total["samples"], total["slices"]) == (20, 5, 2)
    assert (total["batch"], total["evaluations_with_padding"] in (20, 24)) == (4, True)
    assert total["ms_a_slice"] == pytest.approx(total["ms"] / 2, abs=0.01)
    assert total["quality"]["runs_with_the_same_bytes"] == 2
    assert total["quality"]["certified"]
    assert "spread" in total["quality"]


def test_rows_can_be_kept(table, tmp_path, capsys):
    harness.save("end_to_end", table, tmp_path)
    assert len(harness.load("end_to_end", tmp_path)) == len(table)
    capsys.readouterr()


def test_a_forecast_that_fails_is_not_timed(bundle, tmp_path):
    case = Case("tiny", bundle, tmp_path / "nobody", "4:6", steps="2")
    with pytest.raises(SystemExit, match=r"tiny: the forecast failed: .*TD3122"):
        end_to_end.run(case, tmp_path / "out")


def test_the_made_case_has_tumour_where_it_is_forecast(tmp_path):
    subject = write_case(tmp_path, size=32, depth=10, spacing_mm=2.0)
    case = read_case(subject)
    assert [(s.day, s.treatment) for s in case.sessions] == [(0, "CRT"), (60, "TMZ"), (120, "TMZ")]
    prepared = prepare(case.sessions, card_of(32, 2.0, 4).data)
    assert prepared.sources.shape == (10, 9, 32, 32)
    tumour = prepared.masks.sum((2, 3))  # (session, slice)
    assert (tumour[:, 4:6] > 0).all()
    assert (np.diff(tumour.sum(1)) > 0).all()


def test_the_made_checkpoint_is_of_its_configuration(tmp_path):
    config = NetworkConfig(channel_mult=(1, 2), attention_strides=(2,))
    loaded = load_any(write_checkpoint(tmp_path / "run", config, card_of(48)), Asked())
    assert (loaded.config, loaded.card.data.size) == (config, 48)


def test_the_made_bundle_is_compared_with_its_network_when_loaded(
    checkpoint, tmp_path, monkeypatch
):
    remember_graphs()
    monkeypatch.setattr(made_case, "denoiser_to_onnx", graphs.denoiser_to_onnx)
    made = write_bundle(checkpoint, tmp_path / "made.tadiff")
    opened = open_bundle(made)
    (denoiser,) = opened.manifest.denoisers
    assert denoiser.certificate is None
    assert load_backend("onnxruntime", opened, 1).batch == 5
    manifest = json.loads((made / "manifest.json").read_text())
    answer = made / opened.manifest.canary.file
    other = (1.5 * np.frombuffer(answer.read_bytes(), np.float32)).tobytes()
    answer.write_bytes(other)
    manifest["canary"].update(digest(other))
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NumericsError, match="from the checkpoint's"):
        load_backend("onnxruntime", open_bundle(made), 1)
