"""Which nodes of a half-precision graph go back to fp32 until the graph passes.

First those whose values half precision cannot hold, then the first and the last layer, then,
one at a time, the module of the first node that is wrong.
"""

from collections.abc import Callable, Iterable

import numpy as np
import onnx
from numpy.typing import NDArray

from tadiff_export.certify.bisect import first_broken
from tadiff_export.certify.explain import NODE_LIMITS
from tadiff_export.certify.reference import Reference
from tadiff_export.half_effects import ranges, risky
from tadiff_rt.certificate import Precision

Feed = dict[str, NDArray[np.float32]]

ATTEMPTS = 5
"""Graphs that are tried before half precision is given up."""
ENDS = ("input_blocks.0.0/", "out.2/")
"""Modules of the first and the last layer."""


def probe_feeds(
    reference: Reference,
    condition: Callable[
        [NDArray[np.float64], Iterable[float], Iterable[float]], NDArray[np.float32]
    ],
) -> list[Feed]:
    """One image of every probe of a certificate, as inputs of the denoiser."""
    feeds = []
    for point, (days, treatments) in zip(reference.probes, reference.conditions, strict=True):
        shifts = condition(np.array([point.t]), days, treatments)
        feeds.append({"sources": point.sources[:1], "x_t": point.x[:1], "shifts": shifts})
    return feeds


def too_large(exact: onnx.ModelProto, feeds: list[Feed]) -> frozenset[str]:
    """Nodes whose values are outside what half precision should hold, on any of the feeds."""
    return frozenset(risky(exact, ranges(exact, feeds)))


def more_in_fp32(
    kept: frozenset[str],
    rounded: onnx.ModelProto,
    exact: onnx.ModelProto,
    feed: Feed,
    precision: Precision,
) -> frozenset[str]:
    """`kept` and the next nodes; `kept` alone where there is nothing to add.

    Args:
        rounded: the graph that did not pass, simulated in fp32.
        exact: the graph in fp32.
    """
    names = [node.name for node in exact.graph.node]
    ends = kept | {name for name in names if name.startswith(ENDS)}
    if ends != kept:
        return ends
    broken = first_broken(rounded, exact, feed, limit=NODE_LIMITS[precision])
    if broken is None:
        return kept
    # With what is inside the module: a softmax is wrong because of the queries and keys it gets.
    module = broken.node.partition("/")[0]
    return kept | {name for name in names if name.startswith((f"{module}/", f"{module}."))}
