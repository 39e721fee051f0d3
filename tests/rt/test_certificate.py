"""The record of a certificate: what it accepts, its verdict and its table."""

import math

import pytest
from pydantic import ValidationError

from tadiff_rt.certificate import Certificate, Figure, Step

GOOD = Figure(value=1e-6, allowed=1e-5)
BAD = Figure(value=2e-5, allowed=1e-5)
OUTPUTS = {name: GOOD for name in ("eps", "eps_l2", "mask_logits", "mask_logits_l2")}
ENSEMBLE = {name: GOOD for name in ("mean", "spread", "probability", "dice", "volume")}


def certificate(**changes) -> Certificate:
    steps = tuple(Step(t=t, outputs=OUTPUTS) for t in (1000.0, 12.5, 1.0))
    fields = {
        "reference": "the checkpoint in float64",
        "evaluated": "onnxruntime",
        "precision": "fp16",
        "outputs": OUTPUTS,
        "steps": steps,
        "ensemble": ENSEMBLE,
        "floor": dict.fromkeys(ENSEMBLE, 0.25),
        "samples": 4,
        "num_steps": 3,
        "probes": 4,
        **changes,
    }
    return Certificate(**fields)


@pytest.mark.parametrize(
    ("figure", "passed", "excess"),
    [
        (Figure(value=0.5, allowed=0.5), True, 1.0),
        (Figure(value=0.6, allowed=0.5), False, 1.2),
        (Figure(value=0.0, allowed=0.0), True, 0.0),
        (Figure(value=1e-30, allowed=0.0), False, math.inf),
        (Figure(value=None, allowed=0.5), False, math.inf),
    ],
)
def test_a_figure_is_judged(figure, passed, excess):
    assert (figure.passed, figure.excess) == (passed, pytest.approx(excess))


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("field", ["value", "allowed"])
def test_figures_are_finite_and_not_negative(field, value):
    with pytest.raises(ValidationError):
        Figure(**{"value": 1.0, "allowed": 1.0, field: value})


def test_every_figure_counts():
    assert certificate().passed
    for name in OUTPUTS:
        assert not certificate(outputs={**OUTPUTS, name: BAD}).passed
        step = Step(t=12.5, outputs={**OUTPUTS, name: BAD})
        steps = (Step(t=1000, outputs=OUTPUTS), step, Step(t=1, outputs=OUTPUTS))
        assert not certificate(steps=steps).passed
    for name in ENSEMBLE:
        assert not certificate(ensemble={**ENSEMBLE, name: BAD}).passed


def test_the_worst_share_of_what_is_allowed():
    assert certificate().worst == pytest.approx(0.1)
    assert certificate(ensemble={**ENSEMBLE, "dice": BAD}).worst == pytest.approx(2)
    assert len(certificate().figures()) == 4 + 3 * 4 + 5


def test_the_worst_failure_comes_first():
    worse = Figure(value=None, allowed=1)
    found = certificate(
        outputs={**OUTPUTS, "eps": BAD}, ensemble={**ENSEMBLE, "spread": worse}
    ).failures()
    assert list(found) == ["spread of the ensemble", "eps of a probe"]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 2},
        {"steps": (), "num_steps": 0},
        {"outputs": {}},
        {"outputs": {"eps": GOOD}},
        {"floor": {"mean": 0.1}},
        {"floor": dict.fromkeys(ENSEMBLE, math.nan)},
        {"ensemble": {"mean": GOOD}, "floor": {"mean": 0.1}},
        {
            "ensemble": {**ENSEMBLE, "colour": GOOD},
            "floor": dict.fromkeys([*ENSEMBLE, "colour"], 1),
        },
        {"samples": 1},
        {"precision": "fp8"},
        {"unknown": 1},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_figures_without_a_counterpart_are_refused(changes):
    with pytest.raises(ValidationError):
        certificate(**changes)


def test_tumour_figures_may_be_undefined():
    some = {name: ENSEMBLE[name] for name in ("mean", "spread", "probability")}
    record = certificate(ensemble=some, floor=dict.fromkeys(some, 0.1), notes=("mask is empty",))
    assert record.passed
    assert "note: mask is empty" in record.lines()
    assert not any("Dice" in line for line in record.lines())


def test_json_and_back():
    record = certificate(
        outputs={**OUTPUTS, "eps": Figure(value=None, allowed=1)}, kept_fp32=("a",)
    )
    assert Certificate.model_validate_json(record.model_dump_json()) == record


def test_the_table():
    lines = certificate(kept_fp32=("out.0", "out.2")).lines()
    assert lines[0] == "fp16, onnxruntime: passed"
    assert len(lines) == 3 + 2 * (1 + 3) + 1 + 5 + 2
    assert any(
        line.split() == ["mean", "image", "1.0e-06", "1.0e-05", "2.5e-01"] for line in lines
    )
    assert lines[-2:] == ["kept in fp32: out.0", "kept in fp32: out.2"]
    columns = [line.rindex("1.0e-05") for line in lines[3:11]]
    assert len(set(columns)) == 1


def test_the_table_shows_the_measure_that_is_nearer_to_its_limit():
    failed = certificate(
        outputs={
            **OUTPUTS,
            "eps_l2": BAD,
            "mask_logits": Figure(value=None, allowed=1e-5),
        }
    ).lines()
    assert failed[0] == "fp16, onnxruntime: FAILED"
    assert failed[3].split() == ["eps_l2,", "worst", "of", "4", "probes", "2.0e-05", "1.0e-05"]
    assert "not finite" in failed[4]
