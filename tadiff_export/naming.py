"""Readable names for an exported graph: nodes by module, constants by parameter.

These are the names that certificates, the search for a bad layer and engine inspectors print.
"""

import ast
from collections import defaultdict

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch.onnx says whose a node is: "['', 'net.out', 'net.out.2', 'conv2d_9']"."""
ROOT = "net."
"""The network inside `Conditioner` and `Denoiser`."""


def name_by_module(graph: onnx.GraphProto) -> None:
    """Names nodes "module path/operator", their results alike, and constants by the parameter.

    Names are unique: the second "input_blocks.7.1/MatMul" ends in "_1", the results of a node that
    has several in ":0", ":1", ... Constants that are no parameter are named by the first node that
    takes them and what it takes them for: "input_blocks.7.1/Reshape.shape". Inputs and outputs of
    the graph keep their names. Parameters with equal values are one constant, named by the first.
    """
    constants = {i.name for i in graph.initializer}
    names = {"": ""}  # an optional input that is left out
    names |= {v.name: v.name for v in (*graph.input, *graph.output)}
    names |= {name: name.removeprefix(ROOT) for name in constants if name.startswith(ROOT)}
    fixed, taken = set(names), set(names.values())
    for node, path in zip(graph.node, _module_paths(graph), strict=True):
        node.name = _unique(f"{path}/{node.op_type}" if path else node.op_type, taken)
        for name, role in zip(node.input, _roles(node), strict=True):
            if name in constants and name not in names:
                names[name] = _unique(f"{node.name}.{role}", taken)
        for i, name in enumerate(node.output):
            if name not in fixed:
                names[name] = node.name if len(node.output) == 1 else f"{node.name}:{i}"
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for constant in graph.initializer:
        constant.name = names[constant.name]


def _unique(name: str, taken: set[str]) -> str:
    """`name`, or the first free of name_1, name_2, ...; it is then taken."""
    free, i = name, 0
    while free in taken:
        i += 1
        free = f"{name}_{i}"
    taken.add(free)
    return free


def _module_paths(graph: onnx.GraphProto) -> list[str]:
    """The module of each node; of one from no module, what is common to those it feeds."""
    users: dict[str, list[list[str]]] = defaultdict(list)
    paths = []
    for node in reversed(graph.node):
        path = _scope(node)
        if not path:
            path = _shared([user for name in node.output for user in users[name]])
        paths.append(".".join(path))
        for name in node.input:
            users[name].append(path)
    return paths[::-1]


def _scope(node: onnx.NodeProto) -> list[str]:
    """["input_blocks", "7", "1"], or nothing where torch.onnx names no module."""
    props = {p.key: p.value for p in node.metadata_props}
    scopes: list[str] = ast.literal_eval(props.get(SCOPES, "[]"))
    modules = [name for name in scopes if name.startswith(ROOT)]
    return modules[-1].removeprefix(ROOT).split(".") if modules else []


def _shared(paths: list[list[str]]) -> list[str]:
    """The longest path that all of them start with."""
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _roles(node: onnx.NodeProto) -> list[str]:
    """What a node takes each input for, in the words of the ONNX standard."""
    formal = [value.name for value in onnx.defs.get_schema(node.op_type).inputs]
    return [formal[min(i, len(formal) - 1)] for i in range(len(node.input))]
