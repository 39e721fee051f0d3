"""OpenVINO computes what the graph states, in bits that depend on the row alone, and says why not.

Where the processor does not multiply in bf16 it is simulated by OpenVINO, slowly: bits of bf16 are
then others, and errors the same.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import onnx
import pytest

from benchmarks.made_case import write_bundle
from tadiff_export.certify.reference import Settings
from tadiff_export.checkpoint import Asked, load_any
from tadiff_export.half_graph import ENDS
from tadiff_export.wanted import Wanted
from tadiff_export.workshop import Workshop
from tadiff_rt import backends
from tadiff_rt.backends import choose as choose_module
from tadiff_rt.backends import load_backend, ov
from tadiff_rt.backends.choose import choose
from tadiff_rt.bundle import open_bundle
from tadiff_rt.console import progress_bar
from tadiff_rt.errors import EngineError, NumericsError, ResourceError, TadiffError
from tadiff_rt.forecast import Forecaster
from tests.conftest import restamp
from tests.rt.test_batches import FEW, drawn, head_runner

BATCH = 5


@pytest.fixture(scope="module")
def halves(checkpoint, tmp_path_factory):
    """The checkpoint in fp32 and bf16, which no certificate is needed for."""
    out = tmp_path_factory.mktemp("bundle") / "halves.tadiff"
    return open_bundle(write_bundle(checkpoint, out, ("fp32", "bf16")))


def feed(bundle, rows, seed=0):
    rng = np.random.default_rng(seed)
    size = bundle.manifest.card.data.size
    return {
        "sources": rng.random((rows, 9, size, size)).astype(np.float32),
        "x": rng.standard_normal((rows, 3, size, size)).astype(np.float32),
        "shifts": rng.standard_normal((1, bundle.manifest.conditioning_width)).astype(np.float32),
    }


def far(got, expected):
    """Root mean square error over that of the output, of both."""
    pairs = zip(got, expected, strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def same(got, expected):
    return all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_fp32_is_fp32_whatever_the_processor_has(halves):
    """Left to itself OpenVINO takes bf16 where that is fast."""
    right = load_backend("onnxruntime", halves, 2).denoise(**feed(halves, BATCH))
    backend = load_backend("openvino:fp32", halves, 2)
    got = backend.denoise(**feed(halves, BATCH))
    assert far(got, right) < 1e-5
    assert [y.shape for y in got] == [y.shape for y in right]
    assert all(y.dtype == np.float32 for y in got)


def test_bf16_is_within_what_a_certificate_allows(halves):
    right = load_backend("onnxruntime", halves, 2).denoise(**feed(halves, BATCH))
    got = load_backend("openvino:bf16", halves, 2).denoise(**feed(halves, BATCH))
    assert 1e-4 < far(got, right) < 3e-2


def executed(backend):
    """(kind of layer, its type) -> how many OpenVINO made of the graph."""
    graph = backend._denoiser._free[0].get_compiled_model().get_runtime_model()
    layers = [op.get_rt_info() for op in graph.get_ops()]
    return Counter((x["layerType"].astype(str), x["runtimePrecision"].astype(str)) for x in layers)


def test_every_layer_has_the_type_that_the_graph_states(halves):
    """What a certificate was given for, islands of fp32 among it, is what runs."""
    if "bf16" not in ov.precisions():
        pytest.skip("this processor has no bf16")
    graph = onnx.load(halves.path / "denoiser.bf16.onnx").graph
    made = [node for node in graph.node if node.op_type == "Conv"]
    ends = [node for node in made if node.name.startswith(ENDS)]
    found = executed(load_backend("openvino:bf16", halves, 2))
    assert found["Convolution", "bf16"] == len(made) - len(ends)
    assert found["Convolution", "f32"] == len(ends) > 0
    for kind in ("MVN", "Softmax"):
        assert found[kind, "f32"] > 0
        assert found[kind, "bf16"] == 0
    exact = executed(load_backend("openvino:fp32", halves, 2))
    assert {precision for _, precision in exact} <= {"f32", "i32"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bits_of_a_row_depend_on_no_other(halves, precision):
    backend = load_backend(f"openvino:{precision}", halves, 2)
    given = feed(halves, backend.batch)
    expected = backend.denoise(**given)
    turned = {k: v[::-1].copy() if k != "shifts" else v for k, v in given.items()}
    assert same(backend.denoise(**turned), [y[::-1] for y in expected])
    alone = {k: v[[2] * len(v)] if k != "shifts" else v for k, v in given.items()}
    assert same(backend.denoise(**alone), [y[[2] * len(y)] for y in expected])
    assert same(load_backend(f"openvino:{precision}", halves, 2).denoise(**given), expected)


def test_half_the_bucket(halves):
    backend = load_backend("openvino:bf16", halves, 2)
    given = feed(halves, backend.batch)
    expected = backend.denoise(**given)
    assert backend.halve()
    assert backend.batch == 2
    half = {k: v[:2] if k != "shifts" else v for k, v in given.items()}
    assert far(backend.denoise(**half), [y[:2] for y in expected]) < 3e-2


def test_calls_at_a_time_do_not_meet(halves):
    backend = load_backend("openvino:bf16", halves, 1)
    asked = [feed(halves, BATCH, seed) for seed in range(6)]
    expected = [backend.denoise(**one) for one in asked]
    found = {}
    gate = threading.Barrier(len(asked))

    def call(k):
        gate.wait()
        for _ in range(5):
            found.setdefault(k, []).append(backend.denoise(**asked[k]))

    threads = [threading.Thread(target=call, args=(k,)) for k in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, right in enumerate(expected):
        assert len(found[k]) == 5
        assert all(same(got, right) for got in found[k])


def test_results_outlive_the_next_call(halves):
    backend = load_backend("openvino:bf16", halves, 2)
    first = backend.denoise(**feed(halves, BATCH))
    copies = [y.copy() for y in first]
    backend.denoise(**feed(halves, BATCH, seed=1))
    assert same(first, copies)


def test_a_forecast_is_the_same_in_any_number_of_workers(halves):
    backend = load_backend("openvino:bf16", halves, 1)
    one = drawn(head_runner(backend, "ddpm"), FEW)
    assert drawn(head_runner(backend, "ddpm", workers=2), FEW) == one
    assert drawn(head_runner(backend, "ddpm"), FEW[:1])[FEW[0]] == one[FEW[0]]


def test_it_says_what_it_is(halves):
    backend = load_backend("openvino:bf16", halves, 2)
    version = ov.library().get_version().split("-")[0]
    assert backend.runtime == f"openvino {version}, CPU, bf16"
    assert backend.description == f"openvino {version}, CPU, bf16, 2 threads"
    assert (backend.name, backend.batch, backend.partial) == ("openvino", BATCH, False)
    assert backend.on_device() is None


def test_it_takes_the_threads_that_it_is_given(halves):
    backend = load_backend("openvino:bf16", halves, 1)
    compiled = backend._denoiser._free[0].get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    # Graphs that run at the same time would meet on the same cores.
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_a_graph_for_one_number_of_rows(halves, tmp_path):
    copy = shutil.copytree(halves.path, tmp_path / "static.tadiff")
    for precision in ("fp32", "bf16"):
        model = onnx.load(copy / f"denoiser.{precision}.onnx")
        for value in (*model.graph.input, *model.graph.output):
            if value.name != "shifts":
                value.type.tensor_type.shape.dim[0].dim_value = BATCH
        onnx.save(model, copy / f"denoiser.{precision}.onnx")
    raw = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(
        raw.replace('"dynamic_batch": true', '"dynamic_batch": false')
    )
    restamp(copy)
    backend = load_backend("openvino:bf16", open_bundle(copy), 2)
    assert not backend.partial
    assert not backend.halve()
    expected = load_backend("openvino:bf16", halves, 2).denoise(**feed(halves, BATCH))
    assert far(backend.denoise(**feed(halves, BATCH)), expected) < 1e-6


# Choice.


@pytest.fixture
def speeds(monkeypatch, tmp_path):
    monkeypatch.setenv("TADIFF_CACHE", str(tmp_path))
    table = {"onnxruntime": 0.02, "openvino": 0.01}
    monkeypatch.setattr(choose_module, "measure", lambda backend, bundle: table[backend.name])
    return table


def on_a_processor(monkeypatch, *able):
    monkeypatch.setattr(ov, "precisions", lambda: able)


def test_bf16_is_chosen_where_it_is_faster(halves, speeds, monkeypatch):
    on_a_processor(monkeypatch, "bf16", "fp32")
    choice = choose(halves, 2)
    assert choice.reasons[0] == "backend openvino bf16: the fastest measured"
    assert "bf16" in choice.backend.runtime
    speeds["openvino"] = 0.017  # within the scatter of short measurements


def test_what_is_hardly_faster_is_not_chosen(halves, speeds, monkeypatch):
    on_a_processor(monkeypatch, "bf16", "fp32")
    speeds["openvino"] = 0.017
    assert choose(halves, 2).backend.name == "onnxruntime"


def test_fp32_is_not_measured(halves, bundle, speeds, monkeypatch):
    on_a_processor(monkeypatch, "fp32")
    choice = choose(halves, 2)
    assert choice.backend.name == "onnxruntime"
    assert "openvino: this processor has no fast bf16" in choice.reasons
    assert (
        "openvino: bf16 alone would be faster, which the bundle does not have"
        in choose(open_bundle(bundle), 2).reasons
    )
    assert Forecaster.load(halves.path, "openvino", 2).backend.runtime.endswith("CPU")


def test_a_bundle_without_bf16_does_not_import_it(bundle):
    program = (
        "import sys; from tadiff_rt.forecast import Forecaster; "
        "Forecaster.load(sys.argv[1]); print('openvino' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(bundle)], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False\n"


def test_another_processor_makes_another_choice():
    """Of OpenVINO's own words for what this one has."""
    able = ov.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert ov.precisions() == (("bf16", "fp32") if "BF16" in able else ("fp32",))


# What goes wrong.


def test_nothing_is_reported_to_anybody(tmp_path):
    """The converter that comes with it sends its use, and keeps an identity in the home."""
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD")}
    program = (
        "import sys; from tadiff_rt.backends import ov; ov.core(); "
        "assert not [m for m in sys.modules if 'telemetry' in m], 'it was imported'; "
        "import openvino.tools.ovc as converter; assert converter.convert_model"
    )
    program, _, last = program.partition("import openvino.tools")
    subprocess.run([sys.executable, "-c", program], check=True, env=environment | places)
    assert list(tmp_path.rglob("*")) == []
    # Who wants the converter has it; not in this home.
    allowed = environment | {"CI": "true"}
    subprocess.run(
        [sys.executable, "-c", f"{program}import openvino.tools{last}"], check=True, env=allowed
    )


def failing(monkeypatch, error, *, rows=None):
    """Every call fails, or those of so many rows."""
    run = ov.Requests.run

    def fail(self, given):
        if rows is None or len(given["x_t"]) == rows:
            raise error
        return run(self, given)

    monkeypatch.setattr(ov.Requests, "run", fail)


SAID = "Exception from src/inference/src/cpp/infer_request.cpp:223:\n{}\n\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError(SAID.format("can't alloc")),
        RuntimeError(SAID.format("Failed to allocate 64880640 bytes of memory")),
        RuntimeError(SAID.format("std::bad_alloc")),
    ],
    ids=str,
)
def test_without_memory_it_goes_on_with_half(halves, monkeypatch, error):
    backend = load_backend("openvino:bf16", halves, 2)
    expected = drawn(head_runner(backend, "ddpm"), FEW)
    failing(monkeypatch, error, rows=BATCH)
    request = head_runner(backend, "ddpm")
    assert drawn(request, FEW) == expected
    assert backend.batch == 2


def test_where_even_one_row_does_not_fit(halves, monkeypatch):
    backend = load_backend("openvino:bf16", halves, 2)
    failing(monkeypatch, MemoryError("std::bad_alloc"))
    with pytest.raises(ResourceError, match="openvino could not run a batch of 5") as e:
        backend.denoise(**feed(halves, BATCH))
    assert e.value.code == "TD7001"


def test_what_fails_otherwise_is_named(halves, monkeypatch):
    backend = load_backend("openvino:bf16", halves, 2)
    failing(monkeypatch, RuntimeError(SAID.format("planted")))
    with pytest.raises(EngineError, match=r"CPU, bf16 failed on a batch of 3: planted$") as e:
        backend.denoise(**feed(halves, 3))
    assert e.value.code == "TD5022"
    assert e.value.__context__ is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(SAID.format("no such operator")), "TD5013"),
        (RuntimeError(SAID.format("Resource temporarily unavailable")), "TD7001"),
        (RuntimeError("Cannot load library: failed to map segment from shared object"), "TD7001"),
        (MemoryError(), "TD7001"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_named(halves, monkeypatch, error, code):
    def compiled(self):
        raise error

    monkeypatch.setattr(ov.Requests, "_compiled", compiled)
    with pytest.raises(TadiffError) as e:
        load_backend("openvino:bf16", halves, 2)
    assert e.value.code == code
    assert "denoiser.bf16.onnx" in e.value.message
    assert "Exception from" not in e.value.message


class Nothing:
    """OpenVINO without a CPU."""

    def __init__(self, error):
        self.error = error

    def get_property(self, *name):
        raise self.error


def test_a_library_without_a_cpu(halves, monkeypatch):
    broken = RuntimeError(SAID.format("Device with CPU name is not registered"))
    monkeypatch.setattr(ov, "core", lambda: Nothing(broken))
    said = "OpenVINO has no CPU: Device with CPU name is not registered"
    assert backends.unavailable("openvino") == said
    for asked in ("openvino", "openvino:bf16"):
        with pytest.raises(EngineError, match=said) as e:
            load_backend(asked, halves, 2)
        assert e.value.code == "TD5008"
    assert "tadiff[openvino]" in e.value.fix
    monkeypatch.setattr(ov, "core", lambda: Nothing(MemoryError()))
    with pytest.raises(ResourceError) as full:
        backends.unavailable("openvino")
    assert full.value.code == "TD7001"


def test_a_hostile_graph_does_not_reach_it(halves, tmp_path, monkeypatch):
    copy = shutil.copytree(halves.path, tmp_path / "hostile.tadiff")
    model = onnx.load(copy / "denoiser.bf16.onnx")
    model.graph.node[0].domain = "elsewhere"
    onnx.save(model, copy / "denoiser.bf16.onnx")
    restamp(copy)
    monkeypatch.setattr(ov, "Requests", None)
    with pytest.raises(TadiffError) as e:
        load_backend("openvino:bf16", open_bundle(copy), 2)
    assert e.value.code.startswith("TD41")


def test_it_runs_bf16_where_there_is_nothing_else(halves, speeds, monkeypatch):
    on_a_processor(monkeypatch, "fp32")
    kept = tuple(a for a in halves.manifest.artefacts if a.precision == "bf16" or not a.batch)
    alone = halves.manifest.model_copy(update={"artefacts": kept})
    choice = choose(dataclasses.replace(halves, manifest=alone), 2)
    assert choice.reasons[0] == "backend openvino bf16: the only one that runs here"
    assert "onnxruntime: it has no bf16 on a CPU" in choice.reasons


def test_a_written_bf16_graph_is_the_one_that_was_certified(checkpoint, halves):
    """What is certified is a simulation of it."""
    loaded = load_any(checkpoint, Asked())
    quiet = lambda title: progress_bar(title, quiet=True)  # noqa: E731
    workshop = Workshop(loaded, Wanted(), Settings(), quiet, lambda message: None)
    artefact = next(a for a in halves.manifest.denoisers if a.precision == "bf16")
    data = halves.read(artefact)
    workshop._check_written(artefact, data)
    model = onnx.load_from_string(data)
    heaviest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    heaviest.raw_data = bytes(len(heaviest.raw_data))
    with pytest.raises(NumericsError, match="openvino") as e:
        workshop._check_written(artefact, model.SerializeToString())
    assert e.value.code == "TD6011"
