"""Every fault that an export can have fails the certificate, and the explanation names it.

The faults are made apart from `tadiff_export.certify`: in the exported graph, in the network at
export, or around a backend.
"""

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import nn

from tadiff_export.certify.artefact import certify_artefact
from tadiff_export.certify.explain import explain
from tadiff_export.certify.reference import Reference, Settings
from tadiff_export.onnx import conditioner_to_onnx, denoiser_to_onnx
from tadiff_export.split import split
from tadiff_train.checkpoint import load_checkpoint
from tadiff_train.network import TaDiffNet

pytestmark = pytest.mark.slow

SIZE, BUCKET = 32, 4
SETTINGS = Settings(samples=2, num_steps=3)


class Loaded:
    """Two graphs on onnxruntime, as the runtime's backend runs them."""

    name = runtime = description = "graphs"
    batch = BUCKET
    partial = False

    def __init__(self, conditioner, denoiser):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._conditioner, self._denoiser = (
            ort.InferenceSession(m.SerializeToString(), options) for m in (conditioner, denoiser)
        )

    def condition(self, t, days, treatments):
        feed = {"t": t, "days": [days], "treatments": [treatments]}
        return self._conditioner.run(None, {k: np.float32(v) for k, v in feed.items()})[0]

    def denoise(self, sources, x, shifts):
        assert len(sources) == len(x) == BUCKET
        return self._denoiser.run(None, {"sources": sources, "x_t": x, "shifts": shifts})

    def halve(self):
        return False


class Export:
    """A checkpoint, its right graphs and its reference."""

    def __init__(self, net, card, conditioner, denoiser):
        self.net, self.card = net, card
        self.conditioner, self.denoiser = conditioner, denoiser
        self.reference = Reference.build(net, card, SETTINGS)

    def backend(self, conditioner=None, denoiser=None):
        return Loaded(conditioner or self.conditioner, denoiser or self.denoiser)

    def certify(self, backend, precision="fp32"):
        return certify_artefact(
            self.net,
            self.card,
            backend,
            precision=precision,
            evaluated="a test",
            reference=self.reference,
        )

    def explain(self, backend, model=None, precision="fp32"):
        certificate = self.certify(backend, precision)
        assert not certificate.passed
        exact = self.denoiser if model is not None else None
        return explain(self.net, self.card, backend, model, exact, certificate)


@pytest.fixture(scope="module")
def tiny(checkpoint):
    net, sidecar = load_checkpoint(checkpoint)
    conditioner, denoiser = split(net)
    graphs = conditioner_to_onnx(conditioner), denoiser_to_onnx(denoiser, SIZE)
    return Export(net, sidecar.card, *graphs)


@pytest.fixture(scope="module")
def loud(tiny):
    """The same network with a first convolution 5000 times as large: squares overflow."""
    net, denoiser = copy.deepcopy(tiny.net), copied(tiny.denoiser)
    for p in net.input_blocks[0].parameters():
        p.data *= 5000
    for end in ("weight", "bias"):
        change(f"input_blocks.0.0.{end}", lambda w: 5000 * w)(denoiser)
    return Export(net, tiny.card, tiny.conditioner, denoiser)


def test_the_right_graphs_pass(tiny, loud):
    for export in (tiny, loud):
        assert export.certify(export.backend()).passed


class Around:
    """A backend with a fault in what it is given or gives."""

    def __init__(self, inner, condition=None, feed=None, read=None):
        self._inner = inner
        self.name = self.runtime = self.description = "planted"
        self.batch, self.partial = inner.batch, inner.partial
        self._condition = condition or (lambda t, days, codes: (t, days, codes))
        self._feed = feed or (lambda sources, x: (sources, x))
        self._read = read or (lambda eps, logits, x: (eps, logits))

    def condition(self, t, days, treatments):
        asked = self._condition(t, np.array(days), np.array(treatments))
        return self._inner.condition(*asked)

    def denoise(self, sources, x, shifts):
        fed = (np.ascontiguousarray(a, np.float32) for a in self._feed(sources, x))
        eps, logits = self._inner.denoise(*fed, shifts)
        return self._read(eps, logits, x)

    def halve(self):
        return False


def modality_major(sources):
    n, _, h, w = sources.shape
    return sources.reshape(n, 3, 3, h, w).swapaxes(1, 2).reshape(n, 9, h, w)


def t1_and_t1c(images):
    n, c, h, w = images.shape
    return images.reshape(n, c // 3, 3, h, w)[:, :, [1, 0, 2]].reshape(images.shape)


def with_row(outputs, row, value):
    changed = [o.copy() for o in outputs]
    for output in changed:
        output[row] = value(output)
    return changed


AROUND = {
    # what the explanation says: what is done to (t, days, treatments), inputs or outputs
    "timesteps counted from 0": {"condition": lambda t, d, c: (t - 1, d, c)},
    "timesteps in reverse order": {"condition": lambda t, d, c: (t[::-1], d, c)},
    "timesteps rounded down": {"condition": lambda t, d, c: (np.trunc(t), d, c)},
    "days given as weeks": {"condition": lambda t, d, c: (t, d / 7, c)},
    "days since the previous session": {
        "condition": lambda t, d, c: (t, d - np.concatenate([[0], d[:-1]]), c)
    },
    "treatment codes shifted by one (+1)": {"condition": lambda t, d, c: (t, d, c + 1)},
    "treatments not multiplied by 10": {"condition": lambda t, d, c: (t, d, 0.1 * (c + 1) - 1)},
    "source days and treatments in reverse": {
        "condition": lambda t, d, c: (t, [d[2], d[1], d[0], d[3]], [c[2], c[1], c[0], c[3]])
    },
    "source days in reverse": {"condition": lambda t, d, c: (t, [d[2], d[1], d[0], d[3]], c)},
    "sessions swapped: sources in the order 2, 1, 3": {
        "feed": lambda s, x: (np.concatenate([s[:, 3:6], s[:, :3], s[:, 6:]], 1), x)
    },
    "noisy target in slot 0": {"feed": lambda s, x: (np.concatenate([x, s[:, :6]], 1), s[:, 6:])},
    "modality-major": {"feed": lambda s, x: (modality_major(s), x)},
    "source images transposed": {"feed": lambda s, x: (s.swapaxes(2, 3), x)},
    "every image transposed": {
        "feed": lambda s, x: (s.swapaxes(2, 3), x.swapaxes(2, 3)),
        "read": lambda e, m, x: (e.swapaxes(2, 3), m.swapaxes(2, 3)),
    },
    "every image mirrored": {
        "feed": lambda s, x: (s[..., ::-1], x[..., ::-1]),
        "read": lambda e, m, x: (e[..., ::-1], m[..., ::-1]),
    },
    "T1 and T1c swapped in the sources": {"feed": lambda s, x: (t1_and_t1c(s), x)},
    "T1 and T1c swapped throughout": {
        "feed": lambda s, x: (t1_and_t1c(s), t1_and_t1c(x)),
        "read": lambda e, m, x: (t1_and_t1c(e), m),
    },
    "images rounded to half precision": {
        "feed": lambda s, x: (s.astype(np.float16), x.astype(np.float16))
    },
    "images scaled to -1": {"feed": lambda s, x: (2 * s - 1, x)},
    "mask channels rotated by 1": {
        "read": lambda e, m, x: (e, np.concatenate([m[:, 3:], m[:, :3]], 1))
    },
    "mask probabilities instead of logits": {"read": lambda e, m, x: (e, 1 / (1 + np.exp(-m)))},
    "sign of the noise": {"read": lambda e, m, x: (-e, m)},
    "one row dropped": {"read": lambda e, m, x: with_row((e, m), -1, lambda o: 0 * o[0])},
    "rows repeated": {"read": lambda e, m, x: with_row((e, m), 1, lambda o: o[0])},
    "not finite": {"read": lambda e, m, x: (np.where(e > e.max() * 0.99, np.nan, e), m)},
}


@pytest.mark.parametrize("name", AROUND)
def test_a_fault_around_the_graphs_is_named(name, tiny):
    assert name in tiny.explain(Around(tiny.backend(), **AROUND[name]))


class Opaque(Loaded):
    """Hands out shifts in a form of its own."""

    def condition(self, t, days, treatments):
        return super().condition(t, np.array(days) / 7, treatments)[:, ::-1][:, :, None]

    def denoise(self, sources, x, shifts):
        return super().denoise(sources, x, np.ascontiguousarray(shifts[:, ::-1, 0]))


def test_a_conditioner_that_shows_no_shifts_is_judged_by_the_outputs(tiny):
    said = tiny.explain(Opaque(tiny.conditioner, tiny.denoiser))
    assert "The artefact computes what the checkpoint does with days given as weeks" in said


class XZero(Loaded):
    """The denoiser of another parametrisation."""

    def __init__(self, export):
        super().__init__(export.conditioner, export.denoiser)
        self._schedule = export.card.schedule.build()
        self._levels = {}

    def condition(self, t, days, treatments):
        shifts = super().condition(t, days, treatments)
        for time, row in zip(t, shifts, strict=True):
            self._levels[row[:8].tobytes()] = self._schedule.alpha_bar(float(time))
        return shifts

    def denoise(self, sources, x, shifts):
        eps, logits = super().denoise(sources, x, shifts)
        nearest = min(
            self._levels,
            key=lambda k: np.abs(np.frombuffer(k, np.float32) - shifts[0, :8]).max(),
        )
        ab = self._levels[nearest]
        return ((x - (1 - ab) ** 0.5 * eps) / ab**0.5).astype(np.float32), logits


def test_another_parametrisation_is_named(tiny):
    assert "x0 instead of noise" in tiny.explain(XZero(tiny))


def copied(model):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def initialiser(model, end):
    return next(t for t in model.graph.initializer if t.name.endswith(end))


def change(end, function):
    """Edits one weight of a graph."""

    def edit(model):
        tensor = initialiser(model, end)
        array = np.ascontiguousarray(function(numpy_helper.to_array(tensor)))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return edit


def exchange(first, second):
    def edit(model):
        a, b = initialiser(model, first), initialiser(model, second)
        a.name, b.name = b.name, a.name

    return edit


def attribute(op, name, value):
    """Sets an attribute of every node of an operator."""

    def edit(model):
        for node in model.graph.node:
            if node.op_type == op:
                kept = [a for a in node.attribute if a.name != name]
                del node.attribute[:]
                node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def with_weight(model, op, end):
    return next(
        n for n in model.graph.node if n.op_type == op and any(i.endswith(end) for i in n.input)
    )


def asymmetric(model):
    for node in model.graph.node:
        for a in node.attribute:
            if a.name == "pads" and any(i.endswith("op.weight") for i in node.input):
                a.ints[:] = [0, 0, 2, 2]  # all the padding below and to the right
                a.ints[:] = [0, 0, 1, 1]


def bilinear(model):
    for node in model.graph.node:
        if node.op_type == "Resize":
            for a in node.attribute:
                if a.name == "mode":
                    a.s = b"linear"
                if a.name == "coordinate_transformation_mode":
                    a.s = b"half_pixel"


def reads_skip(model, concat):
    """Whether a norm and a convolution over both parts follow."""
    readers = [n.op_type for n in model.graph.node if concat.output[0] in n.input]
    return readers.count("GroupNormalization") == readers.count("Conv") == 1


def skip_first(model):
    for node in model.graph.node:
        if node.op_type == "Concat" and reads_skip(model, node):
            node.input[:] = node.input[::-1]


def plain_softmax(model):
    """Divides by 1 in place of 1 + max p."""
    one = numpy_helper.from_array(np.float32(1.0), "plain_one")
    model.graph.initializer.append(one)
    for node in model.graph.node:
        if node.op_type == "Div":
            node.input[1] = "plain_one"


def scores_not_scaled(model):
    softmax = [n for n in model.graph.node if n.op_type == "Softmax"]
    made = {o: n for n in model.graph.node for o in n.output}
    for node in softmax:
        product = made[node.input[0]]
        for name in product.input:
            scaled = made[name]
            while scaled.op_type != "Mul":
                scaled = made[scaled.input[0]]
            one = f"one_{scaled.name}"
            model.graph.initializer.append(numpy_helper.from_array(np.float32(1.0), one))
            scaled.input[1] = one


def drop_bias_input(end):
    def edit(model):
        node = with_weight(model, "Conv", end)
        del node.input[2:]

    return edit


def shift_dropped(model):
    """The second residual block adds 0. In the first, whose channels are groups of one, a constant
    makes no difference: the norm after it removes it."""
    split_node = next(n for n in model.graph.node if n.op_type == "Split" and "shifts" in n.input)
    zeros = numpy_helper.from_array(np.zeros((1, 64), np.float32), "no_shift")
    model.graph.initializer.append(zeros)
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name == split_node.output[1]:
                node.input[k] = "no_shift"


def shifts_exchanged(model):
    """Those of blocks 1 and 2, both 64 wide."""
    split_node = next(n for n in model.graph.node if n.op_type == "Split" and "shifts" in n.input)
    outputs = list(split_node.output)
    outputs[1], outputs[2] = outputs[2], outputs[1]
    split_node.output[:] = outputs


def relu(model):
    """x sigmoid(x) becomes max(x, 0)."""
    sigmoids = {n.output[0]: n for n in model.graph.node if n.op_type == "Sigmoid"}
    for node in model.graph.node:
        if node.op_type == "Mul" and any(i in sigmoids for i in node.input):
            gate = next(i for i in node.input if i in sigmoids)
            value = sigmoids[gate].input[0]
            node.op_type = "Relu"
            node.input[:] = [value]
    used = {i for n in model.graph.node for i in n.input}
    for node in [n for n in model.graph.node if n.op_type == "Sigmoid"]:
        if node.output[0] not in used:
            model.graph.node.remove(node)


def rounded(nodes, value):
    """Appends a round trip through half precision, which onnxruntime keeps.

    Operators in half precision it computes in fp32, and drops the casts between them."""
    half, back = f"{value}_half", f"{value}_back"
    nodes.append(helper.make_node("Cast", [value], [half], to=onnx.TensorProto.FLOAT16))
    nodes.append(helper.make_node("Cast", [half], [back], to=onnx.TensorProto.FLOAT))
    return back


def half_norm(node, two_pass):
    """Group norm with every result rounded to half precision."""
    x, weight, bias = node.input
    name, nodes = node.output[0], []

    def run(op, inputs, suffix, **attributes):
        nodes.append(helper.make_node(op, inputs, [f"{name}_{suffix}"], **attributes))
        return rounded(nodes, f"{name}_{suffix}")

    nodes.append(helper.make_node("Shape", [x], [f"{name}_shape"]))
    nodes.append(helper.make_node("Reshape", [rounded(nodes, x), "grouped"], [f"{name}_grouped"]))
    grouped = f"{name}_grouped"
    mean = run("ReduceMean", [grouped, "last"], "mean")
    centred = run("Sub", [grouped, mean], "centred")
    if two_pass:
        square = run("Mul", [centred, centred], "square")
        variance = run("ReduceMean", [square, "last"], "variance")
    else:
        square = run("Mul", [grouped, grouped], "square")
        squares = run("ReduceMean", [square, "last"], "squares")
        variance = run("Sub", [squares, run("Mul", [mean, mean], "mean2")], "variance")
    deviation = run("Sqrt", [run("Add", [variance, "half_eps"], "stable")], "deviation")
    normal = run("Div", [centred, deviation], "normal")
    nodes.append(helper.make_node("Reshape", [normal, f"{name}_shape"], [f"{name}_full"]))
    for part in (weight, bias):
        shape = "per_channel3" if "norm." in part else "per_channel4"
        nodes.append(helper.make_node("Reshape", [part, shape], [f"{name}_{part}"]))
    scaled = f"{name}_scaled"
    nodes.append(helper.make_node("Mul", [f"{name}_full", f"{name}_{weight}"], [scaled]))
    nodes.append(helper.make_node("Add", [scaled, f"{name}_{bias}"], [name]))
    return nodes


def norms_in_half(model, two_pass):
    constants = {
        "grouped": np.array([0, 32, -1]),
        "last": np.array([2]),
        "half_eps": np.float32(1e-5),
        "per_channel3": np.array([1, -1, 1]),
        "per_channel4": np.array([1, -1, 1, 1]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    nodes = []
    for node in model.graph.node:
        nodes += half_norm(node, two_pass) if node.op_type == "GroupNormalization" else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


IN = "input_blocks.3.0.out_layers.3"
KINDS = {
    # what the explanation says: (edit of the graph, what it says of weights or nodes)
    "plain softmax": (plain_softmax, "the first wrong node"),
    "attention scores that are not scaled": (scores_not_scaled, "constant input 1 is 1"),
    "group norm eps 0.001": (attribute("GroupNormalization", "epsilon", 1e-3), "epsilon is 0.001"),
    "16 groups": (attribute("GroupNormalization", "num_groups", 16), "num_groups is 16"),
    "SiLU replaced by ReLU": (relu, "Relu"),
    "bilinear instead of nearest": (bilinear, "mode is linear"),
    "skip connections concatenated before": (skip_first, "Concat"),
    "asymmetric padding": (asymmetric, "pads is [0, 0, 1, 1]"),
}
LAYERS = {
    # the same, where only a single layer is at fault
    f"the bias of {IN} dropped": (drop_bias_input(f"{IN}.weight"), "it has 2 inputs"),
    "the bias of out.2 dropped": (change("out.2.bias", lambda w: 0 * w), "it was dropped"),
    f"the weight of {IN} transposed": (
        change(f"{IN}.weight", lambda w: w.swapaxes(0, 1)),
        f"weight {IN}.weight is transposed",
    ),
    f"the kernels of {IN} transposed": (
        change(f"{IN}.weight", lambda w: w.swapaxes(2, 3)),
        f"weight {IN}.weight is transposed",
    ),
    "the kernels of out.2 flipped": (
        change("out.2.weight", lambda w: w[:, :, ::-1, ::-1]),
        "has its kernels flipped",
    ),
    "the shift of residual block 1 dropped": (
        shift_dropped,
        "the artefact has Unsqueeze(constant, constant), the checkpoint Unsqueeze(Split",
    ),
    "the shifts of residual blocks 1 and 2 exchanged": (shifts_exchanged, "the first wrong node"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_fault_of_the_denoiser_is_named(name, tiny):
    edit, evidence = KINDS[name]
    model = copied(tiny.denoiser)
    edit(model)
    said = tiny.explain(tiny.backend(denoiser=model), model)
    assert name in said
    assert evidence.lower() in said.lower()


@pytest.mark.parametrize("name", LAYERS)
def test_a_fault_of_one_layer_is_found_in_its_graph(name, tiny):
    edit, evidence = LAYERS[name]
    model = copied(tiny.denoiser)
    edit(model)
    assert evidence.lower() in tiny.explain(tiny.backend(denoiser=model), model).lower()


@pytest.mark.parametrize(
    "name",
    [
        name if name == "the bias of out.2 dropped" else pytest.param(name, marks=pytest.mark.slow)
        for name in LAYERS
    ],
)
def test_a_fault_of_one_layer_is_named_without_a_graph(name, tiny):
    model = copied(tiny.denoiser)
    LAYERS[name][0](model)
    assert name in tiny.explain(tiny.backend(denoiser=model))


WEIGHTS = {
    # faults of weights that only a look into the graph can name
    "out.0.weight is 2 times the checkpoint's": change("out.0.weight", lambda w: 2 * w),
    "they were swapped": exchange(
        "middle_block.0.in_layers.2.weight", "middle_block.2.in_layers.2.weight"
    ),
    "differs from the checkpoint in 1 of 73728": change(
        "output_blocks.0.0.in_layers.2.weight",
        lambda w: w + np.where(np.arange(w.size) == 77, 1, 0).reshape(w.shape).astype(w.dtype),
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_changed_weight_is_named(name, tiny):
    model = copied(tiny.denoiser)
    WEIGHTS[name](model)
    assert name in tiny.explain(tiny.backend(denoiser=model), model)


@pytest.mark.parametrize(
    ("two_pass", "said"),
    [
        (True, "two passes"),
        pytest.param(False, "one pass", marks=pytest.mark.slow),
    ],
)
def test_norms_in_half_precision_are_named(two_pass, said, loud):
    """Where squares overflow, to a constant or to NaN. Elsewhere it is rounding like any other."""
    model = copied(loud.denoiser)
    norms_in_half(model, two_pass)
    text = loud.explain(loud.backend(denoiser=model), model, "fp16")
    assert f"group norm statistics in half precision (float16, in {said})" in text
    assert "The first wrong node is Conv" in text
    assert ("not finite" in text) is not two_pass


def swap_cosines(model):
    for node in model.graph.node:
        node.op_type = {"Cos": "Sin", "Sin": "Cos"}.get(node.op_type, node.op_type)


def half_angles(model):
    """Frequencies and angles of time and days in half precision."""
    made = {o: n for n in model.graph.node for o in n.output}
    nodes = []
    for node in model.graph.node:
        angle = made.get(node.input[0]) if node.op_type in ("Cos", "Sin") else None
        if angle is not None and angle.op_type == "Mul":
            product = f"{node.name}_angle"
            inputs = []
            for k, name in enumerate(angle.input):
                nodes.append(helper.make_node("Identity", [name], [f"{product}_{k}"]))
                inputs.append(rounded(nodes, f"{product}_{k}"))
            nodes.append(helper.make_node("Mul", inputs, [product]))
            node.input[0] = rounded(nodes, product)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def target_zero(model):
    """The comparison with the slot numbers finds slot 0."""
    node = next(n for n in model.graph.node if n.op_type == "Equal")
    slots = next(t for t in model.graph.initializer if t.name in node.input)
    array = (numpy_helper.to_array(slots) + 3) % 4
    slots.CopyFrom(numpy_helper.from_array(array, slots.name))


def blocks_exchanged(model):
    node = model.graph.node[-1]
    assert node.op_type == "Concat"
    node.input[1], node.input[2] = node.input[2], node.input[1]


CONDITIONER = {
    "cosine and sine swapped in the embedding of time and days and treatments": swap_cosines,
    "embeddings in half precision (float16)": half_angles,
    "target slot 0 instead of 3": target_zero,
    "shifts of residual block 1 are those of block 2: shifts exchanged": blocks_exchanged,
    "the bias of time_embed.0 dropped": change("time_embed.0.bias", lambda w: 0 * w),
    "the bias of output_blocks.0.0.emb_layers.1 dropped": change(
        "output_blocks.0.0.emb_layers.1.bias", lambda w: 0 * w
    ),
    "shifts of residual block 2 are others": change(
        "middle_block.0.emb_layers.1.weight", lambda w: 2 * w
    ),
}


@pytest.mark.parametrize("name", CONDITIONER)
def test_a_fault_of_the_conditioner_is_named(name, tiny):
    model = copied(tiny.conditioner)
    CONDITIONER[name](model)
    said = tiny.explain(tiny.backend(conditioner=model))
    assert name in said
    assert "The artefact computes" not in said  # the denoiser is right


@pytest.mark.parametrize(
    "name", ["embeddings in half precision (float16)", "target slot 0 instead of 3"]
)
def test_half_precision_does_not_hide_the_conditioner(name, tiny):
    """Its budget is wider, but shifts are fp32 in artefacts of every precision."""
    model = copied(tiny.conditioner)
    CONDITIONER[name](model)
    assert name in tiny.explain(tiny.backend(conditioner=model), precision="fp16")


def miller(q, k, v, query_chunk=None):
    """exp(x) / (1 + sum exp(x)), as the paper that TaDiff cites has it."""
    scores = (q * q.shape[1] ** -0.25).transpose(1, 2) @ (k * k.shape[1] ** -0.25)
    e = torch.exp(scores)
    return (e / (1 + e.sum(-1, keepdim=True)) @ v.transpose(1, 2)).transpose(1, 2)


def across_heads(self, x):
    """q of all heads, then k of all, then v."""
    from tadiff_train.network import attend

    b, c, h, w = x.shape
    flat = x.reshape(b, c, h * w)
    q, k, v = (
        part.reshape(b * self.num_heads, -1, h * w)
        for part in self.qkv(self.norm(flat)).chunk(3, dim=1)
    )
    out = attend(q, k, v).reshape(b, c, h * w)
    return (flat + self.proj_out(out)).reshape(b, c, h, w)


class Silu(nn.Module):
    def forward(self, x):
        return F.gelu(x)


def gelu(net):
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, Silu())


def four_heads(net):
    for module in net.modules():
        if hasattr(module, "num_heads"):
            module.num_heads = 4


def other_weights(net):
    rng = torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.data = p.data + 0.02 * p.data.std() * torch.randn(p.shape, generator=rng)


AT_EXPORT = {
    "softmax1 of Miller 2023": ("attend", miller),
    "head layout 'q k v head'": ("AttentionBlock.forward", across_heads),
    "4 attention heads instead of 2": four_heads,
    "SiLU replaced by GELU": gelu,
    "the weights of another checkpoint": other_weights,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_EXPORT)
def test_a_fault_of_the_exported_network_is_named(name, tiny, monkeypatch):
    net: TaDiffNet = copy.deepcopy(tiny.net)
    fault = AT_EXPORT[name]
    with monkeypatch.context() as patch:
        patch.setattr("tadiff_export.onnx.check", lambda model: None)  # it refuses some at once
        if callable(fault):
            fault(net)
        else:
            patch.setattr(f"tadiff_train.network.{fault[0]}", fault[1])
        model = denoiser_to_onnx(split(net)[1], SIZE)
    backend = tiny.backend(denoiser=model)
    said = tiny.explain(backend, model)
    assert name in said
