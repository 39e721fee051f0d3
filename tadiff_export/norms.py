"""Group norms in a form that onnxruntime computes accurately.

ONNX defines GroupNormalization by a function whose variance is E[x^2] - E[x]^2, and onnxruntime
1.32 runs that function: with a mean of ten standard deviations three digits are lost, with a
hundred five, and group norms over one channel, as the first level of the published network has,
see such means. InstanceNormalization is a kernel that subtracts the mean first.
"""

from collections.abc import Iterator

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

GROUP_NORM = "GroupNormalization"


def lower_group_norms(model: ModelProto) -> ModelProto:
    """A copy of the denoiser with InstanceNormalization over groups in place of every group norm.

    Values keep their names; the new nodes are called after the module of the norm.

    Args:
        model: norms in fp32, as `precision.to_half` leaves them; only the batch may be dynamic.
    """
    lowered = ModelProto()
    lowered.CopyFrom(model)
    graph = lowered.graph
    constants = {i.name: i for i in graph.initializer}
    shapes = _shapes(model)
    nodes: list[NodeProto] = []
    added: dict[str, TensorProto] = {}
    for node in graph.node:
        if node.op_type == GROUP_NORM:
            nodes += _instance_norm(node, shapes[node.input[0]], constants, added)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [i for i in (*graph.initializer, *added.values()) if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(lowered, full_check=True)
    return lowered


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    """Dimensions of every value, 0 for the batch."""
    plain = ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        if node.op_type == GROUP_NORM:  # onnx infers nothing behind it
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    graph = onnx.shape_inference.infer_shapes(plain, check_type=True, strict_mode=True).graph
    return {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output, *graph.value_info)
    }


def _instance_norm(
    node: NodeProto,
    shape: list[int],
    constants: dict[str, TensorProto],
    added: dict[str, TensorProto],
) -> Iterator[NodeProto]:
    """The nodes that replace one group norm; their constants go into `added`."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    groups, epsilon = int(attributes["num_groups"]), float(attributes["epsilon"])
    x, weight, bias = node.input
    module = node.name.rpartition("/")[0]

    def make(op: str, inputs: list[str], output: str, name: str, **options: object) -> NodeProto:
        made = helper.make_node(op, inputs, [output], f"{module}/{name}", **options)
        made.metadata_props.extend(node.metadata_props)
        return made

    def constant(name: str, tensor: TensorProto) -> str:
        tensor.name = name
        added[name] = tensor
        return name

    if groups == shape[1]:
        yield make(
            "InstanceNormalization",
            [x, weight, bias],
            node.output[0],
            "InstanceNormalization",
            epsilon=epsilon,
        )
        return
    ones, zeros = (
        constant(
            f"groups.{what}", helper.make_tensor("", TensorProto.FLOAT, [groups], [v] * groups)
        )
        for what, v in (("ones", 1.0), ("zeros", 0.0))
    )
    folded = constant(
        "groups.shape", helper.make_tensor("", TensorProto.INT64, [3], [0, groups, -1])
    )
    dims = [0, *shape[1:]]
    unfolded = constant(
        f"groups.{'x'.join(map(str, dims[1:]))}",
        helper.make_tensor("", TensorProto.INT64, [len(dims)], dims),
    )
    across = (-1, *[1] * (len(shape) - 2))
    scale, offset = (
        constant(
            f"{name}.channels{len(shape)}",  # norms of images and of rows may share a weight
            numpy_helper.from_array(numpy_helper.to_array(constants[name]).reshape(across)),
        )
        for name in (weight, bias)
    )
    steps = [f"{module}/{step}" for step in ("folded", "normalised", "unfolded", "scaled")]
    yield make("Reshape", [x, folded], steps[0], "Reshape")
    yield make(
        "InstanceNormalization",
        [steps[0], ones, zeros],
        steps[1],
        "InstanceNormalization",
        epsilon=epsilon,
    )
    yield make("Reshape", [steps[1], unfolded], steps[2], "Reshape_1")
    yield make("Mul", [steps[2], scale], steps[3], "Mul")
    yield make("Add", [steps[3], offset], node.output[0], "Add")
