"""The shape of a network read off the shapes of its weights, and verified by building it.

Heads are not among it: they divide the channels of attention and change no shape.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from pydantic import ValidationError

from tadiff_rt.errors import ModelFileError
from tadiff_train.network import NetworkConfig, TaDiffNet

Shape = tuple[int, ...]

LISTED = 10
"""Keys that an error names."""
MAX_WIDTH, MAX_LEVELS, MAX_RES_BLOCKS = 65_536, 12, 32
"""Largest network that is built to be compared: names and empty tensors can claim any size."""

EMBEDDING_WIDTH = [
    f"{name}.{part}"
    for name in ("time_embed.2", "days_embed.2", "treats_embed.3")
    for part in ("weight", "bias")
]
"""Tensors whose first dimension is model_channels."""
BLOCK_WIDTH = [
    f"0.{name}.{part}"
    for name in ("in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    for part in ("weight", "bias")
]
"""Tensors of a residual block whose first dimension is its number of output channels."""
HALVING, DOUBLING, ATTENTION = (
    re.compile(text) for text in (r"0\.op\.", r"[0-9]\.conv\.", r"1\.(norm|qkv|proj_out)\.")
)


@dataclass(frozen=True)
class Inferred:
    """A NetworkConfig without its heads, in the one spelling that shapes can tell."""

    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_strides: tuple[int, ...]
    """Rising; strides that no level has are not among them."""

    def config(self, num_heads: int) -> NetworkConfig:
        """The whole shape; ValidationError where `num_heads` does not divide the channels."""
        return NetworkConfig(
            model_channels=self.model_channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            num_heads=num_heads,
            attention_strides=self.attention_strides,
        )

    def __str__(self) -> str:
        return (
            f"model_channels {self.model_channels}, channel_mult {self.channel_mult}, "
            f"num_res_blocks {self.num_res_blocks}, attention_strides {self.attention_strides}"
        )


def infer(shapes: Mapping[str, Shape]) -> Inferred:
    """The network whose state dict has exactly these keys and shapes.

    Every tensor that shows a width, and every block that shows attention, has a vote, so that one
    wrong tensor is reported as itself and not as a network of another shape.

    Args:
        shapes: published key -> shape, without prefixes.

    Raises:
        ModelFileError: TD4014, no network of this family has them. Names the keys that are
            missing, unexpected or of another shape in the nearest one.
    """
    blocks = _blocks(shapes)
    encoder, decoder = blocks["input_blocks"], blocks["output_blocks"]
    mc = _majority(shapes[key][:1] for key in EMBEDDING_WIDTH if key in shapes)
    levels = 1 + max(_holding(encoder, HALVING), _holding(decoder, DOUBLING))
    count = 1 + max((*encoder, *decoder), default=-1)
    per_level = count // levels
    fits = levels <= MAX_LEVELS and 2 <= per_level <= MAX_RES_BLOCKS + 1
    if not mc or count % levels or not fits:
        raise _no_network(shapes, mc, count, levels)
    mults, strides = [], []
    for level in range(levels):
        first = 1 + level * per_level
        inside = [encoder.get(i, {}) for i in range(first, first + per_level - 1)]
        last = (levels - level) * per_level
        inside += [decoder.get(i, {}) for i in range(last - per_level, last)]
        width = _majority(b[key][:1] for b in inside for key in BLOCK_WIDTH if key in b)
        if width is None or width % mc or not 0 < width <= MAX_WIDTH:
            what = f"level {level} has {width or 'no'} channels, not a multiple of {mc}"
            raise ModelFileError("TD4014", f"these weights fit no TaDiff network: {what}")
        mults.append(width // mc)
        if 2 * sum(any(map(ATTENTION.match, b)) for b in inside) > len(inside):
            strides.append(2**level)
    found = Inferred(mc, tuple(mults), per_level - 1, tuple(strides))
    _compare(found, shapes)
    return found


def expected_shapes(config: NetworkConfig) -> dict[str, Shape]:
    """Key -> shape of the state dict of this network, in its order; no weights are allocated."""
    with torch.device("meta"):
        net = TaDiffNet(config)
    return {key: tuple(p.shape) for key, p in net.state_dict().items()}


def _compare(found: Inferred, shapes: Mapping[str, Shape]) -> None:
    try:
        expected = expected_shapes(found.config(num_heads=1))
    except ValidationError as e:
        text = f"these weights fit no TaDiff network: {e.errors()[0]['msg']}"
        raise ModelFileError("TD4014", text) from None
    missing = [key for key in expected if key not in shapes]
    unexpected = [key for key in shapes if key not in expected]
    other = [
        f"{key} {shapes[key]} instead of {shape}"
        for key, shape in expected.items()
        if key in shapes and tuple(shapes[key]) != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    wrong = {kind: keys for kind, keys in kinds.items() if keys}
    if wrong:
        each = LISTED // len(wrong)
        raise ModelFileError(
            "TD4014",
            f"these weights fit no TaDiff network; compared with the nearest ({found}): "
            + "; ".join(
                f"{len(keys)} {kind}: {listed(keys, each)}" for kind, keys in wrong.items()
            ),
        )


def listed(names: list[str], most: int = LISTED) -> str:
    """The first names, shortened where they are long: they are a stranger's text."""
    text = ", ".join(name if len(name) <= 120 else f"{name[:117]}..." for name in names[:most])
    return text + (", ..." if len(names) > most else "")


def _blocks(shapes: Mapping[str, Shape]) -> dict[str, dict[int, dict[str, Shape]]]:
    """input_blocks and output_blocks: index -> rest of the key -> shape."""
    blocks: dict[str, dict[int, dict[str, Shape]]] = {"input_blocks": {}, "output_blocks": {}}
    for key, shape in shapes.items():
        if match := re.fullmatch(r"(input_blocks|output_blocks)\.([0-9]{1,4})\.(.+)", key):
            blocks[match[1]].setdefault(int(match[2]), {})[match[3]] = shape
    return blocks


def _holding(blocks: Mapping[int, Mapping[str, Shape]], layer: re.Pattern[str]) -> int:
    """Number of blocks with such a layer."""
    return sum(any(map(layer.match, block)) for block in blocks.values())


def _majority(votes: Iterable[Shape]) -> int | None:
    """The size most tensors have in their first dimension."""
    ranked = Counter(vote[0] for vote in votes if vote).most_common(1)
    return ranked[0][0] if ranked else None


def _no_network(
    shapes: Mapping[str, Shape], mc: int | None, count: int, levels: int
) -> ModelFileError:
    return ModelFileError(
        "TD4014",
        f"these weights fit no TaDiff network: embeddings {mc or 'absent'} wide, {count} blocks "
        f"in {levels} levels; {len(shapes)} tensors: {listed(list(shapes))}",
        fix="give a checkpoint of TaDiff; its names begin with time_embed, input_blocks, out, ...",
    )
