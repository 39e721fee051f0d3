"""The start-up question: what it runs and refuses, and how an installation is weighed."""

import json
import os
import stat
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from benchmarks import installation, startup
from benchmarks.harness import load, save
from benchmarks.installation import called, command, copy_of_repository, install_row, weight
from benchmarks.startup import Asked, Contestant, contestants, environment, require_right, rows

NAMES = [
    "python -c pass",
    "import tadiff_rt",
    "tadiff-rt --version",
    "tadiff-rt info",
    "tadiff-rt info, no bytecode",
    "tadiff-rt predict",
    "tadiff-rt predict --fast",
]


@pytest.mark.slow
def test_rows_of_processes(bundle, case_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    options = {"slices": "5", "samples": "2", "steps": "1"}
    found = rows(1, Asked(bundle, case_folder, day="+9", options=options))
    save("startup", found, tmp_path)
    measured = {entry["contestant"]: entry for entry in load("startup", tmp_path)}
    assert list(measured) == NAMES
    assert {entry["case"] for entry in measured.values()} == {"startup/process"}
    assert {(entry["n"], entry["page_cache"]) for entry in found} == {(1, "warm")}
    nothing, *others = found
    assert "no_floor" in nothing
    for entry in others:
        assert (entry["floor_ms"], entry["floor_kind"]) == (nothing["ms"], "interpreter")
        assert entry["roofline_fraction"] == pytest.approx(nothing["ms"] / entry["ms"], rel=1e-3)
    targets = {name: e["target_ms"] for name, e in measured.items() if "target_ms" in e}
    assert targets == dict(zip([NAMES[3], *NAMES[5:]], (500, 6000, 6000), strict=True))
    # The work, not the clock: compiling and forecasting take several times what nothing does.
    cpu = {name: entry["cpu_ms"] for name, entry in measured.items()}
    assert cpu[NAMES[0]] < cpu[NAMES[2]] < cpu[NAMES[5]]
    assert cpu[NAMES[3]] < cpu[NAMES[4]]


@dataclass(frozen=True)
class Known(Asked):
    """A forecast whose tumour probability is 0.25 by default and 0.75 with --fast."""

    def probability(self, preset: str) -> Any:
        return np.full((2, 3, 4), {"default": 0.25, "fast": 0.75}[preset], np.float32)


@pytest.fixture
def ended(tmp_path) -> dict[str, Contestant]:
    """Contestants after two right runs each."""
    runs = contestants(Known(), tmp_path)
    for name in ("tadiff-rt info", "tadiff-rt info, no bytecode"):
        runs[name].printed += 2 * ["demo: trained on 120 simulated gliomas\n..."]
    for name, value in (("tadiff-rt predict", 0.25), ("tadiff-rt predict --fast", 0.75)):
        for i in range(2):
            folder = tmp_path / f"{name[10:]} {i}"
            runs[name].folders.append(folder)
            write(folder / "anat" / "ses_probseg.nii.gz", value)
            write(folder / "anat" / "ses_T1w.nii.gz", 7)
    return runs


def write(path: Path, value: float, dtype: Any = np.float32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((2, 3, 4), value, dtype), np.eye(4)), path)


def test_right_results_pass(ended):
    require_right(ended, Known())


def test_info_that_names_no_bundle_is_refused(ended):
    ended["tadiff-rt info, no bytecode"].printed[1] = "tiny: trained on nothing"
    with pytest.raises(SystemExit, match="info, no bytecode does not name the bundle"):
        require_right(ended, Known())


@pytest.mark.parametrize("name", NAMES[5:])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_another_forecast_is_refused(name, dtype, ended):
    """The presets exchanged; or the numbers in another type."""
    right = {"tadiff-rt predict": 0.25}.get(name, 0.75)
    for folder in ended[name].folders:
        value = 1 - right if dtype == np.float32 else right
        write(folder / "anat" / "ses_probseg.nii.gz", value, dtype)
    with pytest.raises(SystemExit, match=rf"{name}: the tumour probability is not that of this"):
        require_right(ended, Known())


@pytest.mark.parametrize("change", ["value", "missing"])
def test_runs_that_differ_are_refused(change, ended):
    path = ended["tadiff-rt predict"].folders[1] / "anat" / "ses_T1w.nii.gz"
    write(path, 7.5) if change == "value" else path.unlink()
    with pytest.raises(SystemExit, match="the volumes are not the same in all runs"):
        require_right(ended, Known())


def test_a_process_that_fails_is_not_timed(tmp_path):
    failing = "import sys; print('why', file=sys.stderr); sys.exit(3)"
    runs = Contestant([sys.executable, "-c", failing], tmp_path, "")
    with pytest.raises(SystemExit, match=r"ended with 3:\nwhy"):
        runs.run()
    assert (runs.printed, runs.cpu_seconds) == ([], [])


def test_bytecode_is_kept_between_runs_but_for_first_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    words = [sys.executable, "-c", "import colorsys, sys; print(sys.pycache_prefix)"]
    usual, first = Contestant(words, tmp_path, ""), Contestant(words, tmp_path, "", True)
    for one in (usual, first):
        one.run()
        one.run()
    places = [Path(text.strip()) for text in (*usual.printed, *first.printed)]
    assert places[0] == places[1] == tmp_path / "bytecode"
    assert len(set(places)) == 3
    assert all(list(place.rglob("colorsys.*.pyc")) for place in places)
    assert len(usual.cpu_seconds) == 2
    assert min(usual.cpu_seconds) > 0


def test_every_result_has_a_folder_of_its_own(tmp_path):
    show = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    runs = Contestant(show, tmp_path, "", results=True)
    runs.run()
    runs.run()
    assert runs.printed == [f"{['--out', str(folder)]}\n" for folder in runs.folders]
    assert len(set(runs.folders)) == 2
    assert not any(folder.exists() for folder in runs.folders)


def test_the_environment_is_this_one_with_own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("TADIFF_CACHE", "elsewhere")
    found = environment(tmp_path, tmp_path / "here")
    changed = {k for k in found.keys() | os.environ if found.get(k) != os.environ.get(k)}
    assert changed == {"PYTHONDONTWRITEBYTECODE", "TADIFF_CACHE", "PYTHONPYCACHEPREFIX"}
    assert "PYTHONDONTWRITEBYTECODE" not in found
    assert found["TADIFF_CACHE"].startswith(str(tmp_path))


def test_the_command_is_the_script_beside_the_interpreter(tmp_path):
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    *before, code = command(python)
    assert before == [str(python), "-c"]
    assert "tadiff_rt.cli" in code
    script = tmp_path / "tadiff-rt"
    script.write_text("#!/bin/sh\necho installed $1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    assert called([*command(python), "info"], os.environ, tmp_path) == "installed info\n"


def package(site: Path, name: str, files: dict[str, int]) -> None:
    """A package as pip leaves it; sizes in bytes, by path from site-packages."""
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for path, size in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(bytes(size))
    listed = [*files, f"{folder.name}/METADATA", f"{folder.name}/RECORD", "removed.pyc"]
    (folder / "RECORD").write_text("".join(f"{path},,\n" for path in listed))


def test_an_installation_is_the_files_of_its_packages(tmp_path):
    site = tmp_path / "lib/python3/site-packages"
    package(site, "big", {"big/a.so": 7_000_000, "big.libs/b.so": 1_000_000})
    package(site, "small", {"small.py": 900_000, "__pycache__/small.pyc": 600_000})
    package(site, "tool", {"../../../bin/tool": 50_000_000, "tool/x.py": 10_000})
    package(site, "pip", {"pip/x.py": 3_000_000})
    package(site, "setuptools", {"setuptools/x.py": 4_000_000})
    for i in range(9):
        package(site, f"tiny{i}", {f"tiny{i}.py": 2_000 + i})
    found = weight(site)
    assert found["packages"] == 12
    assert found["largest_mb"]["big"] == 8.0
    assert found["largest_mb"]["small"] == 1.5
    assert [*found["largest_mb"]][:4] == ["big", "small", "tool", "tiny8"]
    assert len(found["largest_mb"]) == 10
    inside = [path for path in site.rglob("*") if path.is_file()]
    others = [p for p in inside if not p.relative_to(site).parts[0].startswith(("pip", "setup"))]
    assert found["installed_mb"] == round(sum(p.stat().st_size for p in others) / 1e6, 2)


def test_the_copy_holds_what_a_build_reads(tmp_path):
    copy = copy_of_repository(tmp_path / "copy")
    project = tomllib.loads((copy / "pyproject.toml").read_text())
    moved = project["tool"]["setuptools"]["package-dir"]
    for name in project["tool"]["setuptools"]["packages"]:
        assert (copy / moved.get(name, name.replace(".", "/")) / "__init__.py").is_file(), name
    named = [project["project"]["readme"], *project["project"]["license-files"]]
    assert all((copy / name).is_file() for name in named)
    assert (copy / "tadiff_rt/data/demo.tadiff/manifest.json").is_file()
    assert not [*copy.rglob("__pycache__"), *copy.rglob("*.egg-info"), *copy.glob("tests")]


def test_no_number_is_invented_without_a_package_index(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "called", refused_from("download"))
    found = install_row()
    save("startup", [found], tmp_path)
    assert (found["case"], found["contestant"]) == ("startup/install", "pip install '.[cpu]'")
    assert found["not_measured"] == "no package index could be reached"
    assert not any(isinstance(value, int | float) for value in found.values())


def test_an_installation_that_fails_is_an_error(monkeypatch):
    """Not an index that cannot be reached."""
    monkeypatch.setattr(installation, "called", refused_from("install"))
    with pytest.raises(SystemExit, match="refused"):
        install_row()


def refused_from(word: str) -> Any:
    """Stands for processes: every one ends with 0 until one with `word` is refused."""

    def call(words: Any, variables: Any, folder: Path) -> str:
        if word in words:
            raise SystemExit("refused")
        assert "PYTHONPATH" not in variables
        return ""

    return call


@pytest.mark.parametrize("words", [["3", "processes"], ["3"], []])
def test_arguments(words, tmp_path, monkeypatch):
    asked = []
    entry = {"case": "c", "contestant": "x", "no_floor": "none", "quality": "none"}
    monkeypatch.setattr(startup, "rows", lambda repeats: [{**entry, "repeats": repeats}])
    monkeypatch.setattr(startup, "part_rows", list)
    monkeypatch.setattr(startup, "install_row", lambda: {**entry, "case": "install"})
    monkeypatch.setattr(startup, "save", lambda name, found: asked.append((name, found)))
    startup.main(words)
    ((name, found),) = asked
    assert (name, found[0]["repeats"]) == ("startup", 3 if words else startup.REPEATS)
    assert [e["case"] for e in found] == (["c"] if words[1:] else ["c", "install"])
    assert json.dumps(found)


@pytest.mark.slow
def test_parts_of_a_start(bundle, case_folder):
    options = {"samples": "2", "slices": "3"}
    found = startup.part_rows(1, Asked(bundle, case_folder, day="+9", options=options))
    assert [entry["contestant"] for entry in found] == list(startup.STAGES)
    assert all(0 < entry["ms"] < 60_000 for entry in found)
