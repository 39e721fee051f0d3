"""Faults in the benchmarks."""

from tests.mutants.mutant import Mutant

FLOOR = "benchmarks/floor.py"
GPU_KERNELS = "benchmarks/gpu_kernels.py"
GPU_NETWORK = "benchmarks/gpu_network.py"
GPU_PROFILE = "benchmarks/gpu_profile.py"
GPU_SESSION = "benchmarks/gpu_session.sh"
GPU_TARGETS = "benchmarks/gpu_targets.py"
KERNEL_PROBLEMS = "benchmarks/kernel_problems.py"
LOOP_PROBLEMS = "benchmarks/loop_problems.py"
NETWORK_COST = "benchmarks/network_cost.py"
NETWORK_QUALITY = "benchmarks/network_quality.py"
TEST_FLOOR = "tests/benchmarks/test_gpu_floor.py"
TEST_KERNELS = "tests/benchmarks/test_gpu_kernels.py"
TEST_NETWORK = "tests/benchmarks/test_gpu_network.py"
TEST_SESSION = "tests/benchmarks/test_gpu_session.py"
TEST_TABLE = "tests/benchmarks/test_gpu_table.py"

MUTANTS = (
    Mutant(
        "floor of the longer of sums",
        FLOOR,
        '            share["bandwidth" if moving > computing else "flops"]'
        " += 1e3 * max(moving, computing)\n"
        "        return sum(share.values()), max(share, key=lambda kind: share[kind])",
        '            share["bandwidth"] += 1e3 * moving\n'
        '            share["flops"] += 1e3 * computing\n'
        "        return max(share.values()), max(share, key=lambda kind: share[kind])",
        TEST_FLOOR,
    ),
    Mutant(
        "roofline of the first session",
        FLOOR,
        '                found[entry["contestant"]] = entry',
        '                found.setdefault(entry["contestant"], entry)',
        TEST_FLOOR,
    ),
    Mutant(
        "upsampling counted at the large image",
        NETWORK_COST,
        "                read = read // 4 if module in upsampled else read\n",
        "",
        TEST_FLOOR,
    ),
    Mutant(
        "attention counted with one product",
        NETWORK_COST,
        "products = 4 * positions**2",
        "products = 2 * positions**2",
        TEST_FLOOR,
    ),
    Mutant(
        "weights read once an image",
        NETWORK_COST,
        "moved = self.weights + batch * self.activations",
        "moved = batch * (self.weights + self.activations)",
        TEST_FLOOR,
    ),
    Mutant(
        "norms in the strict floor",
        NETWORK_COST,
        'if separate_norms or layer.kind != "norm"',
        "if separate_norms or layer.kind",
        TEST_FLOOR,
    ),
    Mutant(
        "an evaluation counted once in a run of many",
        NETWORK_COST,
        "[work.times(calls) for work in",
        "[work for work in",
        TEST_FLOOR,
    ),
    Mutant(
        "a wrong contestant is timed",
        GPU_KERNELS,
        "if not error <= problem.allowed:",
        "if error > 10 * problem.allowed:",
        TEST_KERNELS,
    ),
    Mutant(
        "NaN passes",
        GPU_KERNELS,
        "if not error <= problem.allowed:",
        "if error > problem.allowed:",
        TEST_KERNELS,
    ),
    Mutant(
        "the ratio to compiled code upside down",
        GPU_KERNELS,
        "row[\"of_compiled\"] = float(f\"{ms['compiled'] / ms['ours']:.4g}\")",
        "row[\"of_compiled\"] = float(f\"{ms['ours'] / ms['compiled']:.4g}\")",
        TEST_KERNELS,
    ),
    Mutant(
        "smallest shapes are main",
        KERNEL_PROBLEMS,
        "key=lambda item: -item[1] * _elements(item[0])",
        "key=lambda item: item[1] * _elements(item[0])",
        TEST_KERNELS,
    ),
    Mutant(
        "calls not counted",
        KERNEL_PROBLEMS,
        "shapes] += 1",
        "shapes] = 1",
        TEST_KERNELS,
    ),
    Mutant(
        "solver history read from the slot of this row",
        LOOP_PROBLEMS,
        "slots = [(STEP - k) % (history + 1) for k in (0, 1)]",
        "slots = [(STEP - k) % (history + 1) for k in (0, 0)]",
        TEST_KERNELS,
    ),
    Mutant(
        "noise of another step",
        LOOP_PROBLEMS,
        "normal_reference(SEED, keys, STEP + 1,",
        "normal_reference(SEED, keys, STEP,",
        TEST_KERNELS,
    ),
    Mutant(
        "plain statistics without the factor of Welford",
        LOOP_PROBLEMS,
        "mean = mean + before / (k + 1)",
        "mean = mean + before / k",
        TEST_KERNELS,
    ),
    Mutant(
        "heaviest kernel by one call",
        GPU_PROFILE,
        'row["ms"] * row["calls"]',
        'row["ms"]',
        TEST_KERNELS,
    ),
    Mutant(
        "norms of the eager network in half",
        GPU_NETWORK,
        "if not isinstance(module, GroupNorm32):",
        "if True:",
        TEST_NETWORK,
    ),
    Mutant(
        "padding rows counted as samples",
        NETWORK_QUALITY,
        "for k in range(min(inputs.batch, inputs.samples - first)):",
        "for k in range(inputs.batch):",
        TEST_NETWORK,
    ),
    Mutant(
        "all batches draw the first samples",
        NETWORK_QUALITY,
        "x = noise[first : first + inputs.batch]",
        "x = noise[: inputs.batch]",
        TEST_NETWORK,
    ),
    Mutant(
        "time of a batch as that of an image",
        GPU_NETWORK,
        "entry['ms'] / batch",
        "entry['ms']",
        TEST_NETWORK,
    ),
    Mutant(
        "baseline is the rung itself",
        GPU_NETWORK,
        "baseline = made.get(LADDER[0], denoise)",
        "baseline = denoise",
        TEST_NETWORK,
    ),
    Mutant(
        "dry rows on the page",
        GPU_TARGETS,
        'return [row for row in rows if row["device"] == "cuda"]',
        "return rows",
        f"{TEST_TABLE}::test_dry_runs_are_no_measurements",
    ),
    Mutant(
        "sessions mixed in a table",
        GPU_TARGETS,
        '        if row["session"] == wanted[-1]["session"]:\n            cases.setdefault',
        '        if row["session"]:\n            cases.setdefault',
        f"{TEST_TABLE}::test_a_table_shows_one_session",
    ),
    Mutant(
        "batch 16 taken for batch 1",
        GPU_TARGETS,
        'ends = r"(?!\\d)" if prefix[-1].isdigit() else ""',
        'ends = ""',
        f"{TEST_TABLE}::test_a_batch_is_not_another_that_begins_like_it",
    ),
    Mutant(
        "the best operator decides",
        GPU_TARGETS,
        "max if self.least != self.worst else min",
        "max if self.least else min",
        f"{TEST_TABLE}::test_targets_are_judged_at_their_limits",
    ),
    Mutant(
        "any rung meets a target",
        GPU_TARGETS,
        "if name.startswith(contestant) and",
        "if",
        f"{TEST_TABLE}::test_only_the_last_rung_counts_for_a_target",
    ),
    Mutant(
        "a failure ends the session",
        GPU_SESSION,
        '>>"$log" 2>&1 || code=$?',
        '>>"$log" 2>&1 || exit $?',
        f"{TEST_SESSION}::test_a_stage_that_fails_does_not_stop_the_next",
    ),
    Mutant(
        "a session always ends well",
        GPU_SESSION,
        "END { exit failed }",
        "END { exit 0 }",
        f"{TEST_SESSION}::test_what_there_is_no_time_for_is_said",
    ),
    Mutant(
        "stages without a limit",
        GPU_SESSION,
        'timeout -k 5 "$limit" "$@"',
        '"$@"',
        f"{TEST_SESSION}::test_a_stage_that_hangs_is_ended",
    ),
)
