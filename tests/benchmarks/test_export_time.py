"""The breakdown of an export: it sums, says what could not be made, and refuses a wrong graph."""

import time

import pytest

from benchmarks import export_time, harness
from benchmarks.export_time import END, READ, REST, START, TOTAL
from benchmarks.floor import Roofline
from tadiff_export import graphs, workshop
from tadiff_export.certify.reference import Settings
from tadiff_export.checkpoint import Asked, load_any
from tadiff_rt.bundle import open_bundle
from tadiff_rt.errors import EngineError
from tadiff_train.network import NetworkConfig
from tests.conftest import remember_graphs

ROOFLINE = Roofline(1e9, {"fp32": 1e9})
BRIEF = Settings(samples=2, num_steps=1)


def test_stages_are_kept_each_time_and_reading_ends_with_the_first_remark():
    stages = export_time.Stages()
    time.sleep(0.01)
    stages.say("read: a checkpoint")
    for _ in range(2):
        with stages.stage("graph") as progress:
            progress(1, 2)
            time.sleep(0.01)
    stages.say("another remark")
    assert list(stages.seconds) == [READ, "graph"]
    assert [len(times) for times in stages.seconds.values()] == [1, 2]
    assert all(0.01 <= each < 1 for times in stages.seconds.values() for each in times)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def spent(checkpoint, folder) -> tuple[export_time.Times, float]:
    """The stages of a small export to ONNX, and its time."""
    remember_graphs()
    start = time.perf_counter()
    settings = {"samples": 2, "num_steps": 1}
    out = str(folder / "tiny.tadiff")
    times = export_time.exported(str(checkpoint), out, settings, ["onnx"])
    return times, time.perf_counter() - start


def test_what_is_in_no_stage_is_a_part_too(spent):
    times, elapsed = spent
    total = sum(map(sum, times.values()))
    assert 0.95 * elapsed < total <= elapsed
    assert min(map(min, times.values())) > 0
    for title in (READ, "conditioner to ONNX", "the checkpoint in float64", REST):
        assert len(times[title]) == 1
    assert "certificate of onnxruntime fp32" in times


@pytest.fixture
def table(spent, folder, checkpoint, monkeypatch) -> list[dict]:
    """Of the export above, as if a process of its own had made it; TensorRT is not here."""

    def in_process(run, out, settings, targets):
        assert (settings, targets) == (BRIEF, ["onnx"])
        (folder / "tiny.tadiff").rename(out)
        return {START: [0.5], **spent[0], END: [0.25]}

    reasons = {"tensorrt": "TD5008: not here", "tensorrt-rtx": "TD5008: not here either"}
    monkeypatch.setattr(export_time, "in_process", in_process)
    monkeypatch.setattr(export_time, "available", lambda: (["onnx"], reasons))
    monkeypatch.setattr(export_time, "WRITES", 2)
    yield export_time.bundle_rows("tiny", checkpoint, folder, BRIEF, ROOFLINE)
    (folder / "made.tadiff").rename(folder / "tiny.tadiff")


def test_the_table_sums_and_names_files_and_what_is_missing(table, folder, tmp_path, capsys):
    stages = {entry["contestant"]: entry for entry in table if entry["case"] == "tiny"}
    missing = [stages.pop(f"{name} engine, fp32") for name in ("tensorrt", "tensorrt-rtx")]
    assert [entry["not_measured"][:6] for entry in missing] == ["TD5008"] * 2
    total = stages.pop(TOTAL)
    assert sum(entry["ms"] for entry in stages.values()) == pytest.approx(total["ms"], abs=0.01)
    assert stages["certificate of onnxruntime fp32"]["times"] == 1
    assert (total["certificate_samples"], total["certificate_steps"]) == (2, 1)
    artefacts = open_bundle(folder / "made.tadiff").manifest.artefacts
    assert total["mb"] == pytest.approx(sum(a.bytes for a in artefacts) / 1e6, abs=1e-3)
    files = {entry["contestant"]: entry for entry in table if entry["case"] == "tiny/write"}
    assert files.keys() == {a.file for a in artefacts} == total["quality"].keys()
    for a in artefacts:
        assert files[a.file]["mb"] == pytest.approx(a.bytes / 1e6, abs=1e-3)
        if a.role == "denoiser":
            said = files[a.file]["quality"]
            assert said["certificate"] == "passed"
            assert said["of_allowed"] == pytest.approx(a.certificate.worst, abs=1e-4)
            assert said["eps_error"] == a.certificate.outputs["eps"].value
    harness.save("export_time", table, tmp_path)
    capsys.readouterr()


def test_an_artefact_that_did_not_run_here_says_so(bundle):
    (denoiser,) = open_bundle(bundle).manifest.denoisers
    graph = {"certificate": None, "graph_certificate": denoiser.certificate}
    engine = denoiser.model_copy(update=graph)
    said = export_time.verdict(engine)
    assert said["not_run_here"]
    assert said["of_its_graph"] == export_time.verdict(denoiser)
    bare = engine.model_copy(update={"graph_certificate": None})
    assert export_time.verdict(bare) == {"not_run_here": True}


def test_a_target_that_cannot_be_built_says_why(monkeypatch):
    def check(target, capabilities):
        if target == "tensorrt":
            raise EngineError("TD5008", "no driver")

    monkeypatch.setattr("tadiff_export.wanted.check_builder", check)
    assert export_time.available() == (
        ["onnx", "tensorrt-rtx", "torch"],
        {"tensorrt": "TD5008: no driver"},
    )


def test_a_file_is_measured_beside_copying_it(tmp_path):
    entry = export_time.write_row("case", "a.onnx", bytes(3_000_000), tmp_path, ROOFLINE, "words")
    assert (entry["case"], entry["mb"], entry["floor_kind"]) == ("case/write", 3.0, "bandwidth")
    assert entry["floor_ms"] == pytest.approx(1e3 * 6e6 / 1e9)
    assert entry["n"] == export_time.WRITES
    assert entry["ms"] > 0


@pytest.fixture
def config(checkpoint, monkeypatch) -> NetworkConfig:
    """Of the network of `checkpoint`, which is taken for every other: it is traced once."""
    remember_graphs()
    monkeypatch.setattr(export_time, "denoiser_to_onnx", graphs.denoiser_to_onnx)
    monkeypatch.setattr(export_time, "conditioner_to_onnx", workshop.conditioner_to_onnx)
    net = load_any(checkpoint, Asked()).net
    monkeypatch.setattr(export_time, "network", lambda config: net)
    return net.config


def test_a_graph_is_compared_with_pytorch(config, tmp_path, monkeypatch):
    *steps, total, written = export_time.graph_rows("tiny", config, 32, tmp_path, ROOFLINE)
    assert sum(entry["ms"] for entry in steps) == pytest.approx(total["ms"], abs=0.01)
    assert 0 < total["quality"]["difference_from_pytorch"] < 1e-4
    assert written["mb"] == total["mb"] > 1
    lower = export_time.lower_group_norms

    def wrong(model):
        model = lower(model)
        bias = next(i for i in model.graph.initializer if i.name.endswith("out.2.bias"))
        bias.raw_data = bytes(len(bias.raw_data))
        return model

    monkeypatch.setattr(export_time, "lower_group_norms", wrong)
    with pytest.raises(SystemExit, match="the graph differs from eager PyTorch"):
        export_time.graph_rows("tiny", config, 32, tmp_path, ROOFLINE)


@pytest.mark.slow
def test_a_process_of_its_own_has_a_start_and_an_end(checkpoint, tmp_path):
    start = time.perf_counter()
    times = export_time.in_process(checkpoint, tmp_path / "own.tadiff", BRIEF, ["onnx"])
    elapsed = time.perf_counter() - start
    first, *_, last = times
    assert (first, last) == (START, END)
    assert 0.5 * elapsed < sum(map(sum, times.values())) <= elapsed
    with pytest.raises(SystemExit, match="the export failed"):
        export_time.in_process(tmp_path / "nothing", tmp_path / "b.tadiff", BRIEF, ["onnx"])
