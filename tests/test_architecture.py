"""Which package may import which, what `import tadiff_rt` may drag in, and codes of errors."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {  # import name -> folder
    "tadiff_kernels": "kernels",
    "tadiff_rt": "tadiff_rt",
    "tadiff_train": "tadiff_train",
    "tadiff_export": "tadiff_export",
    "benchmarks": "benchmarks",
}
MAY_IMPORT = {
    "tadiff_kernels": set(),
    "tadiff_rt": {"tadiff_kernels"},  # where a device is used: see USE_A_DEVICE
    "tadiff_train": {"tadiff_rt"},
    "tadiff_export": {"tadiff_rt", "tadiff_train", "tadiff_kernels"},
    "benchmarks": {"tadiff_rt", "tadiff_train", "tadiff_export", "tadiff_kernels"},
}
HEAVY = "torch triton onnx onnxruntime tensorrt matplotlib nilearn pandas skimage safetensors"
RUNTIME_MAY_USE = {"numpy", "nibabel", "pydantic", "typer", "rich", "onnxruntime", "matplotlib"}
USE_A_DEVICE = {"backends", "device"}
"""Folders of tadiff_rt that may import torch and tadiff_kernels."""


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_down(package: str):
    for path in (ROOT / FOLDERS[package]).rglob("*.py"):
        forbidden = imported_packages(path) & set(FOLDERS) - MAY_IMPORT[package] - {package}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_runtime_uses_its_dependencies_only():
    """scipy is not one, though nibabel imports it where it happens to be installed."""
    for path in (ROOT / "tadiff_rt").rglob("*.py"):
        foreign = imported_packages(path) - set(sys.stdlib_module_names) - {"tadiff_rt"}
        on_device = path.parent.name in USE_A_DEVICE
        allowed = RUNTIME_MAY_USE | ({"torch", "tadiff_kernels"} if on_device else set())
        assert foreign <= allowed, f"{path.name} imports {foreign - allowed}"


def loaded_after(code: str) -> set[str]:
    """Which of HEAVY a fresh interpreter has loaded after running `code`."""
    probe = f"{code}; import sys; print(*(set({HEAVY.split()!r}) & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(out.stdout.split())


def test_runtime_imports_nothing_heavy():
    """Every module of the runtime but those imported when a backend or a device is chosen."""
    code = "import tadiff_rt, pkgutil, importlib; " + (
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages("
        "tadiff_rt.__path__, 'tadiff_rt.') if '.backends.' not in m.name"
        " and '.device.' not in m.name]"
    )
    assert loaded_after(code) == set()


def test_the_runtime_reads_a_bundle_without_torch(bundle, case_folder, tmp_path):
    """A whole forecast in a process that cannot import torch."""
    code = (
        "import sys; sys.modules['torch'] = None; from tadiff_rt import Forecaster, read_case; "
        f"f = Forecaster.load({str(bundle)!r}); c = read_case({str(case_folder)!r}); "
        "f.predict(c, day='+9', treatment='TMZ', samples=1, steps=1, slices='5')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_probe_would_notice():
    assert loaded_after("import sys; sys.modules['torch'] = sys") == {"torch"}


def test_nothing_is_unpickled():
    """torch.load, pickle and numpy's allow_pickle execute what a stranger wrote."""
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            assert "pickle" not in imported_packages(path), path
            text = path.read_text()
            assert not re.search(r"torch\.load\(|allow_pickle=True", text), path


def error_codes() -> dict[str, set[str]]:
    """Code -> the error classes it is raised with."""
    raised: dict[str, set[str]] = {}
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args:
                    first, name = node.args[0], getattr(node.func, "id", "")
                    if isinstance(first, ast.Constant) and name.endswith("Error"):
                        raised.setdefault(str(first.value), set()).add(name)
    return {code: names for code, names in raised.items() if code.startswith("TD")}


RANGES = {  # first digits of a code -> exit codes it may come with
    "TD30": {2},
    "TD31": {3},
    "TD32": {3},
    "TD33": {3},
    "TD40": {4},
    "TD41": {4, 5},
    "TD50": {5, 2},
    "TD60": {6},
    "TD70": {7, 70},
    "TD80": {8},
}


def test_error_codes_lie_in_the_range_of_their_exit_code():
    import tadiff_rt.errors as errors

    found = error_codes()
    assert len(found) > 60
    for code, names in found.items():
        exits = {getattr(errors, name).exit_code for name in names}
        assert exits <= RANGES[code[:4]], f"{code} is raised with {sorted(names)}"


def test_nothing_is_reported_to_anybody(tmp_path):
    """onnxruntime would keep an identity of the machine in the user's home."""
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    program = "import tadiff_rt, tadiff_rt.backends.ort"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment | places)
    assert list(tmp_path.rglob("*")) == []
