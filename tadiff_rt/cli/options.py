"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

MAX_THREADS = 1024

Engine = Annotated[str, typer.Option("--engine", help="Engine bundle, a folder NAME.tadiff.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the result; must be new.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=MAX_THREADS, help="CPU threads; default all.")
]
