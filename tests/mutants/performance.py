"""Faults in what pages say of rows."""

from tests.mutants.mutant import Mutant

ANSWERS, RUNS = "benchmarks/answers.py", "benchmarks/run_answers.py"
PERFORMANCE, HARNESS = "benchmarks/performance.py", "benchmarks/harness.py"
ALL, HOOKS = "benchmarks/all.py", "docs/site_hooks.py"
TEST, TEST_ALL, TEST_SITE = (
    "tests/benchmarks/test_performance.py",
    "tests/benchmarks/test_all.py",
    "tests/test_site.py",
)
MUTANTS = (
    Mutant(
        "the larger factor is claimed twice",
        ANSWERS,
        '"the same, memory kept": every[REFERENCE + KEPT]["ms"] / ours,',
        '"the same, memory kept": every[REFERENCE]["ms"] / ours,',
        TEST,
    ),
    Mutant(
        "the fast preset is the default",
        ANSWERS,
        'ours, fast = every[OURS]["ms"], every[FAST]["ms"]',
        'ours, fast = every[OURS]["ms"], every[OURS]["ms"]',
        TEST,
    ),
    Mutant(
        "what was extrapolated is not said",
        ANSWERS,
        """run = f"{steps} of {row['evaluations']}" if steps else "all\"""",
        'run = "all"',
        TEST,
    ),
    Mutant(
        "a spread that fails is not marked",
        ANSWERS,
        'mark = "" if quality["keeps_spread"] else " **(fails)**"',
        'mark = ""',
        TEST,
    ),
    Mutant(
        "the picture shows the slowest as the fastest",
        ANSWERS,
        "shown = {name: base / row",
        "shown = {name: row",
        TEST,
    ),
    Mutant(
        "a target at its limit is missed",
        PERFORMANCE,
        "met = value >= self.limit if self.least else value < self.limit",
        "met = value > self.limit if self.least else value < self.limit",
        TEST,
    ),
    Mutant(
        "a target that is missed is met",
        PERFORMANCE,
        'verdict = "yes" if met else "**no**"',
        'verdict = "yes"',
        TEST,
    ),
    Mutant(
        "the best axis counts",
        PERFORMANCE,
        '    return max(by_name(rows["scaling"], axis)',
        '    return min(by_name(rows["scaling"], axis)',
        TEST,
    ),
    Mutant(
        "memory that shrinks hides memory that grows",
        PERFORMANCE,
        'return max(abs(lines[axis]["growth"]) for axis in axes)',
        'return max(lines[axis]["growth"] for axis in axes)',
        TEST,
    ),
    Mutant(
        "a missing package index is a row like others",
        RUNS,
        '    if "not_measured" in row:\n        return',
        '    if row.get("nothing"):\n        return',
        TEST,
    ),
    Mutant(
        "rows without a floor are saved",
        HARNESS,
        "        floor = NO_FLOOR in entry or all(key in entry for key in FLOOR)\n",
        "        floor = True\n",
        TEST,
    ),
    Mutant(
        "a run adds to the run before",
        HARNESS,
        "    part.write_text(text)\n",
        '    old = folder / f"{question}.jsonl"\n'
        "    part.write_text((old.read_text() if old.exists() else '') + text)\n",
        TEST,
    ),
    Mutant(
        "a question that failed is forgotten",
        ALL,
        "failed += [name] if code else []",
        "failed = [name] if code else []",
        TEST_ALL,
    ),
    Mutant(
        "choices of the user's machine are used",
        ALL,
        '"TADIFF_CACHE": str(work / "cache")',
        '"TADIFF_CACHE": os.environ.get("TADIFF_CACHE", "")',
        TEST_ALL,
    ),
    Mutant(
        "a chart is drawn without what is not understood",
        HOOKS,
        '            raise ValueError(f"not understood in a chart: {line!r}")\n',
        "            continue\n",
        TEST_SITE,
    ),
    Mutant(
        "bars have no figures",
        HOOKS,
        'labels=[f"{value:g}" for value in bars]',
        'labels=["" for value in bars]',
        TEST_SITE,
    ),
)
