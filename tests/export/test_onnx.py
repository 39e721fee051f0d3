"""Exported graphs: names, metadata, determinism, and attention in chunks."""

import os
import re
import subprocess
import sys
from contextlib import suppress

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tadiff_export.certify.exact import exact_outputs
from tadiff_export.certify.probes import make_probes
from tadiff_export.naming import SCOPES, name_by_module
from tadiff_export.onnx import (
    _chunked,
    conditioner_to_onnx,
    denoiser_to_onnx,
    operators,
    stamp,
)
from tadiff_export.split import split
from tadiff_kernels.accuracy import relative_error
from tadiff_rt.onnx_scan import scan
from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.checkpoint import load_checkpoint
from tadiff_train.network import AttentionBlock
from tests.export.conftest import feed_of

SIZE = 32
CHUNK = 96  # of 16 x 16 queries: two whole chunks and a rest


@pytest.fixture(scope="module")
def net(checkpoint):
    return load_checkpoint(checkpoint)[0]


@pytest.fixture(scope="module")
def denoiser(net):
    return denoiser_to_onnx(split(net)[1], SIZE, query_chunk=CHUNK)


@pytest.fixture(scope="module")
def in_one_piece(net):
    return denoiser_to_onnx(split(net)[1], SIZE, query_chunk=None)


@pytest.fixture(scope="module")
def conditioner(net):
    return conditioner_to_onnx(split(net)[0])


@pytest.fixture(scope="module", params=["conditioner", "denoiser", "in_one_piece"])
def model(request):
    return request.getfixturevalue(request.param)


def test_names_are_unique_and_all_there(model):
    nodes = [node.name for node in model.graph.node]
    values = [name for node in model.graph.node for name in node.output]
    constants = [i.name for i in model.graph.initializer]
    inputs = [v.name for v in model.graph.input]
    assert all(nodes)
    assert len(set(nodes)) == len(nodes)
    assert len({*values, *constants, *inputs}) == len(values + constants + inputs)


def test_names_are_those_of_modules_and_parameters(net, model):
    modules = {name for name, _ in net.named_modules()}
    parameters = dict(net.named_parameters())
    ends = {v.name for v in model.graph.output}
    for node in model.graph.node:
        path, _, operator = node.name.rpartition("/")
        assert path in modules
        assert re.fullmatch(rf"{node.op_type}(_\d+)?", operator)
        for i, value in enumerate(node.output):
            several = len(node.output) > 1
            assert value in ends or value == (f"{node.name}:{i}" if several else node.name)
    for constant in model.graph.initializer:
        if "/" in constant.name:
            assert constant.name.rpartition(".")[0] in {n.name for n in model.graph.node}
        elif constant.name in parameters:
            expected = parameters[constant.name].detach().numpy()
            np.testing.assert_array_equal(numpy_helper.to_array(constant), expected)


def test_every_parameter_of_the_denoiser_has_its_name(net, in_one_piece):
    """Random weights differ from each other, so none share a constant."""
    constants = {i.name for i in in_one_piece.graph.initializer}
    outside = ("emb", "time_embed", "days_embed", "treats_embed")
    expected = {n for n, _ in net.named_parameters() if not any(part in n for part in outside)}
    assert expected <= constants


def test_names_a_reader_would_look_for(in_one_piece):
    by_name = {node.name: node for node in in_one_piece.graph.node}
    assert by_name["input_blocks.1.0.in_layers.2/Conv"].input[1:] == [
        "input_blocks.1.0.in_layers.2.weight",
        "input_blocks.1.0.in_layers.2.bias",
    ]
    # q.k, then p.v; neither the split of the heads nor the concatenation of a skip has a scope
    assert by_name["input_blocks.3.1/Softmax"].input == ["input_blocks.3.1/MatMul"]
    assert by_name["input_blocks.3.1/MatMul_1"].input[0] == "input_blocks.3.1/Softmax"
    assert by_name["input_blocks.3.1/Split"].output[2] == "input_blocks.3.1/Split:2"
    assert by_name["output_blocks.3.0/Concat"].input[1] == "input_blocks.0.0/Conv"
    assert by_name["input_blocks.0.0/Concat"].input == ["sources", "x_t"]
    assert by_name["out.2/Conv"].input[0] == "out.1/Mul"


def test_inputs_and_outputs_keep_their_names(in_one_piece, conditioner):
    ends = {
        role: ([v.name for v in m.graph.input], [v.name for v in m.graph.output])
        for role, m in (("denoiser", in_one_piece), ("conditioner", conditioner))
    }
    assert ends == {
        "denoiser": (["sources", "x_t", "shifts"], ["eps", "mask_logits"]),
        "conditioner": (["t", "days", "treatments"], ["shifts"]),
    }


def scoped(operator, inputs, outputs, *scopes):
    node = helper.make_node(operator, inputs, outputs)
    if scopes:
        node.metadata_props.add(key=SCOPES, value=repr([*scopes, "fx_name"]))
    return node


def test_a_node_of_no_module_is_named_by_what_it_feeds():
    nodes = [
        scoped("Split", ["x"], ["a", "b"]),  # feeds 1.0.0 and 1.0.1: "1.0"
        scoped("Relu", ["x"], ["c"], ""),  # feeds 1.0.1 and 10.0: nothing in common
        scoped("Add", ["a", "b"], ["d"], "", "net.up.1.0", "net.up.1.0.0"),
        scoped("Add", ["b", "c"], ["e"], "", "net.up.1.0", "net.up.1.0.1"),
        scoped("Add", ["c", "w"], ["f"], "", "net.up.10", "net.up.10.0"),
        scoped("Sum", ["d", "e", "f"], ["y"]),  # feeds nothing
        scoped("Clip", ["x", "", "top"], ["z"], "", "net.up.1.0", "net.up.1.0.1"),
    ]
    ends = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xyz"}
    constants = [numpy_helper.from_array(np.ones(1, np.float32), n) for n in ("w", "top")]
    graph = helper.make_graph(nodes, "g", [ends["x"]], [ends["y"], ends["z"]], constants)
    name_by_module(graph)
    assert [n.name for n in graph.node] == [
        *("up.1.0/Split", "up/Relu", "up.1.0.0/Add", "up.1.0.1/Add", "up.10.0/Add"),
        *("Sum", "up.1.0.1/Clip"),
    ]
    assert graph.node[2].input == ["up.1.0/Split:0", "up.1.0/Split:1"]
    assert graph.node[6].input == ["x", "", "up.1.0.1/Clip.max"]
    assert [i.name for i in graph.initializer] == ["up.10.0/Add.B", "up.1.0.1/Clip.max"]


def test_an_export_is_the_same_bytes_every_time(net, in_one_piece):
    """And a chunk that holds all queries leaves no trace."""
    again = denoiser_to_onnx(split(net)[1], SIZE, query_chunk=1000)
    assert again.SerializeToString() == in_one_piece.SerializeToString()


@pytest.mark.slow
def test_an_export_is_the_same_bytes_in_every_process(checkpoint):
    """Order of sets and dicts differs with the hash seed."""
    code = (
        "import sys, hashlib; from pathlib import Path; "
        "from tadiff_export.onnx import conditioner_to_onnx, denoiser_to_onnx; "
        "from tadiff_export.split import split; "
        "from tadiff_train.checkpoint import load_checkpoint; "
        "conditioner, denoiser = split(load_checkpoint(Path(sys.argv[1]))[0]); "
        "models = conditioner_to_onnx(conditioner), denoiser_to_onnx(denoiser, 32); "
        "print([hashlib.sha256(m.SerializeToString()).hexdigest() for m in models])"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code, str(checkpoint)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_no_path_and_no_trace_of_the_exporter(model):
    data = model.SerializeToString()
    for foreign in (b"site-packages", b".py", b"pkg.torch", b"/home", b"/work", b"net.", b"val_"):
        assert foreign not in data


def test_stamps_are_replaced_and_survive_the_gate(conditioner):
    model = onnx.ModelProto.FromString(conditioner.SerializeToString())
    model.metadata_props.add(key="other", value="kept")
    stamp(model, {"role": "denoiser", "size": "96"})
    stamp(model, {"role": "conditioner"})
    entries = scan(model.SerializeToString(), "conditioner.onnx").metadata
    assert entries == {"other": "kept", "tadiff.role": "conditioner"}


def run(model, feed, batch, threads=1, names=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_free_dimension_override_by_name("batch", batch)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(names, feed)


@pytest.fixture(scope="module")
def feed(net):
    """Eight different rows and the shifts of one request."""
    return feed_of(net, 8, SIZE)


def test_chunks_change_rounding_only(net, denoiser, in_one_piece, feed):
    """No farther from float64 than attention in one piece; the last chunk is shorter."""
    blocks = sum(isinstance(m, AttentionBlock) for m in net.modules())
    assert operators(in_one_piece)["Softmax"] == blocks
    assert operators(denoiser)["Softmax"] == 3 * blocks
    exact = exact_outputs(net, make_probes(NoiseSchedule.linear(1000), 8, SIZE)[2])
    whole, chunked = run(in_one_piece, feed, 8), run(denoiser, feed, 8)
    for name, a, b in zip(exact, whole, chunked, strict=True):
        price = relative_error(torch.from_numpy(a), torch.from_numpy(exact[name]))
        assert (
            relative_error(torch.from_numpy(b), torch.from_numpy(exact[name]))
            <= 1.2 * price + 1e-7
        )


def test_exporting_leaves_the_network_as_it_was(net):
    blocks = [m for m in net.modules() if isinstance(m, AttentionBlock)]
    blocks[0].query_chunk = 5
    with suppress(ZeroDivisionError), _chunked(split(net)[1], 7):
        assert [block.query_chunk for block in blocks] == [7] * len(blocks)
        raise ZeroDivisionError
    restored = [block.query_chunk for block in blocks]
    blocks[0].query_chunk = None
    assert restored == [5] + [None] * (len(blocks) - 1)


def test_rows_have_the_same_bits_in_every_batch_and_on_every_number_of_threads(denoiser, feed):
    whole = run(denoiser, feed, 8)
    for batch in (1, 2, 4):
        for threads in (1, 2):
            part = {name: x[:batch] if len(x) > 1 else x for name, x in feed.items()}
            for a, b in zip(whole, run(denoiser, part, batch, threads), strict=True):
                np.testing.assert_array_equal(a[:batch], b)
