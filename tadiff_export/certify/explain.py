"""Why an artefact failed its certificate, in one paragraph."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from tadiff_export.certify.bisect import first_broken
from tadiff_export.certify.diagnose import conditioner_faults, denoiser_faults
from tadiff_export.certify.graph import parameters
from tadiff_export.certify.symptoms import Symptoms, condition_of, find_symptoms, shifts_of
from tadiff_export.certify.weights import compare_weights
from tadiff_rt.backends import Backend
from tadiff_rt.card import ModelCard
from tadiff_rt.certificate import Certificate, Precision
from tadiff_train.network import TaDiffNet

SHOWN = 3
"""Figures that the paragraph names."""

OUTPUT_LIMITS: dict[Precision, float] = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 3e-2}
"""Relative root mean square error of the denoiser that is no fault."""

NODE_LIMITS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Relative maximum error of an intermediate value that is no fault."""

WEIGHT_LIMITS: dict[Precision, float] = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 8e-3}
"""Relative difference of a weight that is rounding."""

CANNOT_RUN = (
    ort_errors.NotImplemented,
    ort_errors.InvalidGraph,
    ort_errors.InvalidArgument,
    ort_errors.Fail,
    ort_errors.RuntimeException,
)


def explain(
    net: TaDiffNet,
    card: ModelCard,
    backend: Backend,
    model: onnx.ModelProto | None,
    exact_model: onnx.ModelProto | None,
    certificate: Certificate,
) -> str:
    """What is wrong with an artefact: the worst figures, known faults, weights, the first node.

    Args:
        net, card: the checkpoint.
        backend: the artefact.
        model: the denoiser that `backend` runs, where it is an ONNX graph.
        exact_model: the denoiser as the checkpoint exports it in fp32.
        certificate: the one that failed.
    """
    precision = certificate.precision
    symptoms = find_symptoms(net, card, backend)
    limit = OUTPUT_LIMITS[precision]
    wrong: list[str] = []
    node: list[str] = []
    if model is not None and exact_model is None:
        wrong = compare_weights(*_shared(model, net), WEIGHT_LIMITS[precision])
    if model is not None and exact_model is not None:
        weights = parameters(model), parameters(exact_model)
        wrong = compare_weights(*weights, WEIGHT_LIMITS[precision])
        node = _first_node(model, exact_model, net, symptoms, NODE_LIMITS[precision])
    named = conditioner_faults(net, symptoms)
    # Weights that are wrong explain what else would have to be guessed.
    named += wrong or denoiser_faults(net, card, symptoms, limit, layer_by_layer=not node)
    named += node
    sentences = [_figures(certificate), *named]
    if len(sentences) == 1:
        sentences.append(_nothing_found(symptoms, limit))
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences) + "."


def _shared(
    model: onnx.ModelProto, net: TaDiffNet
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """The weights of a graph that the checkpoint has in the same number, and the checkpoint's."""
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    got = {
        name: value.reshape(state[name].shape)
        for name, value in parameters(model).items()
        if name in state and value.size == state[name].size
    }
    return got, {name: state[name] for name in got}


def _figures(certificate: Certificate) -> str:
    failures = certificate.failures()
    worst = [
        f"{name} is "
        + ("not finite" if f.value is None else f"{f.value:.1e} off, {f.allowed:.1e} is allowed")
        for name, f in list(failures.items())[:SHOWN]
    ]
    more = len(failures) - len(worst)
    return "; ".join(worst) + (f"; {more} more" if more else "")


def _first_node(
    model: onnx.ModelProto,
    exact_model: onnx.ModelProto,
    net: TaDiffNet,
    symptoms: Symptoms,
    limit: float,
) -> list[str]:
    probe = symptoms.probe
    at = np.arange(_static_rows(model)) % len(probe.x)
    feeds: dict[str, NDArray[np.float32]] = {
        "sources": probe.sources[at],
        "x_t": probe.x[at],
        "shifts": shifts_of(net, condition_of(probe)).numpy(),
    }
    try:
        broken = first_broken(model, exact_model, feeds, limit=limit)
    except CANNOT_RUN as error:
        return [f"onnxruntime cannot run the graph node by node: {str(error)[:200]}"]
    return [broken.text()] if broken else []


def _static_rows(model: onnx.ModelProto) -> int:
    """Rows that a graph takes; 1 where it takes any number."""
    sources = next(value for value in model.graph.input if value.name == "sources")
    return sources.type.tensor_type.shape.dim[0].dim_value or 1


def _nothing_found(symptoms: Symptoms, limit: float) -> str:
    if not np.isfinite(symptoms.error):
        return "the denoiser gives NaN or infinity even for a probe"
    if symptoms.error > limit:
        return "it is none of the known faults"
    return (
        "conditioner and denoiser agree with the checkpoint on every probe: the fault lies in "
        "how calls depend on each other, or shows along a trajectory alone"
    )
