"""What an exported PyTorch program (.pt2) may hold before PyTorch is given it.

`torch.export.load` (torch 2.13) unpickles example inputs and whatever is marked `use_pickle`,
looks operators up by dotted name anywhere below `torch`, executes the strings of `guards_code`,
and hands expressions of sizes to sympy, which evaluates them. So a program is code unless each of
these is bounded here: every string in it must be harmless, wherever it stands.
"""

import io
import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tadiff_rt.errors import ModelFileError

MODEL = "models/model.json"
EXAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_SMALL = (
    "archive_format",
    "archive_version",
    ".data/version",
    "byteorder",
    ".data/serialization_id",
)
_WEIGHT = re.compile(r"data/(weights|constants)/(weight|tensor)_[0-9]{1,6}")
_SIZE = r"L\['(sources|x_t|shifts|t|days|treatments)'\]\.size\(\)\[[0-3]\]"
_SYMBOL = r"Symbol\('s[0-9]{1,4}', positive=True, integer=True\)"
_NAME = re.compile(r"[A-Za-z0-9_.+]{0,200}")  # names, versions: nothing evaluates these
_GUARD = re.compile(rf"{_SIZE} (==|>=|<=) ({_SIZE}|[0-9]{{1,5}})")
_EXPRESSION = re.compile(rf"{_SYMBOL}|Mul\(Integer\([0-9]{{1,9}}\), {_SYMBOL}\)|[0-9]{{1,9}}")
_TREE = re.compile(
    r'(\[1, )?(\{"type": (null|"builtins\.(tuple|dict)"), "context": (null|"null"|"\[\]"), '
    r'"children_spec": \[(, )?|\]\}(, )?|\])*'
)
_FORMS = {"in_spec": _TREE, "out_spec": _TREE, "guards_code": _GUARD}
"""What strings below these keys must be; all others are names."""
MAX_JSON_BYTES = 1 << 26
NOT_AN_ARCHIVE = (
    *(zipfile.BadZipFile, NotImplementedError, EOFError),
    *(OSError, RuntimeError, ValueError, OverflowError),
)
"""What zipfile raises for files that are none."""

ALLOWED_TARGETS = frozenset(
    [
        *(
            f"torch.ops.aten.{name}"
            for name in (
                *("add.Tensor", "addmm.default", "cat.default", "contiguous.default"),
                *("conv2d.default", "linear.default", "pad.default", "permute.default"),
                *("reshape.default", "slice.Tensor", "split_with_sizes.default"),
                *("sym_size.int", "to.dtype", "unsqueeze.default", "upsample_nearest2d.vec"),
            )
        ),
        *(
            f"torch.ops.tadiff.{name}.default"
            for name in ("attention", "conditioning", "group_norm_silu")
        ),
        *("_operator.mul", "_operator.floordiv", "_operator.add"),
    ]
)
"""Operators of exported networks; pure functions of tensors and sizes."""


@dataclass(frozen=True)
class Program:
    """A program that runs nothing but its operators."""

    operators: dict[str, int]
    """How often each occurs."""
    data: bytes
    """An archive of exactly the entries that were judged, for PyTorch to load: two readers need
    not find the same entries in one archive."""


def scan_program(data: bytes, name: str) -> Program:
    """Judges a program; what it returns may be loaded, and nothing else.

    Raises:
        ModelFileError: TD4104, the file is not a PT2 archive; TD4105, it holds anything that
            loading would execute, or an operator outside `ALLOWED_TARGETS`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            files = _named(entries, name)
            if sum(entry.file_size for entry in entries) > len(data):
                raise _refused("TD4104", name, "its entries are larger than the file")
            contents = {path: archive.read(entry) for path, entry in files.items()}
    except NOT_AN_ARCHIVE as e:
        raise _refused("TD4104", name, f"it is not a PT2 archive: {e}") from None
    for path in (MODEL, EXAMPLES, *_CONFIGS):
        if path not in contents:
            raise _refused("TD4104", name, f"it holds no {path}")
    if contents[EXAMPLES]:
        raise _refused("TD4105", name, "it holds pickled example inputs")
    for path in _CONFIGS:
        _require_raw(_document(contents[path], path, name), name)
    operators = _operators(_document(contents[MODEL], MODEL, name), name)
    return Program(operators, _archive(contents))


def _archive(contents: dict[str, bytes]) -> bytes:
    """A new archive of `contents`, as PyTorch expects it: stored, below one folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, content in contents.items():
            archive.writestr(f"archive/{path}", content)
    return out.getvalue()


def _named(entries: list[zipfile.ZipInfo], name: str) -> dict[str, zipfile.ZipInfo]:
    """Entries by their path below the archive's one top folder."""
    files: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        path = entry.filename.partition("/")[2]
        known = path in (MODEL, EXAMPLES, *_CONFIGS, *_SMALL) or _WEIGHT.fullmatch(path)
        if not known or path in files or entry.compress_type != zipfile.ZIP_STORED:
            raise _refused("TD4105", name, f"it holds the entry {entry.filename[:80]!r}")
        files[path] = entry
    return files


def _document(content: bytes, path: str, name: str) -> dict[str, Any]:
    if len(content) > MAX_JSON_BYTES:
        raise _refused("TD4104", name, f"{path} has {len(content)} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _refused("TD4104", name, f"{path} is not a JSON object")
    return document


def _require_raw(config: dict[str, Any], name: str) -> None:
    """Every tensor is stored as bytes, none is pickled."""
    tensors = config.get("config")
    if not isinstance(tensors, dict):
        raise _refused("TD4104", name, "its list of tensors is not a JSON object")
    for key, tensor in tensors.items():
        path = tensor.get("path_name") if isinstance(tensor, dict) else None
        raw = isinstance(tensor, dict) and tensor.get("use_pickle") is False
        if not raw or not re.fullmatch(r"(weight|tensor)_[0-9]{1,6}", str(path)):
            raise _refused("TD4105", name, f"the tensor {key[:80]!r} is pickled or elsewhere")


def _operators(model: dict[str, Any], name: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    waiting: list[tuple[str, Any]] = [("", model)]
    while waiting:
        key, value = waiting.pop()
        if key == "expr_str":  # whatever is no string is evaluated as well
            if not _EXPRESSION.fullmatch(str(value)):
                raise _may_be_code(name, key, str(value))
        elif isinstance(value, list):
            waiting += ((key, item) for item in value)
        elif isinstance(value, dict):
            waiting += [*value.items(), *(("key", k) for k in value)]
            if value.keys() & {"as_graph", "as_custom_obj", "as_operator"}:
                raise _refused("TD4105", name, "it holds nested graphs or objects")
        elif key == "target":
            counts[str(value)] += 1
        elif isinstance(value, str) and not _FORMS.get(key, _NAME).fullmatch(value):
            raise _may_be_code(name, key, value)
    foreign = sorted(counts.keys() - ALLOWED_TARGETS)
    if foreign or not counts:
        raise _refused("TD4105", name, f"it calls {', '.join(foreign)[:200] or 'nothing'}")
    return {target.split(".")[-2]: count for target, count in sorted(counts.items())}


def _may_be_code(name: str, key: str, value: str) -> ModelFileError:
    return _refused("TD4105", name, f"its {key[:20]} may be code: {value[:80]!r}")


def _refused(code: str, name: str, what: str) -> ModelFileError:
    fix = "export the checkpoint again with this version: tadiff-export CKPT --target torch"
    return ModelFileError(code, f"{name} is refused: {what}", fix=fix)
