"""A bundle refuses to be used when anything about it is not as exported."""

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import onnx
import pytest

from tadiff_rt.backends import load_backend
from tadiff_rt.bundle import MANIFEST, describe_bundle, open_bundle
from tadiff_rt.errors import EngineError, ModelFileError, UsageError
from tadiff_rt.forecast import Forecaster


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy.tadiff")


def edit(bundle, **changes):
    path = bundle / MANIFEST
    manifest = json.loads(path.read_text())
    manifest.update(changes)
    path.write_text(json.dumps(manifest))


def refused(path, code):
    with pytest.raises((EngineError, ModelFileError)) as e:
        Forecaster.load(path)
    assert e.value.code == code
    return str(e.value)


@pytest.mark.parametrize("file", ["conditioner.onnx", "denoiser.fp32.onnx"])
@pytest.mark.parametrize("where", [0, 1000, -1])
def test_one_changed_byte_is_found(copy, file, where):
    path = copy / file
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    assert file in refused(copy, "TD5001")


def test_a_truncated_file_is_found(copy):
    path = copy / "conditioner.onnx"
    path.write_bytes(path.read_bytes()[:-10])
    refused(copy, "TD5001")


def test_a_missing_file_is_found(copy):
    (copy / "conditioner.onnx").unlink()
    refused(copy, "TD5001")


def test_a_link_is_not_followed(copy, bundle):
    (copy / "conditioner.onnx").unlink()
    (copy / "conditioner.onnx").symlink_to(bundle / "conditioner.onnx")
    refused(copy, "TD5001")


def test_a_path_out_of_the_bundle_is_refused(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["artefacts"][0]["file"] = "../conditioner.onnx"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    refused(copy, "TD5002")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "TD5002"),
        ("[1, 2]", "TD5002"),
        ("[" * 100_000, "TD5002"),
        ('{"format_version": "1"}', "TD5002"),
        ('{"format_version": 2}', "TD5002"),
        ('{"format_version": 1}', "TD5010"),
        ('{"format_version": 99}', "TD5010"),
        ("x" * (1 << 21), "TD5002"),
    ],
)
def test_a_bad_manifest_is_refused(copy, text, code):
    (copy / MANIFEST).write_text(text)
    refused(copy, code)


def test_an_unknown_key_is_refused(copy):
    edit(copy, colour="blue")
    assert "colour" in refused(copy, "TD5002")


def test_a_manifest_that_fits_another_network_is_refused(copy):
    edit(copy, conditioning_width=7)
    refused(copy, "TD4108")


def test_swapped_artefacts_are_refused(copy):
    """Both files whole and hashed, but each in the other's role."""
    manifest = json.loads((copy / MANIFEST).read_text())
    a, b = manifest["artefacts"]
    for key in ("file", "bytes", "sha256"):
        a[key], b[key] = b[key], a[key]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    refused(copy, "TD4108")


def edit_artefact(bundle, role, **changes):
    manifest = json.loads((bundle / MANIFEST).read_text())
    next(a for a in manifest["artefacts"] if a["role"] == role).update(changes)
    edit(bundle, artefacts=manifest["artefacts"])


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_the_denoiser_is_loaded_for_the_batch_of_the_manifest(copy, rows):
    edit_artefact(copy, "denoiser", batch=rows)
    backend = load_backend("onnxruntime", open_bundle(copy), 1)
    assert backend.batch == rows
    width = open_bundle(copy).manifest.conditioning_width
    feed = [np.zeros((rows, channels, 32, 32), np.float32) for channels in (9, 3)]
    eps, logits = backend.denoise(*feed, np.zeros((1, width), np.float32))
    assert (eps.shape, logits.shape) == ((rows, 3, 32, 32), (rows, 4, 32, 32))


def test_a_batch_is_halved_down_to_one_row(copy):
    edit_artefact(copy, "denoiser", batch=5)
    backend = load_backend("onnxruntime", open_bundle(copy), 1)
    assert [(backend.halve(), backend.batch) for _ in range(3)] == [
        (True, 2),
        (True, 1),
        (False, 1),
    ]


def test_the_runtime_is_named_without_its_threads(bundle):
    """What the bits of a result depend on; the description adds what they do not."""
    one, two = (load_backend("onnxruntime", open_bundle(bundle), n) for n in (1, 2))
    assert one.runtime == two.runtime
    assert one.description == f"{one.runtime}, 1 threads"
    assert two.description == f"{one.runtime}, 2 threads"


def test_a_graph_for_any_number_of_rows_is_not_taken_for_a_fixed_one(copy):
    edit_artefact(copy, "denoiser", dynamic_batch=False)
    refused(copy, "TD4108")


DENOISER = "denoiser.fp32.onnx"

LEVELS = {
    "solver": "dpmpp_2m",
    "start_lam": None,
    "times": [1000.0, 431.5, 1.0],
    "distance": {"these levels": 0.1},
    "spread": {"0.1": 0.98},
    "searched_on": "1 of 2 cases",
}


def test_optimised_levels_are_read(copy):
    edit(copy, optimised=[LEVELS, {**LEVELS, "start_lam": -2.0}])
    first, second = open_bundle(copy).manifest.optimised
    assert first.times == (1000.0, 431.5, 1.0)
    assert (first.start_lam, second.start_lam) == (None, -2.0)


@pytest.mark.parametrize(
    "change",
    [
        {"times": []},
        {"times": [1.0] * 101},
        {"times": [float("nan")]},
        {"times": ["soon"]},
        {"distance": {"these levels": float("inf")}},
        {"colour": "blue"},
        {"solver": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_optimised_levels_that_are_none_are_refused(copy, change):
    edit(copy, optimised=[{**LEVELS, **change}])
    assert "optimised" in refused(copy, "TD5002")


def test_manifests_written_before_there_were_optimised_levels_are_read(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest.pop("optimised")
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert open_bundle(copy).manifest.optimised == ()


def test_a_file_that_is_not_onnx_is_refused(copy):
    data = b"not an onnx model at all"
    (copy / "conditioner.onnx").write_bytes(data)
    manifest = json.loads((copy / MANIFEST).read_text())
    artefact = next(a for a in manifest["artefacts"] if a["role"] == "conditioner")
    artefact.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (copy / MANIFEST).write_text(json.dumps(manifest))
    refused(copy, "TD4104")


def test_places_that_hold_no_bundle(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (tmp_path, tmp_path / "absent", file, file / "below", "", "null\0byte"):
        refused(path, "TD5002")


def test_a_name_that_is_too_long_holds_no_bundle(tmp_path):
    assert "File name too long" in refused(tmp_path / ("x" * 300), "TD5002")


def test_a_folder_that_may_not_be_looked_into_holds_no_bundle(tmp_path, monkeypatch):
    """The error of the system is simulated: tests may run as root, who may look anywhere."""

    def denied(path, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", denied)
    assert "Permission denied" in refused(tmp_path / "m.tadiff", "TD5002")


def test_bundles_are_never_fetched():
    with pytest.raises(UsageError, match="never fetched") as e:
        open_bundle("https://example.org/model.tadiff")
    assert e.value.code == "TD3053"


def certificate_of(bundle):
    return json.loads((bundle / MANIFEST).read_text())["artefacts"][1]["certificate"]


@pytest.mark.parametrize(
    "figure",
    [
        {"value": float("nan"), "allowed": 1.0},
        {"value": 1e-7, "allowed": float("inf")},
        {"value": None, "allowed": 1.0},
        {"value": 2e-3, "allowed": 1e-3},
        {"value": 1e-7},
    ],
    ids=["nan", "unbounded", "not finite", "failed", "no limit"],
)
def test_an_artefact_without_a_passed_certificate_is_not_listed(copy, figure):
    certificate = certificate_of(copy)
    certificate["outputs"]["eps"] = figure
    edit_artefact(copy, "denoiser", certificate=certificate)
    refused(copy, "TD5002")


def test_an_artefact_is_listed_once(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    edit(copy, artefacts=[*manifest["artefacts"], manifest["artefacts"][1]])
    assert "listed twice" in refused(copy, "TD5002")


@pytest.mark.parametrize(
    "change",
    [{"batch": None}, {"format": "tpu"}, {"precision": "int4"}, {"precision": "fp16"}],
    ids=lambda change: next(iter(change)),
)
def test_an_artefact_that_contradicts_itself_is_refused(copy, change):
    edit_artefact(copy, "denoiser", **change)
    refused(copy, "TD5002")


def model_of(bundle, file):
    return onnx.load(bundle / file)


def replaced(bundle, role, model):
    """The bundle with another graph in the place of one, whole and hashed."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    artefact = next(a for a in manifest["artefacts"] if a["role"] == role)
    data = model.SerializeToString()
    (bundle / artefact["file"]).write_bytes(data)
    artefact.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def set_metadata(model, key, value):
    for entry in model.metadata_props:
        if entry.key == f"tadiff.{key}":
            entry.value = value


def unstamp(model):
    del model.metadata_props[:]


def add_custom(model):
    node = model.graph.node.add()
    node.op_type, node.domain = "Evil", "com.example"
    node.output.append("x")


def external(model):
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")


FOREIGN = {
    "of another program": (unstamp, "TD4108"),
    "of other weights": (lambda m: set_metadata(m, "weights_sha256", "0" * 64), "TD4107"),
    "of another schedule": (lambda m: set_metadata(m, "schedule", "linear 600"), "TD4108"),
    "with time from zero": (lambda m: set_metadata(m, "time", "zero-based"), "TD4108"),
    "with other channels": (lambda m: set_metadata(m, "channels", "modality-major"), "TD4108"),
    "in another precision": (lambda m: set_metadata(m, "precision", "fp16"), "TD4108"),
    "with a custom operator": (add_custom, "TD4105"),
    "with weights elsewhere": (external, "TD4101"),
    "with another input": (lambda m: setattr(m.graph.input[0], "name", "images"), "TD4105"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("role", ["conditioner", "denoiser"])
def test_a_graph_from_elsewhere_is_refused_with_the_reason(copy, kind, role):
    """Whole, hashed and listed in the manifest, but not what the manifest describes."""
    change, code = FOREIGN[kind]
    file = open_bundle(copy).manifest.conditioner.file if role == "conditioner" else DENOISER
    model = model_of(copy, file)
    change(model)
    replaced(copy, role, model)
    with pytest.raises(ModelFileError) as e:
        Forecaster.load(copy)
    assert e.value.code == code
    assert e.value.where == file


def test_an_unknown_backend_is_named(bundle):
    with pytest.raises(UsageError, match="unknown backend 'tpu'; choose from auto, onnxruntime"):
        load_backend("tpu", open_bundle(bundle))


def test_a_backend_that_is_not_installed_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    monkeypatch.delitem(__import__("sys").modules, "tadiff_rt.backends.ort", raising=False)
    with pytest.raises(EngineError, match="onnxruntime") as e:
        load_backend("onnxruntime", open_bundle(bundle))
    assert (e.value.code, e.value.fix) == ("TD5008", "pip install 'tadiff[cpu]'")


def test_the_description_says_what_it_is(bundle):
    text = describe_bundle(open_bundle(bundle))
    for part in (
        "nothing: random weights",
        "Research only",
        "32 x 32",
        "CRT, TMZ, none",
        "certificate of denoiser.fp32.onnx",
        "passed",
    ):
        assert part in text
