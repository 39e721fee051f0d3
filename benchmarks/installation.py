"""What does the CPU runtime weigh once it is installed?  A part of `benchmarks.startup`.

A copy of this repository is installed into a fresh virtual environment by `pip install '.[cpu]'`,
`tadiff-rt info` must run there and torch must not be importable; then the files of all packages
but pip and setuptools are counted.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import row

INSTALL = "startup/install"
PIP = "pip install '.[cpu]'"
TARGET_MB = 350
INSTALLERS = ("pip", "setuptools")
LARGEST = 10
"""Packages whose size is named."""

ROOT = Path(__file__).parents[1]
TEXTS = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")
PACKAGES = ("tadiff_rt", "tadiff_train", "tadiff_export", "kernels")


def called(words: Sequence[str], variables: Mapping[str, str], folder: Path) -> str:
    """What a process printed on both streams.

    Raises:
        SystemExit: it did not end with 0.
    """
    ended = subprocess.run(
        words,
        env=variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(f"{words} ended with {ended.returncode}:\n{ended.stdout}")
    return ended.stdout


def command(python: Path) -> list[str]:
    """`tadiff-rt` as it is installed beside an interpreter, or else by its entry point."""
    script = python.with_name("tadiff-rt")
    if script.exists():
        return [str(script)]
    return [str(python), "-c", "from tadiff_rt.cli import main; main()"]


def install_row() -> dict[str, Any]:
    """The installation; a row that says so where no package index can be reached."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, variables = Path(temporary), dict(os.environ)
        variables.pop("PYTHONPATH", None)  # it must stand by itself
        called([sys.executable, "-m", "venv", "env"], variables, folder)
        python = folder / "env/bin/python"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        try:  # what every build from source takes first
            called([*pip, "download", "--no-deps", "setuptools"], variables, folder)
        except SystemExit:
            reason = "no package index could be reached"
            unknown = {"not_measured": reason, "no_floor": reason, "quality": "not measured"}
            return {"case": INSTALL, "contestant": PIP, **unknown}
        copied = copy_of_repository(folder / "copy")
        start = time.perf_counter()
        called([*pip, "install", f"{copied}[cpu]"], variables, folder)
        seconds = time.perf_counter() - start
        (site,) = (folder / "env").glob("lib/python*/site-packages")
        engine = site / "tadiff_rt/data/demo.tadiff"
        called([*command(python), "info", str(engine)], variables, folder)
        absent = "import importlib.util as u; assert u.find_spec('torch') is None"
        called([str(python), "-c", absent], variables, folder)
        return row(
            INSTALL,
            PIP,
            [seconds],
            **weight(site),
            target_mb=TARGET_MB,
            no_floor="downloads are as fast as the package index",
            quality="tadiff-rt info runs there, without torch",
        )


def copy_of_repository(copy: Path) -> Path:
    """What a build reads, without what earlier builds and runs left."""
    left = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=left)
    for name in TEXTS:
        shutil.copy(ROOT / name, copy)
    return copy


def weight(site: Path) -> dict[str, Any]:
    """Megabytes of 10^6 bytes of files in a site-packages, bytecode that pip compiled included.

    Returns:
        Columns: of all packages but INSTALLERS, and of the largest by name.
    """
    sizes = {}
    for package in importlib.metadata.distributions(path=[str(site)]):
        files = [Path(str(package.locate_file(file))).resolve() for file in package.files or []]
        inside = [file for file in files if file.is_relative_to(site.resolve())]
        sizes[package.metadata["Name"]] = sum(f.stat().st_size for f in inside if f.exists())
    kept = {name: size for name, size in sizes.items() if name not in INSTALLERS}
    largest = sorted(kept, key=lambda name: -kept[name])[:LARGEST]
    return {
        "installed_mb": round(sum(kept.values()) / 1e6, 2),
        "packages": len(kept),
        "largest_mb": {name: round(kept[name] / 1e6, 2) for name in largest},
    }
