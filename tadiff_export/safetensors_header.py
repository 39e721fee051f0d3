"""The header of a safetensors file, checked before the library sees the file.

The format (https://github.com/huggingface/safetensors, "Format"): eight bytes with the length N
of the header, N bytes of JSON that give dtype, shape and place of every tensor, and the numbers.
It has no checksum: what can be checked is that the header describes the file completely and once.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from tadiff_rt.errors import ModelFileError
from tadiff_rt.readers.tables import quoted

MAX_HEADER_BYTES = 4_000_000
"""The format allows 100 MB; a TaDiff needs 45 kB, and parsed JSON takes 30 times its length."""
MAX_BRACKETS = 200_000
"""Lists and objects in the header: three a tensor. Bounds how deep they can be nested, too."""
MAX_DIMS = 8
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64"), 8),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
"""Bytes a number takes; other dtypes, such as F8_E4M3 and C64, are not read."""
METADATA = "__metadata__"


def check_header(data: bytes, name: str) -> None:
    """Checks that the header of a safetensors file describes its bytes completely and once.

    Args:
        data: the whole file.
        name: what messages call it.

    Raises:
        ModelFileError: TD4016.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        what = (
            f"the header has {length} bytes, the file {len(data)}; it is cut off or no such file"
        )
        raise refusal(what, name)
    if length > MAX_HEADER_BYTES:
        raise refusal(f"the header has {length} bytes, at most {MAX_HEADER_BYTES} are read", name)
    raw = data[8 : 8 + length]
    brackets = raw.count(b"{") + raw.count(b"[")
    if brackets > MAX_BRACKETS:
        raise refusal(f"the header has {brackets} lists and objects", name)
    if not raw.startswith(b"{"):
        raise refusal(f"the header begins with {raw[:1]!r}, expected '{{'", name)
    ranges = [
        _range(key, value, name)
        for key, value in _parsed(raw, name).items()
        if key != METADATA or _check_metadata(value, name)
    ]
    end = 0
    for begin, stop, key in sorted(ranges):
        if begin != end:
            kind = "overlaps another" if begin < end else "leaves a hole before it"
            raise refusal(f"tensor {quoted(key)} at {begin} {kind}, expected at {end}", name)
        end = stop
    if end != len(data) - 8 - length:
        what = f"the tensors take {end} bytes, the file has {len(data) - 8 - length} for them"
        raise refusal(what, name)


def _parsed(raw: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise refusal(f"two entries of the header are called {quoted(key)}", name)
            found[key] = value
        return found

    try:
        parsed = json.loads(raw.decode(), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise refusal(f"byte {error.start} of the header is not UTF-8", name) from None
    except RecursionError:
        raise refusal("the header nests lists or objects too deep", name) from None
    except ValueError as error:  # no JSON, or a number of over 4300 digits
        raise refusal(f"the header is no JSON: {str(error)[:100]}", name) from None
    return dict(parsed)


def _check_metadata(value: object, name: str) -> bool:
    """False, which leaves it out of the tensors."""
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise refusal(f"{METADATA} is no object of texts", name)
    return False


def _range(key: str, value: object, name: str) -> tuple[int, int, str]:
    """Where a tensor begins and ends, and its name."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal(f"{quoted(key)} has other entries than dtype, shape and data_offsets", name)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        shown = quoted(dtype) if isinstance(dtype, str) else type(dtype).__name__
        what = f"tensor {quoted(key)} has dtype {shown}, expected one of {', '.join(ITEM_BYTES)}"
        raise refusal(what, name)
    if not _naturals(shape, MAX_DIMS) or not _naturals(offsets, 2) or len(offsets) != 2:
        what = f"shape or data_offsets of tensor {quoted(key)} are no whole numbers from 0 up"
        raise refusal(what, name)
    begin, end = offsets
    if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        what = f"tensor {quoted(key)} has shape {shape} of {dtype} in {end - begin} bytes"
        raise refusal(what, name)
    return begin, end, key


def _naturals(values: object, most: int) -> bool:
    """Whether these are at most `most` whole numbers that fit in 63 bits."""
    return (
        isinstance(values, list)
        and len(values) <= most
        and all(type(v) is int and 0 <= v < 2**63 for v in values)
    )


def refusal(what: str, name: str) -> ModelFileError:
    """TD4016: not a safetensors file, or a damaged one."""
    return ModelFileError(
        "TD4016",
        f"not a sound safetensors file: {what}",
        where=name,
        fix="copy or download it again and compare the sizes, or save it again with "
        "safetensors.torch.save_file",
    )
