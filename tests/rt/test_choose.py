"""`--backend auto` takes the fastest artefact that runs here, says why, and remembers."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import tadiff_rt.backends as backends
import tadiff_rt.backends.choose as choose_module
from tadiff_rt.backends import (
    BACKENDS,
    Kind,
    find_artefact,
    load_backend,
    open_backend,
    unavailable,
)
from tadiff_rt.backends.choose import choose, machine, measure
from tadiff_rt.bundle import open_bundle
from tadiff_rt.cache import VARIABLE
from tadiff_rt.errors import EngineError, NumericsError, ResourceError, UsageError
from tadiff_rt.forecast import Forecaster

LOADED = {}
"""Backends by name and artefact: PyTorch takes a second to load a program."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def opened(bundle_of_targets):
    return open_bundle(bundle_of_targets)


@pytest.fixture
def speeds(monkeypatch):
    """Measured seconds by backend name; every measurement is counted."""
    table = {"onnxruntime": 0.02, "torch": 0.05}
    asked = []

    def fake(backend, bundle):
        asked.append(backend.name)
        return table[backend.name]

    def once(name, artefact, bundle, threads):
        key = (name, artefact.sha256)
        if key not in LOADED:
            LOADED[key] = open_backend(name, artefact, bundle, threads)
        return LOADED[key]

    monkeypatch.setattr(choose_module, "measure", fake)
    monkeypatch.setattr(choose_module, "open_backend", once)
    return table, asked


def test_the_fastest_is_taken_and_the_others_are_named(opened, speeds):
    choice = choose(opened, 1)
    assert choice.backend.name == "onnxruntime"
    text = "\n".join(choice.reasons)
    assert choice.reasons[0] == "backend onnxruntime fp32: the fastest measured"
    assert "onnxruntime fp32: 20.0 ms an image" in text
    assert "torch fp32: 50.0 ms an image" in text


def test_another_is_taken_where_it_is_faster(opened, speeds):
    speeds[0]["torch"] = 0.01
    assert choose(opened, 1).backend.name == "torch"


def test_speeds_are_remembered(opened, speeds):
    table, asked = speeds
    choose(opened, 1)
    assert sorted(asked) == ["onnxruntime", "torch"]
    table["torch"] = 0.001  # a disturbed second measurement would change the choice
    assert choose(opened, 1).backend.name == "onnxruntime"
    assert len(asked) == 2


def test_other_threads_and_other_machines_are_measured_anew(opened, speeds, monkeypatch):
    _, asked = speeds
    choose(opened, 1)
    choose(opened, 2)
    assert len(asked) == 4
    monkeypatch.setattr(choose_module, "machine", lambda: "another")
    choose(opened, 1)
    assert len(asked) == 6


@pytest.mark.parametrize("content", ["", "{", '{"seconds": "nan"}', '{"seconds": -1}', "[]"])
def test_a_damaged_record_is_measured_anew(opened, speeds, cache, content):
    _, asked = speeds
    choose(opened, 1)
    for file in (cache / "speed").iterdir():
        assert json.loads(file.read_text())["seconds"] > 0
        file.write_text(content)
    choose(opened, 1)
    assert len(asked) == 4


def test_without_a_cache_everything_is_measured_each_time(opened, speeds, cache):
    _, asked = speeds
    cache.write_text("a file where the folder should be")
    choose(opened, 1)
    choose(opened, 1)
    assert len(asked) == 4


def test_a_cache_that_others_can_write_to_is_refused(opened, speeds, cache):
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    with pytest.raises(EngineError) as e:
        choose(opened, 1)
    assert e.value.code == "TD5007"


def test_what_fails_to_load_is_passed_over_and_named(opened, speeds, monkeypatch):
    def broken(name, artefact, bundle, threads):
        if name == "onnxruntime":
            raise NumericsError("TD6011", "planted")
        return load(name, artefact, bundle, threads)

    load = choose_module.open_backend
    monkeypatch.setattr(choose_module, "open_backend", broken)
    choice = choose(opened, 1)
    assert choice.backend.name == "torch"
    assert "onnxruntime fp32: TD6011: planted" in choice.reasons


def test_a_damaged_artefact_is_not_passed_over(bundle_of_targets, tmp_path, speeds):
    copy = shutil.copytree(bundle_of_targets, tmp_path / "copy.tadiff")
    path = copy / "denoiser.fp32.pt2"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    LOADED.clear()
    with pytest.raises(EngineError) as e:
        choose(open_bundle(copy), 1)
    assert e.value.code == "TD5001"


def test_nothing_can_run(opened, monkeypatch):
    monkeypatch.setattr(choose_module, "unavailable", lambda name: "planted")
    with pytest.raises(EngineError, match="planted") as e:
        choose(opened, 1)
    assert e.value.code == "TD5012"


def test_one_artefact_is_not_measured(bundle, speeds):
    choice = choose(open_bundle(bundle), 1)
    assert speeds[1] == []
    assert "the only one that runs here" in choice.reasons[0]
    assert any(reason.startswith("onnxruntime-cuda: ") for reason in choice.reasons)


def test_half_precision_is_not_considered_on_a_cpu(opened, speeds):
    assert "fp16" in {a.precision for a in opened.manifest.denoisers}
    assert not any("onnxruntime fp16" in reason for reason in choose(opened, 1).reasons)


def test_a_measurement_is_of_one_image(bundle):
    backend = load_backend("onnxruntime", open_bundle(bundle), 1)
    rows = []

    class Counting:
        batch = backend.batch

        def denoise(self, sources, x, shifts):
            rows.append(len(x))
            return backend.denoise(sources, x, shifts)

    seconds = measure(Counting(), open_bundle(bundle))
    assert 0 < seconds < 1
    assert rows == [backend.batch] * (1 + choose_module.CALLS)


def test_a_bucket_that_takes_a_second_is_a_quarter_an_image(bundle, monkeypatch):
    class Slow:
        batch = 4

        def denoise(self, sources, x, shifts):
            clock[0] += 1.0

    clock = [0.0]
    monkeypatch.setattr(choose_module.time, "perf_counter", lambda: clock[0])
    assert measure(Slow(), open_bundle(bundle)) == 0.25


def test_a_little_faster_is_not_enough(opened, speeds):
    """Short measurements scatter, and what is chosen is remembered."""
    speeds[0]["torch"] = 0.017
    assert choose(opened, 1).backend.name == "onnxruntime"


def test_what_was_remembered_and_no_longer_opens_is_passed_over(opened, speeds, monkeypatch):
    speeds[0]["torch"] = 0.001
    assert choose(opened, 1).backend.name == "torch"
    load = choose_module.open_backend

    def broken(name, artefact, bundle, threads):
        if name == "torch":
            raise ResourceError("TD7001", "planted")
        return load(name, artefact, bundle, threads)

    monkeypatch.setattr(choose_module, "open_backend", broken)
    choice = choose(opened, 1)
    assert choice.backend.name == "onnxruntime"
    assert "torch fp32: TD7001: planted" in choice.reasons


def test_a_broken_package_is_unavailable(monkeypatch):
    def failing(name):
        raise ImportError("libcuda.so.1 is missing")

    monkeypatch.setattr(backends.importlib, "import_module", failing)
    assert "libcuda.so.1 is missing" in unavailable("torch")


def only(opened, *labels, **update):
    """The bundle with these denoisers alone."""
    kept = tuple(
        a.model_copy(update=update) if a.label in labels else a
        for a in opened.manifest.artefacts
        if a.label in labels or a.batch is None
    )
    manifest = opened.manifest.model_copy(update={"artefacts": kept})
    return dataclasses.replace(opened, manifest=manifest)


def test_half_precision_runs_on_a_cpu_where_there_is_nothing_else(opened, speeds):
    choice = choose(only(opened, "onnx fp16"), 1)
    assert choice.reasons[0] == "backend onnxruntime fp16: the only one that runs here"


def test_a_bundle_that_no_cpu_can_run_says_so(opened, speeds, monkeypatch):
    gone = {"openvino": "the package openvino is not installed"}
    monkeypatch.setattr(choose_module, "unavailable", lambda n: gone.get(n) or unavailable(n))
    said = "onnxruntime: it has no bf16 on a CPU; openvino: the package openvino is not installed"
    with pytest.raises(EngineError, match=said) as e:
        choose(only(opened, "onnx fp16", precision="bf16"), 1)
    assert e.value.code == "TD5012"


def test_threads_of_torch_do_not_leak(opened):
    import torch

    before = torch.get_num_threads()
    backend = load_backend("torch", opened, before + 1)
    assert torch.get_num_threads() == before
    assert f"{before + 1} threads" in backend.runtime


def test_the_machine_is_named():
    assert "cores" in machine()


def test_a_forecaster_says_why(bundle_of_targets, bundle, speeds):
    assert Forecaster.load(bundle_of_targets).choice[0].startswith("backend onnxruntime fp32")
    assert Forecaster.load(bundle, backend="onnxruntime").choice == ()


@pytest.mark.parametrize(
    ("asked", "name", "precision"),
    [
        ("onnxruntime", "onnxruntime", "fp32"),
        ("onnxruntime:fp16", "onnxruntime", "fp16"),
        ("onnxruntime-cuda", "onnxruntime-cuda", "fp16"),
        ("onnxruntime-cuda:fp32", "onnxruntime-cuda", "fp32"),
        ("torch", "torch", "fp32"),
    ],
)
def test_a_backend_is_asked_for_by_name_and_precision(opened, asked, name, precision):
    found, artefact = find_artefact(asked, opened)
    assert (found, artefact.precision) == (name, precision)


def test_a_precision_that_is_not_there_is_refused(opened):
    with pytest.raises(UsageError, match="'bf16'; it has fp32, fp16") as e:
        find_artefact("onnxruntime:bf16", opened)
    assert e.value.code == "TD3061"


def test_a_format_that_is_not_there_is_refused(bundle):
    with pytest.raises(EngineError, match="torch artefacts") as e:
        find_artefact("torch", open_bundle(bundle))
    assert e.value.code == "TD5012"


def test_a_provider_that_is_not_there_says_so(opened):
    with pytest.raises(EngineError, match="no CUDAExecutionProvider") as e:
        load_backend("onnxruntime-cuda", opened)
    assert e.value.code == "TD5008"


def test_a_provider_that_onnxruntime_quietly_replaces_is_an_error(opened, monkeypatch):
    """onnxruntime logs that a provider cannot start and takes the CPU."""
    import onnxruntime as ort

    import tadiff_rt.backends.ort as module

    class Quiet(ort.InferenceSession):
        def get_providers(self):
            return ["SomethingElse"]

    monkeypatch.setattr(module.ort, "InferenceSession", Quiet)
    with pytest.raises(EngineError, match="not on CPUExecutionProvider") as e:
        load_backend("onnxruntime", opened, 1)
    assert e.value.code == "TD5008"


def test_every_backend_has_a_module_and_an_extra():
    import importlib
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for name, kind in BACKENDS.items():
        assert kind.extra in project["optional-dependencies"], name
        module = importlib.import_module(kind.module)
        assert callable(module.load)
        assert callable(module.unavailable)


def test_a_package_that_is_missing_is_named(monkeypatch):
    kind = dataclasses.replace(BACKENDS["torch"], packages=("surely_not_installed",))
    monkeypatch.setitem(backends.BACKENDS, "torch", kind)
    assert unavailable("torch") == "the package surely_not_installed is not installed"
    assert isinstance(kind, Kind)


def test_torch_computes_what_onnxruntime_computes(opened):
    size = opened.manifest.card.data.size
    one, other = (load_backend(name, opened, 1) for name in ("onnxruntime", "torch"))
    assert one.batch == other.batch
    rng = np.random.default_rng(0)
    sources = rng.random((one.batch, 9, size, size), np.float32)
    x = rng.standard_normal((one.batch, 3, size, size), np.float32)
    shifts = [b.condition(np.array([300.0]), (0, 9, 40, 90), (0, 0, 1, 2)) for b in (one, other)]
    np.testing.assert_array_equal(*shifts)
    for a, b in zip(
        one.denoise(sources, x, shifts[0]), other.denoise(sources, x, shifts[0]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(a).max())
    assert (other.halve(), other.batch) == (True, 2)
    half = other.denoise(sources[:2], x[:2], shifts[0])
    whole = one.denoise(sources, x, shifts[0])
    np.testing.assert_allclose(half[0], whole[0][:2], rtol=0, atol=1e-4 * np.abs(half[0]).max())
