"""PyTorch modules -> ONNX models, through torch.export."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import nn

from tadiff_export.naming import name_by_module
from tadiff_export.norms import GROUP_NORM
from tadiff_export.split import Conditioner, Denoiser
from tadiff_rt.errors import ModelFileError
from tadiff_rt.onnx_scan import ALLOWED_OPS
from tadiff_train.network import AttentionBlock

OPSET = 21
"""The first with GroupNormalization as TaDiff computes it (fp32 statistics, weights a channel)."""
QUERY_CHUNK = 192
"""Rows of a score matrix at a time on a CPU, where they stay in its cache: 32/2/4 at 192 x 192
gains 5 to 20 % over all rows at once, at 96 x 96 nothing (`benchmarks.attention_forms`)."""
STAMP = "tadiff."
"""Starts the key of what `stamp` writes."""


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


def denoiser_to_onnx(
    denoiser: Denoiser, size: int, *, query_chunk: int | None = QUERY_CHUNK
) -> onnx.ModelProto:
    """The denoiser for any number of images of `size` x `size`.

    Runtimes fix that number, the dimension "batch", when they load the graph: it is then as fast
    as one exported for it, and gives the same bits.

    Args:
        query_chunk: see `tadiff_train.network.attend`. None, attention in one piece, is for
            builders that recognise and fuse it; results differ by rounding only.
    """
    example = (
        torch.zeros(2, 9, size, size),
        torch.zeros(2, 3, size, size),
        torch.zeros(1, sum(denoiser.widths)),
    )
    batch = torch.export.Dim("batch", min=1, max=1024)
    with _chunked(denoiser, query_chunk):
        return _export(
            denoiser,
            example,
            ["sources", "x_t", "shifts"],
            ["eps", "mask_logits"],
            {"sources": {0: batch}, "x_t": {0: batch}, "shifts": None},
        )


@contextmanager
def _chunked(module: nn.Module, rows: int | None) -> Iterator[None]:
    """Attention with `rows` queries at a time while the module is exported."""
    blocks = [m for m in module.modules() if isinstance(m, AttentionBlock)]
    before = [block.query_chunk for block in blocks]
    for block in blocks:
        block.query_chunk = rows
    try:
        yield
    finally:
        for block, chunk in zip(blocks, before, strict=True):
            block.query_chunk = chunk


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
    _drop_splits_in_one(model.graph)
    name_by_module(model.graph)
    anonymise(model)
    check(model)
    return model


def _drop_splits_in_one(graph: onnx.GraphProto) -> None:
    """A score matrix that fits one chunk leaves a Split with one result, which runtimes copy."""
    splits = [n for n in graph.node if n.op_type == "Split" and len(n.output) == 1]
    same = {split.output[0]: split.input[0] for split in splits}
    sizes = {name for split in splits for name in split.input[1:]}
    for split in splits:
        graph.node.remove(split)
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
    used = {name for node in graph.node for name in node.input}
    for constant in [i for i in graph.initializer if i.name in sizes - used]:
        graph.initializer.remove(constant)


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


def stamp(model: onnx.ModelProto, contract: dict[str, str]) -> None:
    """Writes what the model is and expects, as metadata "tadiff.KEY"; replaces earlier stamps."""
    kept = [p for p in model.metadata_props if not p.key.startswith(STAMP)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in contract.items():
        model.metadata_props.add(key=STAMP + key, value=value)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs in the graph."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def check(model: onnx.ModelProto) -> None:
    """The model is valid and holds only operators that our exporter emits, none of them nested.

    Raises:
        ModelFileError: it is not; names the operators.
    """
    foreign = {n.op_type for n in model.graph.node if n.domain not in ("", "ai.onnx")}
    foreign |= operators(model).keys() - ALLOWED_OPS - {GROUP_NORM}
    if foreign or model.functions:
        raise ModelFileError(
            "TD4105",
            f"the graph holds operators outside the allow-list: {', '.join(sorted(foreign))}",
            fix="this is a defect of the exporter or of the installed torch and onnxscript",
        )
    onnx.checker.check_model(model, full_check=True)
