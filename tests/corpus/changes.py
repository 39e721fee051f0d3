"""X01 to X10: changes of a good case that must, or must not, change its forecast."""

import re

import numpy as np

from tests.corpus.case import Accepted, CorpusCase, Elsewhere, Refused
from tests.corpus.phantom import SHAPE, SUFFIXES, Data, save, scan
from tests.corpus.run import predict

EQUAL = Accepted("equal")


def swap_sessions(data: Data) -> None:
    """The images of two sessions that are used change places; days and treatments stay."""
    for modality in SUFFIXES:
        a, b = data.image(2, modality), data.image(3, modality)
        a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
        a.write_bytes(b_bytes)
        b.write_bytes(a_bytes)


def swap_rows(data: Data) -> None:
    header, one, two, three, four = data.table.read_text().splitlines(keepends=True)
    data.table.write_text(header + one + three + two + four)


def add_older(data: Data) -> None:
    """A session between the first and the second, neither of which is among the last three."""
    for m, modality in enumerate(SUFFIXES):
        save(data.image(5, modality), scan(90 + m))
    save(data.mask(5), np.ones(SHAPE, np.uint8))
    data.rewrite(lambda t: t.replace("ses-02\t", "ses-05\t10\tCRT\nses-02\t"))


def permuted_columns(data: Data) -> None:
    rows = [line.split(",") for line in data.manifest().read_text().splitlines()]
    data.case.write_text("".join(",".join(row[::-1]) + "\n" for row in rows))


def renamed(data: Data) -> None:
    for path in sorted(data.bids.rglob("*sub-17*"), reverse=True):
        path.rename(path.with_name(path.name.replace("sub-17", "sub-x99")))
    name = re.sub("sub-17", "sub-x99", str(data.t1.relative_to(data.bids)))
    data.case, data.t1 = data.bids / "sub-x99", data.bids / name


def moved(data: Data) -> None:
    new = data.root / "elsewhere/deeper"
    new.parent.mkdir()
    data.bids.rename(new)
    data.case, data.t1 = new / "sub-17", new / data.t1.relative_to(data.bids)


def options_backwards(data: Data, engine: str) -> list[str]:
    """The same options in another order: each of them is one argument or two."""
    command, *rest = predict(data, engine)
    options: list[list[str]] = []
    for part in rest:
        if part.startswith("--"):
            options.append([part])
        else:
            options[-1].append(part)
    return [command, *(part for option in reversed(options) for part in option)]


CASES = (
    CorpusCase(id="X01", what="another day", options={"day": "+91"}, ending=Accepted("other")),
    CorpusCase(
        id="X01",
        what="the same day, counted from the first session",
        options={"day": "250"},
        ending=Accepted("equal", no_note=True),
    ),
    CorpusCase(
        id="X02", what="another treatment", options={"treatment": "CRT"}, ending=Accepted("other")
    ),
    CorpusCase(
        id="X03",
        what="images of two sessions swapped",
        spoil=swap_sessions,
        ending=Accepted("other"),
    ),
    CorpusCase(
        id="X03", what="rows of two sessions swapped", spoil=swap_rows, ending=Refused(("TD3310",))
    ),
    CorpusCase(
        id="X04",
        what="an older session more",
        spoil=add_older,
        ending=Accepted("equal", note="the last 3 of 5 sessions are used"),
    ),
    CorpusCase(id="X05", what="a manifest in place of BIDS", spoil=Data.manifest, ending=EQUAL),
    CorpusCase(
        id="X05",
        what="columns of a manifest in another order",
        spoil=permuted_columns,
        ending=EQUAL,
    ),
    CorpusCase(
        id="X05",
        what="options in another order",
        argv=options_backwards,
        ending=Accepted("equal", no_note=True),
        api=False,
    ),
    CorpusCase(
        id="X06", what="patient renamed", spoil=renamed, ending=Accepted("equal", no_note=True)
    ),
    CorpusCase(id="X06", what="folder moved", spoil=moved, ending=Accepted("equal", no_note=True)),
    CorpusCase(
        id="X07",
        what="one sample, or the first of five",
        ending=Accepted(
            "first", like=CorpusCase(id="X07", what="-", options={"samples": 5}, ending=Accepted())
        ),
    ),
)
ELSEWHERE = (
    Elsewhere(
        "X07",
        "a row of a batch is that of a batch of one",
        (
            "tests/rt/test_forecast.py::test_a_sample_does_not_depend_on_its_batch",
            "tests/rt/test_batches.py::test_a_row_is_one_solver_run_in_any_bucket_order_and_company",
        ),
    ),
    Elsewhere(
        "X08",
        "mask weights sum to 1 for every solver and number of steps",
        (
            "tests/rt/test_solvers.py::test_every_plan_keeps_its_promises",
            "tests/rt/test_solvers.py::test_plan_refuses_mask_weights_that_are_no_average",
        ),
    ),
    Elsewhere(
        "X09",
        "the published run, and where ours ends",
        (
            "tests/rt/test_solvers.py::test_ddim_is_the_published_step",
            "tests/rt/test_solvers.py::test_full_grid_has_the_published_mask_weights",
            "tests/rt/test_pitfalls.py::test_06_no_noise_is_left_and_no_step_is_a_dummy",
        ),
    ),
    Elsewhere(
        "X10",
        "the softmax that the weights were trained with",
        ("tests/train/test_network.py::test_softmax_one_values",),
    ),
    Elsewhere(
        "V18",
        "activations beyond half precision",
        (
            "tests/export/test_certificate.py::test_what_is_not_finite_fails",
            "tests/rt/test_forecast.py::test_a_sample_that_is_not_finite_is_named",
        ),
    ),
)
