"""What no certificate covers is compared with the checkpoint's own answer when it is loaded."""

import json
import shutil

import numpy as np
import pytest

from tadiff_rt.backends import load_backend, open_backend
from tadiff_rt.bundle import MANIFEST, open_bundle
from tadiff_rt.canary import canary_bytes, canary_inputs, require_canary
from tadiff_rt.errors import EngineError, NumericsError


@pytest.fixture(scope="module")
def loaded(bundle):
    return load_backend("onnxruntime", open_bundle(bundle), 1)


class Planted:
    """A backend whose outputs are wrong."""

    def __init__(self, inner, change):
        self._inner, self._change = inner, change
        self.description, self.batch = inner.description, inner.batch

    def condition(self, *args):
        return self._inner.condition(*args)

    def denoise(self, *args):
        return self._change(*(a.copy() for a in self._inner.denoise(*args)))


def artefact_of(bundle):
    return open_bundle(bundle).manifest.denoisers[0]


def test_the_right_answer_passes(bundle, loaded):
    require_canary(open_bundle(bundle), artefact_of(bundle), loaded)


def last_row_wrong(eps, logits):
    eps[-1] *= 1.01
    return eps, logits


@pytest.mark.parametrize(
    "change",
    [
        lambda eps, logits: (eps * 1.002, logits),
        lambda eps, logits: (eps, logits + 0.01 * np.abs(logits).max()),
        lambda eps, logits: (eps, logits[:, ::-1]),
        lambda eps, logits: (eps * np.nan, logits),
        last_row_wrong,
    ],
    ids=["scaled", "shifted", "channels", "nan", "one row"],
)
def test_a_wrong_answer_is_refused(bundle, loaded, change):
    with pytest.raises(NumericsError, match=r"denoiser\.fp32\.onnx") as e:
        require_canary(open_bundle(bundle), artefact_of(bundle), Planted(loaded, change))
    assert e.value.code == "TD6011"


def test_half_precision_has_more_room(bundle, loaded):
    half = artefact_of(bundle).model_copy(update={"precision": "fp16"})
    slightly = Planted(loaded, lambda eps, logits: (eps * 1.01, logits))
    require_canary(open_bundle(bundle), half, slightly)


def test_it_is_asked_only_of_what_has_no_certificate(bundle, monkeypatch):
    asked = []
    monkeypatch.setattr("tadiff_rt.canary.require_canary", lambda *args: asked.append(args))
    opened, artefact = open_bundle(bundle), artefact_of(bundle)
    open_backend("onnxruntime", artefact, opened, 1)
    assert asked == []
    open_backend("onnxruntime", artefact.model_copy(update={"certificate": None}), opened, 1)
    assert len(asked) == 1


def test_a_certificate_of_a_cpu_says_nothing_of_other_backends(bundle_of_targets, monkeypatch):
    asked = []
    monkeypatch.setattr("tadiff_rt.canary.require_canary", lambda *args: asked.append(args))
    opened = open_bundle(bundle_of_targets)
    for artefact in opened.manifest.denoisers:
        assert artefact.certificate
        open_backend("torch" if artefact.format == "torch" else "onnxruntime", artefact, opened, 1)
    assert [args[1].label for args in asked] == ["onnx fp16", "torch fp32", "torch fp16"]


@pytest.mark.parametrize("allowed", [0.0, 0.5, float("inf"), float("nan")])
def test_a_canary_that_allows_everything_is_refused(bundle, tmp_path, allowed):
    copy = shutil.copytree(bundle, tmp_path / "copy.tadiff")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["canary"]["allowed"]["fp32"] = allowed
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(EngineError) as e:
        open_bundle(copy)
    assert e.value.code == "TD5002"


def test_a_changed_canary_is_found(bundle, loaded, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy.tadiff")
    data = bytearray((copy / "canary.bin").read_bytes())
    data[5] ^= 1
    (copy / "canary.bin").write_bytes(data)
    with pytest.raises(EngineError) as e:
        require_canary(open_bundle(copy), artefact_of(copy), loaded)
    assert e.value.code == "TD5001"


def test_a_canary_of_another_size_is_none(bundle, loaded, tmp_path):
    import hashlib

    copy = shutil.copytree(bundle, tmp_path / "copy.tadiff")
    data = (copy / "canary.bin").read_bytes()[:-4]
    (copy / "canary.bin").write_bytes(data)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["canary"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match="no canary"):
        require_canary(open_bundle(copy), artefact_of(copy), loaded)


def test_inputs_are_the_same_everywhere():
    one, two = canary_inputs(40, (0.0, 1.0, 2.0)), canary_inputs(40, (0.0, 1.0, 2.0))
    np.testing.assert_array_equal(one.sources, two.sources)
    np.testing.assert_array_equal(one.x, two.x)
    assert one.treatments == (0.0, 1.0, 2.0, 0.0)
    assert 0 <= one.sources.min() < one.sources.max() <= 1
    assert one.sources[0, :, 0, 0].max() == 0
    assert one.x.shape == (1, 3, 40, 40)


def test_the_file_is_little_endian_float32():
    data = canary_bytes(np.ones((1, 3, 2, 2), np.float32), np.zeros((1, 4, 2, 2), np.float32))
    assert len(data) == 4 * 7 * 4
    assert data[:4] == b"\x00\x00\x80?"
