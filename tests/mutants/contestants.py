"""Faults in turns, in contestants, and in the last batch of a forecast."""

from tests.mutants.mutant import Mutant

TURNS, TEST_TURNS = "benchmarks/turns.py", "tests/benchmarks/test_turns.py"
CONTESTANTS, ONE_SLICE = "benchmarks/contestants.py", "benchmarks/one_slice.py"
QUALITY, TEST = "benchmarks/plan_quality.py", "tests/benchmarks/test_one_slice.py"
MONAI, TEST_MONAI = "benchmarks/gpu_monai.py", "tests/benchmarks/test_gpu_monai.py"
ORT, BATCHES, TEST_BATCHES = (
    "tadiff_rt/backends/ort.py",
    "tadiff_rt/batches.py",
    "tests/rt/test_batches.py",
)
MUTANTS = (
    Mutant(
        "one contestant runs to its end before the next",
        TURNS,
        "return [name for _, name in sorted(moments, key=lambda moment: moment[0])]",
        "return [name for _, name in moments]",
        TEST_TURNS,
    ),
    Mutant(
        "waiting for a turn counts as a step",
        TURNS,
        "            raise _Over\n        self._since = time.perf_counter()\n",
        "            raise _Over\n",
        TEST_TURNS,
    ),
    Mutant(
        "steps are asked for after the last",
        TURNS,
        "            if name not in over and not contestants[name].step():\n",
        "            if not contestants[name].step():\n",
        TEST_TURNS,
    ),
    Mutant(
        "memory of the parent counts",
        TURNS,
        "round(peak_bytes() / 1e6)",
        "round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)",
        TEST_TURNS,
    ),
    Mutant(
        "the allocator is told nothing",
        TURNS,
        "env={**os.environ, **self.environment},",
        "env={**os.environ},",
        TEST_TURNS,
    ),
    Mutant(
        "setting up counts as no time",
        TURNS,
        "        self._since, self._first = time.perf_counter(), True\n",
        "        self._since, self._first = float('inf'), True\n",
        TEST_TURNS,
    ),
    Mutant(
        "what libraries print is read as an answer",
        TURNS,
        "    os.dup2(2, 1)  # what libraries print is no answer\n",
        "",
        TEST_TURNS,
    ),
    Mutant(
        "the published loop adds too much noise",
        CONTESTANTS,
        "x = x + (b * (1 - before) / (1 - bar)) ** 0.5 * z",
        "x = x + b**0.5 * z",
        TEST,
    ),
    Mutant(
        "the published loop takes alpha_bar for alpha",
        CONTESTANTS,
        "x = (x - b / (1 - bar) ** 0.5 * eps) / a**0.5",
        "x = (x - b / (1 - bar) ** 0.5 * eps) / bar**0.5",
        TEST,
    ),
    Mutant(
        "the runtime draws another seed than the others",
        CONTESTANTS,
        "    sampling = Sampling(plan, NoiseSource(0), X0_RANGE)",
        "    sampling = Sampling(plan, NoiseSource(1), X0_RANGE)",
        TEST,
    ),
    Mutant(
        "images that are not numbers are right",
        ONE_SLICE,
        "if not all(value <= ALLOWED for value in differs.values()):",
        "if max(differs.values()) > ALLOWED:",
        TEST,
    ),
    Mutant(
        "images are not compared",
        ONE_SLICE,
        '            differs["images_differ"] = np.abs(images - expected).max()\n',
        "            pass\n",
        TEST,
    ),
    Mutant(
        "rows a call are taken for one",
        ONE_SLICE,
        "    calls = -(-samples // rows_a_call)\n",
        "    calls = samples\n",
        TEST,
    ),
    Mutant(
        "eager with memory kept is eager",
        ONE_SLICE,
        "Contestant(contest, given, {**threads, **KEEPING})",
        "Contestant(contest, given, {**threads})",
        TEST,
    ),
    Mutant(
        "the published network is asked at the times of a rebuilt schedule",
        QUALITY,
        "            signal = trained[k] ** 0.5\n",
        "            signal = alpha_bar[k] ** 0.5\n",
        TEST,
    ),
    Mutant(
        "noise is added after the last step",
        QUALITY,
        "    before = np.append(1.0, alpha_bar[:-1])\n",
        "    before = np.append(0.0, alpha_bar[:-1])\n",
        TEST,
    ),
    Mutant(
        "MONAI's engine is not compared",
        MONAI,
        "    if not error <= ALLOWED:\n",
        "    if error == float('inf'):\n",
        TEST_MONAI,
    ),
    Mutant(
        "MONAI may run PyTorch in its name",
        MONAI,
        '"fallback": False',
        '"fallback": True',
        TEST_MONAI,
    ),
    Mutant(
        "the last batch is padded where it need not be",
        BATCHES,
        "        bucket = len(batch) if self.backend.partial else self.backend.batch\n",
        "        bucket = self.backend.batch\n",
        TEST_BATCHES,
    ),
    Mutant(
        "a session is made for every last batch",
        ORT,
        "            if self._rows != rows:\n",
        "            if True:\n",
        TEST_BATCHES,
    ),
    Mutant(
        "the last session serves any number of rows",
        ORT,
        "            if self._rows != rows:\n",
        "            if not self._rows:\n",
        TEST_BATCHES,
    ),
)
