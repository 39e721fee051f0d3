"""The written data set: names, voxels, metadata and tables, read by other programs than ours."""

import csv
import dataclasses
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import voxel_sizes

from tadiff_rt import write
from tadiff_rt.derivatives import expected_bytes, subject_label, write_comparison
from tadiff_rt.errors import InputDataError, NumericsError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.readers import read_case
from tadiff_rt.scenarios import Comparison, Difference, Scenario
from tadiff_rt.write import ResultFolder

MANIFEST = "forecast.json"
OPTIONS = {"samples": 2, "steps": 1, "slices": "3:7"}
ENDINGS = ("T1w", "ce-gadolinium_T1w", "FLAIR")
TSV = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


@pytest.fixture(scope="module")
def comparison(bundle, case_folder) -> Comparison:
    """Days 190 and 250, TMZ against none, two samples."""
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    return forecaster.compare(case, days=["+30", "+90"], treatments=["TMZ", "none"], **OPTIONS)


def write_result(comparison: Comparison, out: Path, subject: str = "17") -> tuple[Path, dict]:
    """The result folder, complete, and what `write_comparison` returned."""
    with ResultFolder(out, manifest=MANIFEST) as result:
        written = write_comparison(comparison, result, subject=subject)
        result.complete({"scenarios": written, "files": result.files()})
    return out, written


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory) -> tuple[Path, dict]:
    return write_result(comparison, tmp_path_factory.mktemp("result") / "out")


@pytest.fixture(scope="module")
def folder(written) -> Path:
    return written[0]


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="ascii") as file:
        return list(csv.DictReader(file, **TSV))


def with_forecasts(comparison: Comparison, change) -> Comparison:
    """The comparison with `change` applied to every forecast, and without differences."""
    forecasts = {scenario: change(f) for scenario, f in comparison.forecasts.items()}
    return dataclasses.replace(comparison, forecasts=forecasts, differences=())


def one_sample(forecast):
    """The forecast as if it had one sample."""
    volume = dataclasses.replace(
        forecast.volume_ml,
        low_ml=None,
        high_ml=None,
        samples_ml=forecast.volume_ml.samples_ml[:1],
        mean_interval_ml=None,
        pairwise_dice=None,
    )
    ensemble = dataclasses.replace(forecast.ensemble, std=None)
    return dataclasses.replace(forecast, std=None, volume_ml=volume, ensemble=ensemble)


def expected_images(day: int, treatment: str) -> set[str]:
    """What the layout promises of a scenario with two samples that is not the reference."""
    stem = f"sub-17/ses-day{day}/anat/sub-17_ses-day{day}"
    arm = f"desc-predicted{treatment}"
    spread = f"desc-predictedstd{treatment}"
    names = {
        *(f"{stem}_{d}_T1w" for d in (arm, spread)),
        *(f"{stem}_ce-gadolinium_{d}_T1w" for d in (arm, spread)),
        *(f"{stem}_{d}_FLAIR" for d in (arm, spread)),
        f"{stem}_{arm}_dseg",
        f"{stem}_label-L_{arm}_probseg",
    }
    if treatment != "none":
        names |= {f"{stem}_label-L_{d}minusnone_probseg" for d in (arm, spread)}
    files = {f"{name}{ending}" for name in names for ending in (".nii.gz", ".json")}
    return files | {f"{stem}_{arm}_dseg.tsv"}


def test_every_file_has_its_name_and_is_reported(written):
    folder, entries = written
    whole = {
        *(".bidsignore", "README.md", "dataset_description.json", "descriptions.tsv"),
        *("participants.tsv", "volumes.tsv", "volumes.json", "overview.png", MANIFEST),
        *("sub-17/sub-17_sessions.tsv", "sub-17/sub-17_sessions.json"),
    }
    images = set()
    for day in (190, 250):
        for treatment in ("TMZ", "none"):
            entry = entries[f"day{day}-{treatment}"]
            assert entry["session"] == f"ses-day{day}"
            assert set(entry["files"]) == expected_images(day, treatment)
            assert len(set(entry["files"])) == len(entry["files"])
            images |= set(entry["files"])
    assert len(entries) == 4
    assert files_of(folder) == whole | images
    assert json.dumps(entries)


def test_one_sample_has_no_standard_deviation(comparison, tmp_path):
    out, entries = write_result(with_forecasts(comparison, one_sample), tmp_path / "out")
    files = {file for entry in entries.values() for file in entry["files"]}
    assert not [file for file in files_of(out) if "predictedstd" in file]
    assert files == {
        file
        for day in (190, 250)
        for treatment in ("TMZ", "none")
        for file in expected_images(day, treatment)
        if "std" not in file and "minus" not in file
    }
    assert "std" not in (out / "descriptions.tsv").read_text()
    for row in rows_of(out / "volumes.tsv"):
        assert row["samples"] == "1"
        empty = ("low_ml", "high_ml", "mean_low_ml", "mean_high_ml", "pairwise_dice", "reference")
        assert {row[column] for column in empty} == {"n/a"}


def test_a_difference_of_one_sample_has_no_standard_deviation(comparison, tmp_path):
    differences = tuple(dataclasses.replace(d, std=None) for d in comparison.differences)
    single = dataclasses.replace(comparison, differences=differences)
    out, _ = write_result(single, tmp_path / "out")
    assert len(list(out.rglob("*desc-predictedTMZminusnone_probseg.nii.gz"))) == 2
    assert not list(out.rglob("*std*minus*"))


def arrays_of(comparison: Comparison, scenario: Scenario) -> dict[str, np.ndarray]:
    """What the files of a scenario must hold, by the end of their names."""
    forecast = comparison.forecasts[scenario]
    arm, spread = f"desc-predicted{scenario.treatment}", f"desc-predictedstd{scenario.treatment}"
    arrays = {
        f"_label-L_{arm}_probseg": forecast.tumour_probability,
        f"_{arm}_dseg": forecast.tumour_probability > 0.5,
    }
    for m, ending in enumerate(ENDINGS):
        *entity, suffix = ending.split("_")
        prefix = "_".join(["", *entity])
        arrays[f"{prefix}_{arm}_{suffix}"] = forecast.mean[m]
        arrays[f"{prefix}_{spread}_{suffix}"] = forecast.std[m]
    for difference in comparison.differences:
        if difference.scenario == scenario:
            arrays[f"_label-L_{arm}minusnone_probseg"] = difference.probability
            arrays[f"_label-L_{spread}minusnone_probseg"] = difference.std
    return arrays


def test_nibabel_reads_every_voxel_where_it_belongs(comparison, folder):
    seen = 0
    for scenario, forecast in comparison.forecasts.items():
        session = f"ses-day{scenario.day}"
        for name, array in arrays_of(comparison, scenario).items():
            path = folder / "sub-17" / session / "anat" / f"sub-17_{session}{name}.nii.gz"
            image = nib.load(path)
            voxels = np.asarray(image.dataobj)
            assert np.isfinite(voxels).all()
            assert np.array_equal(voxels, array)
            assert voxels.dtype == (np.uint8 if "dseg" in name else np.float32)
            for form in (image.get_qform(), image.get_sform(), image.affine):
                np.testing.assert_allclose(form, forecast.affine, atol=1e-5)
            assert image.header["qform_code"] == image.header["sform_code"] == 1
            assert image.header.get_xyzt_units()[0] == "mm"
            assert b"predicted, not acquired" in bytes(image.header["descrip"])
            seen += 1
    assert seen == len(list(folder.rglob("*.nii.gz"))) == 2 * (8 + 2) + 2 * 8


def oblique(shape: tuple[int, int, int], shear: float) -> np.ndarray:
    """A grid turned about two axes, with voxels of three sizes; RAS+ millimetres."""
    a, b = 0.3, -0.5
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])
    tilt = np.array([[1.0, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = (turn @ tilt) * (1.9, 2.0, 2.1)
    affine[0, 1] += shear
    affine[:3, 3] = (-31.5, 12.25, 40.0)
    return affine


@pytest.mark.parametrize("shear", [0.0, 2e-6, 1e-4])
def test_simpleitk_reads_what_nibabel_reads(comparison, tmp_path, shear):
    """ITK refuses axes that are not perpendicular, and takes its grid from either form."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    affine = oblique((24, 28, 10), shear)
    first = next(iter(comparison.forecasts.items()))
    single = dataclasses.replace(
        comparison,
        forecasts=dict([(first[0], dataclasses.replace(first[1], affine=affine, header=None))]),
        differences=(),
    )
    out, _ = write_result(single, tmp_path / "out")
    paths = sorted(out.rglob("*.nii.gz"))
    assert len(paths) == 8
    for path in paths:
        other, ours = sitk.ReadImage(str(path)), nib.load(path)
        assert np.array_equal(sitk.GetArrayFromImage(other).T, np.asarray(ours.dataobj))
        rotation = np.reshape(other.GetDirection(), (3, 3))
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-6)
        theirs = np.eye(4)
        theirs[:3, :3] = rotation * other.GetSpacing()
        theirs[:3, 3] = other.GetOrigin()
        theirs = np.diag([-1.0, -1, 1, 1]) @ theirs  # ITK counts in LPS
        np.testing.assert_allclose(theirs, ours.affine, atol=1e-4)
        np.testing.assert_allclose(voxel_sizes(ours.affine), (1.9, 2.0, 2.1), atol=1e-4)
        np.testing.assert_allclose(ours.affine, affine, atol=1e-3)


def test_every_image_says_that_it_was_not_acquired(folder):
    images = sorted(folder.rglob("*.nii.gz"))
    for path in images:
        sidecar = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
        entities = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
        day = int(entities["ses"].removeprefix("day"))
        assert entities["desc"].startswith("predicted")
        assert sidecar["Acquired"] is False
        assert (sidecar["Day"], sidecar["Samples"]) == (day, 2)
        assert f"predicted, day {day}, not acquired, research use" in sidecar["Description"]
        label = entities["desc"].removeprefix("predicted").removeprefix("std").split("minus")
        assert sidecar["Treatment"] == label[0]
        assert sidecar.get("Reference") == (label[1] if len(label) > 1 else None)
        assert ("Standard deviation" in sidecar["Description"]) == ("std" in entities["desc"])
        is_image = path.name.endswith(("T1w.nii.gz", "FLAIR.nii.gz"))
        assert sidecar.get("SkullStripped") is (True if is_image else None)
        assert ("agent" in sidecar["Description"]) == ("ce" in entities)
    assert len(images) == 36


def test_sources_are_files_of_the_result(folder):
    sources = {}
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        if "Sources" in content:
            sources[path.name] = content["Sources"]
    assert len(sources) == 4 + 2  # segmentations and mean differences
    for name, uris in sources.items():
        assert len(uris) == (2 if "minus" in name else 1)
        for uri in uris:
            assert (folder / uri.removeprefix("bids::")).is_file()
    # Minuend first.
    first, second = sources["sub-17_ses-day190_label-L_desc-predictedTMZminusnone_probseg.json"]
    assert "predictedTMZ_" in first
    assert "predictednone_" in second


def test_the_table_of_volumes_holds_what_was_forecast(comparison, folder):
    rows = rows_of(folder / "volumes.tsv")
    assert [(r["session"], r["day"], r["treatment"]) for r in rows] == [
        ("ses-day190", "190", "TMZ"),
        ("ses-day190", "190", "none"),
        ("ses-day250", "250", "TMZ"),
        ("ses-day250", "250", "none"),
    ]
    for row in rows:
        day = int(row["day"])
        ml = np.array(comparison.forecasts[Scenario(day, row["treatment"])].volume_ml.samples_ml)
        check_interval(row, "volume_ml", ("low_ml", "high_ml"), ml, 1 + 1 / 2, floor=0.0)
        of_mean = ("mean_low_ml", "mean_high_ml")
        check_interval(row, "volume_ml", of_mean, ml, 1 / 2, floor=0.0)
        assert (row["level"], row["samples"], row["slices"]) == ("0.9", "2", "4")
        reference = np.array(comparison.forecasts[Scenario(day, "none")].volume_ml.samples_ml)
        columns = [name for name in row if name.startswith("difference")]
        if row["treatment"] == "none":
            assert {row[name] for name in [*columns, "reference"]} == {"n/a"}
            continue
        apart = ml - reference
        further = ("difference_low_ml", "difference_high_ml")
        check_interval(row, "difference_ml", further, apart, 1 + 1 / 2)
        of_mean = ("difference_mean_low_ml", "difference_mean_high_ml")
        check_interval(row, "difference_ml", of_mean, apart, 1 / 2)
        assert row["reference"] == "none"


def check_interval(row, mean, ends, samples, share, floor=-np.inf):
    """Student's interval, with the quantile of scipy."""
    from scipy.stats import t

    reach = t.ppf(0.95, len(samples) - 1) * samples.std(ddof=1) * np.sqrt(share)
    low, high = (float(row[end]) for end in ends)
    assert float(row[mean]) == pytest.approx(samples.mean(), abs=1e-4)
    assert low == pytest.approx(max(floor, samples.mean() - reach), abs=1e-4)
    assert high == pytest.approx(samples.mean() + reach, abs=1e-4)


def test_a_difference_of_almost_nothing_is_written_without_a_sign(comparison, tmp_path):
    first = comparison.differences[0]
    volume = dataclasses.replace(first.volume_ml, mean_ml=-1e-7)
    difference = dataclasses.replace(first, volume_ml=volume)
    out, _ = write_result(
        dataclasses.replace(comparison, differences=(difference,)), tmp_path / "out"
    )
    assert rows_of(out / "volumes.tsv")[0]["difference_ml"] == "0.0000"


def test_every_column_is_described_with_its_unit(folder):
    described = json.loads((folder / "volumes.json").read_text())
    assert set(described) == set(rows_of(folder / "volumes.tsv")[0])
    for column, what in described.items():
        assert what.get("Units") == ("mL" if column.endswith("_ml") else what.get("Units"))
        assert what["Description"]
    assert described["day"]["Units"] == "day"
    sessions = json.loads((folder / "sub-17/sub-17_sessions.json").read_text())
    assert set(sessions) == set(rows_of(folder / "sub-17/sub-17_sessions.tsv")[0])


def test_sessions_participant_and_descriptions(folder):
    assert rows_of(folder / "sub-17/sub-17_sessions.tsv") == [
        {"session_id": "ses-day190", "days_from_baseline": "190", "acquired": "no"},
        {"session_id": "ses-day250", "days_from_baseline": "250", "acquired": "no"},
    ]
    assert rows_of(folder / "participants.tsv") == [{"participant_id": "sub-17"}]
    descriptions = {r["desc_id"]: r["description"] for r in rows_of(folder / "descriptions.tsv")}
    used = {m[0] for file in files_of(folder) if (m := re.search(r"desc-[A-Za-z]+", file))}
    assert set(descriptions) == used
    assert all("not acquired" in what for what in descriptions.values())
    assert "Standard deviation" in descriptions["desc-predictedstdTMZ"]
    assert "TMZ minus under none" in descriptions["desc-predictedTMZminusnone"]


def test_the_data_set_says_what_it_is_and_from_what_model(comparison, folder):
    description = json.loads((folder / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert tuple(map(int, description["BIDSVersion"].split("."))) >= (1, 10)
    assert "predicted, not acquired, research use" in description["Name"]
    (generator,) = description["GeneratedBy"]
    model = comparison.first.report["model"]
    assert (generator["Name"], generator["Version"]) == ("tadiff", model["tadiff"])
    readme = (folder / "README.md").read_text()
    for said in ("tiny", "nothing: random weights", "Research only.", "not acquired", "sub-17"):
        assert said in readme
    assert "tiny" in generator["Description"]


def test_hostile_words_of_a_model_stay_on_their_line(comparison, tmp_path):
    first = comparison.first
    model = {**first.report["model"], "trained_on": "a\n# b\tc \x1b[31m {version} é"}
    scenario = next(iter(comparison.forecasts))
    forecast = dataclasses.replace(first, report={**first.report, "model": model})
    forecasts = {**comparison.forecasts, scenario: forecast}
    out, _ = write_result(dataclasses.replace(comparison, forecasts=forecasts), tmp_path / "out")
    assert r"- Trained on: a # b c \x1b[31m {version} \xe9" in (out / "README.md").read_text()


def test_what_segmentations_mean_is_beside_them(folder):
    for path in folder.rglob("*_dseg.nii.gz"):
        rows = rows_of(Path(str(path).replace(".nii.gz", ".tsv")))
        names = {int(row["index"]): row["name"] for row in rows}
        assert names == {0: "background", 1: "tumour"}
        assert set(np.unique(np.asarray(nib.load(path).dataobj))) <= set(names)


def test_equal_comparisons_give_equal_bytes(comparison, folder, tmp_path):
    again, _ = write_result(comparison, tmp_path / "again")
    assert files_of(again) == files_of(folder)
    for name in files_of(folder):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_only_the_label_names_the_patient(comparison, tmp_path):
    named = dataclasses.replace(comparison, case_name="Jane Doe 1970")
    out, _ = write_result(named, tmp_path / "out", subject="X1")
    for name in files_of(out):
        data = (out / name).read_bytes()
        content = gzip.decompress(data) if name.endswith(".gz") else data
        for part in (b"Jane", b"Doe", b"1970", b"sub-17", b"ses-04", str(tmp_path).encode()):
            assert part not in content
            assert part.decode() not in name


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("sub-17", "17"),
        ("sub-demo", "demo"),
        ("Patient-001", "Patient001"),
        ("sub-a_b/../c", "abc"),
        ("é1", "1"),
        ("sub-", "unnamed"),
        ("../..", "unnamed"),
        ("", "unnamed"),
        ("x" * 300, "x" * 32),
    ],
)
def test_labels_of_subjects(name, label):
    assert subject_label(name) == label


@given(st.text())
def test_any_name_becomes_a_label(name):
    label = subject_label(name)
    assert re.fullmatch("[0-9A-Za-z]{1,32}", label)
    assert subject_label(label) == label
    assert subject_label(f"sub-{label}") == label


@pytest.mark.parametrize("subject", ["", "sub-17", "../x", "a" * 33, "é"])
def test_a_subject_that_is_no_label_is_refused(comparison, tmp_path, subject):
    with pytest.raises(ValueError, match="label"):
        write_result(comparison, tmp_path / "out", subject)
    assert not list(tmp_path.iterdir())


def test_a_voxel_that_is_not_finite_leaves_nothing(comparison, tmp_path):
    differences = list(comparison.differences)
    spoiled = differences[1].probability.copy()
    spoiled[3, 4, 5] = np.nan
    differences[1] = dataclasses.replace(differences[1], probability=spoiled)
    bad = dataclasses.replace(comparison, differences=tuple(differences))
    with pytest.raises(NumericsError, match="TD6001"):
        write_result(bad, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def noisy(comparison: Comparison, shape: tuple[int, int, int], days: int) -> Comparison:
    """Volumes that no compression makes smaller: `days` days, TMZ against none."""
    rng = np.random.default_rng(3)

    def noise(*leading: int) -> np.ndarray:
        bits = rng.integers(0, 2**32, (*leading, *shape), dtype=np.uint32)
        return (bits & 0x7F7FFFFF).view(np.float32)  # every finite number, positive

    forecasts, differences = {}, []
    for day in range(200, 200 + days):
        for treatment in ("TMZ", "none"):
            forecast = dataclasses.replace(
                comparison.first, mean=noise(3), std=noise(3), tumour_probability=noise()
            )
            forecasts[Scenario(day, treatment)] = forecast
        pair = Scenario(day, "TMZ"), Scenario(day, "none")
        volume_ml = comparison.differences[0].volume_ml
        differences.append(Difference(*pair, noise(), noise(), volume_ml))
    return dataclasses.replace(
        comparison, forecasts=forecasts, differences=tuple(differences), report={}
    )


@pytest.mark.parametrize("days", [1, 2])
def test_the_expected_size_is_an_upper_bound_and_not_a_wild_one(comparison, tmp_path, days):
    shape = (64, 64, 32)
    out, _ = write_result(noisy(comparison, shape, days), tmp_path / "out")
    sizes = {path: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    on_disk = sum(-(-size // 4096) * 4096 for size in sizes.values())
    voxels = int(np.prod(shape))
    expected = expected_bytes(voxels, 2 * days, 2)
    assert on_disk <= expected
    # Of the volumes alone: segmentations compress, and there are fewer differences than may be.
    volumes = sum(size for path, size in sizes.items() if path.name.endswith(".gz"))
    of_volumes = expected - expected_bytes(0, 2 * days, 2)
    assert 0.85 * of_volumes <= volumes <= of_volumes
    assert expected_bytes(voxels, 2 * days, 1) < 0.7 * expected


def test_new_folders_survive_a_power_cut(tmp_path, monkeypatch):
    """A folder's entry is in its parent: each parent of a new one is flushed."""
    flushed = []
    with ResultFolder(tmp_path / "out", manifest=MANIFEST) as result:
        monkeypatch.setattr(write, "sync_folder", flushed.append)
        result.subfolder("sub-17/ses-day190/anat")
        base = result.path
        assert set(flushed) == {base, base / "sub-17", base / "sub-17/ses-day190"}
        result.subfolder("sub-17/ses-day190/anat")
        assert len(flushed) == 3
        monkeypatch.undo()
        result.complete({})


def test_a_forecast_is_never_read_as_what_was_seen(comparison, case_folder, tmp_path):
    """A result among the derivatives of its source, for a session of the same name."""
    root = tmp_path / "raw"
    shutil.copytree(case_folder.parent, root)
    before = read_case(root / "sub-17")
    table = root / "sub-17/sub-17_sessions.tsv"
    (root / "sub-17/ses-04").rename(root / "sub-17/ses-day190")
    for path in (root / "sub-17/ses-day190/anat").iterdir():
        path.rename(path.with_name(path.name.replace("ses-04", "ses-day190")))
    table.write_text(table.read_text().replace("ses-04", "ses-day190"))
    write_result(comparison, root / "derivatives/tadiff")
    after = read_case(root / "sub-17")
    assert after.sessions[-1].name == "ses-day190"
    assert after.sessions[-1].mask is None
    for one, two in zip(before.sessions[:-1], after.sessions[:-1], strict=True):
        assert one.mask.sha256 == two.mask.sha256


def test_a_result_is_no_case(folder):
    """Its table of sessions names no treatments, so that forecasts are not forecast from."""
    with pytest.raises(InputDataError, match="treatment"):
        read_case(folder / "sub-17")


@pytest.fixture(scope="module")
def validator() -> str:
    """The validator of the BIDS project, which looks at names, sidecars, tables and headers."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("bids-validator-deno", path=places)
    if found is None:
        pytest.skip("the BIDS validator is not installed: pip install bids-validator-deno")
    return found


def errors_of(validator: str, folder: Path, *options: str) -> set[tuple[str, str]]:
    """Code and place of every error that it finds, in derivatives too where they are looked at."""
    ran = subprocess.run(
        [validator, str(folder), "--format", "json", "--ignoreWarnings", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    report = json.loads(ran.stdout)
    reports = [report, *(report.get("derivativesSummary") or {}).values()]
    assert sum(each["summary"]["totalFiles"] for each in reports) >= 15
    return {
        (issue["code"], issue["location"])
        for each in reports
        for issue in each["issues"]["issues"]
        if issue["severity"] == "error"
    }


@pytest.fixture
def raw(comparison, case_folder, tmp_path) -> Path:
    """A raw data set with the result among its derivatives."""
    root = tmp_path / "raw"
    shutil.copytree(case_folder.parent, root)
    description = {"Name": "raw", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "README").write_text("A data set of a test, which has more than a few words in it.")
    description |= {"DatasetType": "derivative", "GeneratedBy": [{"Name": "manual"}]}
    (root / "derivatives/manual/dataset_description.json").write_text(json.dumps(description))
    out, _ = write_result(comparison, root / "derivatives/tadiff")
    (out / "report.html").write_text("<!doctype html>")
    return root


@pytest.mark.slow
def test_the_bids_validator_finds_no_error(validator, raw):
    assert errors_of(validator, raw / "derivatives/tadiff") == set()
    assert errors_of(validator, raw) == set()


@pytest.mark.slow
def test_within_a_raw_data_set_it_objects_to_no_more_than_bidsignore_lists(validator, raw):
    """Version 3.0.2 drops the .bidsignore of a nested data set before it looks for it."""
    out = raw / "derivatives/tadiff"
    ignored = {f"/{name}" for name in (out / ".bidsignore").read_text().split()}
    found = errors_of(validator, raw, "--recursive")
    assert {place for _, place in found} <= ignored
    assert ignored <= {f"/{name}" for name in files_of(out)}


@pytest.mark.slow
def test_the_bids_validator_would_find_an_error(validator, raw):
    out = raw / "derivatives/tadiff"
    anat = out / "sub-17/ses-day190/anat"
    image = anat / "sub-17_ses-day190_desc-predictedTMZ_FLAIR"
    Path(f"{image}.nii.gz").rename(anat / "sub-17_ses-day190_stat-std_FLAIR.nii.gz")
    sidecar = Path(f"{anat}/sub-17_ses-day190_desc-predictedTMZ_T1w.json")
    sidecar.write_text(sidecar.read_text().replace('"SkullStripped": true,', ""))
    codes = {code for code, _ in errors_of(validator, out)}
    assert {"SIDECAR_KEY_REQUIRED", "SIDECAR_WITHOUT_DATAFILE"} <= codes
