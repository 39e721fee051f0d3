"""The fused network as exported PyTorch programs (.pt2): what the torch backend compiles and runs.

Their custom operators (`tadiff_kernels.operators`) stay calls: the machine that runs a program
decides whether they are Triton kernels or plain PyTorch.

`torch.export.save` keeps the pickled example inputs and the stack traces of the exporting machine.
Neither is part of the program: the first would be code to whoever loads it, the second are paths.
"""

import io
import json
import warnings
import zipfile
from typing import Any

import torch
from torch import nn

from tadiff_export.fuse import FusedConditioner, FusedDenoiser
from tadiff_rt.pt2_scan import EXAMPLES, MODEL
from tadiff_rt.sampling import MAX_STEPS
from tadiff_train.network import NUM_SESSIONS

TRACES = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node")
ASSERTION = torch.ops.aten._assert_tensor_metadata.default
"""Of dtype and device of a value: it would tie the program to the device of the export."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time of a zip entry: the same program gives the same bytes."""

MAX_BATCH = 1024


def denoiser_to_program(denoiser: FusedDenoiser, size: int) -> bytes:
    """The denoiser for any number of images of `size` x `size`, as a PT2 archive."""
    example = (
        torch.zeros(2, 9, size, size),
        torch.zeros(2, 3, size, size),
        torch.zeros(1, sum(denoiser.widths)),
    )
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    return _program(denoiser, example, {"sources": {0: batch}, "x_t": {0: batch}, "shifts": None})


def conditioner_to_program(conditioner: FusedConditioner) -> bytes:
    """The conditioner for any number of timesteps of one request, as a PT2 archive."""
    example = (torch.ones(2), torch.zeros(1, NUM_SESSIONS), torch.zeros(1, NUM_SESSIONS))
    steps = torch.export.Dim("steps", min=1, max=MAX_STEPS)
    return _program(conditioner, example, {"t": {0: steps}, "days": None, "treatments": None})


def _program(
    module: nn.Module, example: tuple[torch.Tensor, ...], dynamic: dict[str, Any]
) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        program = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
        for node in list(program.graph.nodes):
            if node.target is ASSERTION:
                program.graph.erase_node(node)
            for key in TRACES:
                node.meta.pop(key, None)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    return _rewritten(buffer.getvalue())


def _rewritten(data: bytes) -> bytes:
    """The archive without example inputs, in a fixed order and with fixed times."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as kept:
        for name in sorted(archive.namelist()):
            content = archive.read(name)
            if name.endswith(EXAMPLES):
                content = b""
            elif name.endswith(MODEL):
                content = json.dumps(json.loads(content), sort_keys=True).encode()
            kept.writestr(zipfile.ZipInfo(name, EPOCH), content)
    return out.getvalue()
