"""PyTorch modules -> ONNX models, through torch.export."""

import logging
import warnings
from collections import Counter

import onnx
import torch
from torch import nn

from tadiff_export.split import Conditioner, Denoiser
from tadiff_rt.errors import ModelFileError

OPSET = 21
"""The first with GroupNormalization as TaDiff computes it (fp32 statistics, weights a channel)."""

ALLOWED_OPS = {
    *("Add", "Div", "Mod", "Mul", "Sub", "Equal", "Where"),
    *("Cos", "Sin", "Sigmoid", "Softmax", "ReduceMax", "ReduceSum"),
    *("Conv", "Gemm", "MatMul", "GroupNormalization", "Resize"),
    *("Cast", "Concat", "Expand", "Reshape", "Shape", "Slice", "Split", "Transpose", "Unsqueeze"),
}
"""What our own exporter emits; anything else in a graph did not come from it."""


def conditioner_to_onnx(conditioner: Conditioner) -> onnx.ModelProto:
    """The conditioner for any number of timesteps."""
    example = (torch.tensor([1000.0, 1.0, 3.5]), torch.zeros(1, 4), torch.zeros(1, 4))
    steps = torch.export.Dim("steps", min=1, max=100_000)
    return _export(
        conditioner,
        example,
        ["t", "days", "treatments"],
        ["shifts"],
        {"t": {0: steps}, "days": None, "treatments": None},
    )


def denoiser_to_onnx(denoiser: Denoiser, size: int) -> onnx.ModelProto:
    """The denoiser for any number of images of `size` x `size`.

    Runtimes fix that number, the dimension "batch", when they load the graph: it is then as fast
    as one exported for it, and gives the same bits.
    """
    example = (
        torch.zeros(2, 9, size, size),
        torch.zeros(2, 3, size, size),
        torch.zeros(1, sum(denoiser.widths)),
    )
    batch = torch.export.Dim("batch", min=1, max=1024)
    return _export(
        denoiser,
        example,
        ["sources", "x_t", "shifts"],
        ["eps", "mask_logits"],
        {"sources": {0: batch}, "x_t": {0: batch}, "shifts": None},
    )


def _export(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    dynamic: dict[str, dict[int, torch.export.Dim] | None],
) -> onnx.ModelProto:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
            program = torch.onnx.export(
                module,
                example,
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                dynamo=True,
                verbose=False,
                optimize=True,
            )
    finally:
        log.setLevel(level)
    model = program.model_proto
    anonymise(model)
    check(model)
    return model


def anonymise(model: onnx.ModelProto) -> None:
    """Drops source lines and stack traces: they hold paths of the machine that exported."""
    model.producer_name, model.producer_version = "tadiff", ""
    model.doc_string = model.graph.doc_string = ""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.doc_string = ""
        del value.metadata_props[:]


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs in the graph."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def check(model: onnx.ModelProto) -> None:
    """The model is valid and holds only operators that our exporter emits, none of them nested.

    Raises:
        ModelFileError: it is not; names the operators.
    """
    foreign = {n.op_type for n in model.graph.node if n.domain not in ("", "ai.onnx")}
    foreign |= operators(model).keys() - ALLOWED_OPS
    if foreign or model.functions:
        raise ModelFileError(
            "TD4105",
            f"the graph holds operators outside the allow-list: {', '.join(sorted(foreign))}",
            fix="this is a defect of the exporter or of the installed torch and onnxscript",
        )
    onnx.checker.check_model(model, full_check=True)
