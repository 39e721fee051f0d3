"""The files of an evaluation: a table, and beside it JSON and a page of figures."""

import tempfile
from pathlib import Path

from tadiff_rt.atomic import output_error
from tadiff_rt.errors import OutputError, UsageError
from tadiff_rt.write import write_bytes
from tadiff_train.evaluation.figures import results_png
from tadiff_train.evaluation.report import results_json
from tadiff_train.evaluation.results import Evaluation
from tadiff_train.evaluation.table import results_table

BESIDE = (".json", ".png")


def require_writable(out: Path) -> None:
    """Finds out before hours of forecasts whether their results could be written.

    Raises:
        UsageError: TD3076, the table would be written over by what lies beside it.
        OutputError: the folder does not exist or cannot be written.
    """
    if out.is_dir():
        raise OutputError("TD8001", "is a folder", where=str(out), fix="name a file in it")
    if out.suffix.lower() in BESIDE:
        what = f"--out names the table, which is Markdown; {out.suffix} is written beside it"
        raise UsageError("TD3076", what, where=str(out), fix=f"pass {out.with_suffix('.md').name}")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise output_error(error, out) from None


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Writes OUT.md, OUT.json and, of at least one patient, OUT.png.

    Raises:
        OutputError, ResourceError: a file cannot be written.
    """
    write_bytes(out, results_table(evaluation).encode())
    write_bytes(_beside(out, ".json"), results_json(evaluation).encode())
    if evaluation.results:
        write_bytes(_beside(out, ".png"), results_png(evaluation))


def _beside(out: Path, suffix: str) -> Path:
    """Of a name such as run-0.5 nothing is cut off: it would be that of run-0.6, too."""
    return out.with_suffix(suffix) if out.suffix.lower() == ".md" else Path(f"{out}{suffix}")
