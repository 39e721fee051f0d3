"""Faults in what starting imports, and in the benchmark of it."""

from tests.mutants.mutant import Mutant

IMPORTS, STARTUP = "tests/rt/test_imports.py", "tests/benchmarks/test_startup.py"
PACKAGE, BENCHMARK = "tadiff_rt/__init__.py", "benchmarks/startup.py"
INSTALLATION = "benchmarks/installation.py"
MUTANTS = (
    Mutant(
        "the package imports its forecasts",
        PACKAGE,
        "if TYPE_CHECKING:\n",
        "import tadiff_rt.forecast\n\nif TYPE_CHECKING:\n",
        IMPORTS,
    ),
    Mutant(
        "a model card brings the readers of images",
        "tadiff_rt/card.py",
        "from tadiff_rt.contract import DataContract",
        "from tadiff_rt.preprocess import DataContract",
        IMPORTS,
    ),
    Mutant(
        "a command line opens bundles while it is read",
        "tadiff_rt/cli/__init__.py",
        "from tadiff_rt.errors import printable\n",
        "from tadiff_rt.bundle import describe_bundle, open_bundle\n"
        "from tadiff_rt.errors import printable\n",
        IMPORTS,
    ),
    Mutant(
        "progress bars for commands without progress",
        "tadiff_rt/console.py",
        "import traceback\n",
        "import traceback\n\nimport rich.progress\n",
        IMPORTS,
    ),
    Mutant(
        "a public name from another module",
        PACKAGE,
        '    "Forecast": "assembly",\n',
        '    "Forecast": "ensemble",\n',
        IMPORTS,
    ),
    Mutant(
        "a public name that is not listed",
        PACKAGE,
        '    "ReadOptions",\n    "Session",',
        '    "Session",',
        IMPORTS,
    ),
    Mutant(
        "names that are not imported yet are not listed",
        PACKAGE,
        "sorted({*globals(), *__all__})",
        "sorted({*globals()})",
        IMPORTS,
    ),
    Mutant(
        "type checkers look in another module",
        PACKAGE,
        "    from tadiff_rt.assembly import Forecast\n",
        "    from tadiff_rt.forecast import Forecast\n",
        IMPORTS,
    ),
    Mutant(
        "every unknown name is a missing module",
        PACKAGE,
        "        if name not in _MODULES:\n",
        "        if name not in _MODULES and name.islower():\n"
        "            return importlib.import_module(f'{__name__}.{name}')\n"
        "        if name not in _MODULES:\n",
        f"{IMPORTS}::test_other_names_are_errors_in_the_usual_words",
    ),
    Mutant(
        "a broken dependency is a missing name",
        PACKAGE,
        '        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)\n',
        "        try:\n"
        "            value = getattr(importlib.import_module("
        'f"{__name__}.{_MODULES[name]}"), name)\n'
        "        except ImportError as e:\n"
        "            raise AttributeError(name) from e\n",
        IMPORTS,
    ),
    Mutant(
        "names are looked for again and again",
        PACKAGE,
        "        globals()[name] = value  # so that this is not called again\n",
        "",
        IMPORTS,
    ),
    Mutant(
        "onnxruntime may report where a module comes first",
        PACKAGE,
        'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")\n',
        "",
        IMPORTS,
    ),
    Mutant(
        "the user has no say in telemetry",
        PACKAGE,
        'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")',
        'os.environ["ORT_DISABLE_TELEMETRY"] = "1"',
        IMPORTS,
    ),
    Mutant(
        "bytecode is never kept",
        BENCHMARK,
        'if k != "PYTHONDONTWRITEBYTECODE"} | own',
        "} | own",
        STARTUP,
    ),
    Mutant(
        "first runs share their bytecode",
        BENCHMARK,
        "Path(tempfile.mkdtemp(dir=self.work))\n        if self.results",
        'self.work / "first"\n        if self.results',
        STARTUP,
    ),
    Mutant(
        "speeds are kept in the user's cache",
        BENCHMARK,
        '{"TADIFF_CACHE": f"{work}/cache", ',
        "{",
        STARTUP,
    ),
    Mutant(
        "a process that failed is timed",
        INSTALLATION,
        "    if ended.returncode:\n",
        "    if ended.returncode < 0:\n",
        STARTUP,
    ),
    Mutant(
        "only one run of info is looked at",
        BENCHMARK,
        "for text in runs[name].printed):",
        "for text in runs[name].printed[:1]):",
        STARTUP,
    ),
    Mutant(
        "the fast forecast is compared with the usual one",
        BENCHMARK,
        '("tadiff-rt predict --fast", "fast")',
        '("tadiff-rt predict --fast", "default")',
        STARTUP,
    ),
    Mutant(
        "runs are compared by the names of their files",
        BENCHMARK,
        "p.read_bytes() for p",
        'b"" for p',
        STARTUP,
    ),
    Mutant(
        "files outside the packages are weighed",
        INSTALLATION,
        "if file.is_relative_to(site.resolve())]",
        "]",
        STARTUP,
    ),
    Mutant(
        "pip is part of the runtime",
        INSTALLATION,
        'INSTALLERS = ("pip", "setuptools")',
        'INSTALLERS = ("setuptools",)',
        STARTUP,
    ),
    Mutant(
        "megabytes of 2^20 bytes",
        INSTALLATION,
        "sum(kept.values()) / 1e6",
        "sum(kept.values()) / 2**20",
        STARTUP,
    ),
    Mutant(
        "a failed installation is an unreachable index",
        INSTALLATION,
        '            called([*pip, "download", "--no-deps", "setuptools"], variables, folder)\n',
        '            called([*pip, "download", "--no-deps", "setuptools"], variables, folder)\n'
        '            called([*pip, "install", f"{ROOT}[cpu]"], variables, folder)\n',
        STARTUP,
    ),
    Mutant(
        "the installation leans on the checkout",
        INSTALLATION,
        '        variables.pop("PYTHONPATH", None)  # it must stand by itself\n',
        "",
        STARTUP,
    ),
    Mutant(
        "a picture at another resolution",
        "tadiff_rt/drawing.py",
        "figsize=(width, height), dpi=DPI, ",
        "figsize=(width, height), ",
        "tests/rt/test_overview.py",
    ),
)
