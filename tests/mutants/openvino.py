"""Faults in the backend that computes bf16 on a CPU, and in when it is taken."""

from tests.mutants.mutant import Mutant

TEST = "tests/rt/test_ov.py"
OV = "tadiff_rt/backends/ov.py"
CHOOSE = "tadiff_rt/backends/choose.py"

MUTANTS = (
    Mutant(
        "all of the graph in bf16",
        OV,
        '    "INFERENCE_PRECISION_HINT": "f32",\n',
        "",
        f"{TEST}::test_every_layer_has_the_type_that_the_graph_states",
    ),
    Mutant(
        "threads left to the library",
        OV,
        '{**SETTINGS, "INFERENCE_NUM_THREADS": threads}',
        "{**SETTINGS}",
        f"{TEST}::test_it_takes_the_threads_that_it_is_given",
    ),
    Mutant(
        "threads pinned to the same cores in every compiled graph",
        OV,
        '    "ENABLE_CPU_PINNING": False,\n',
        '    "ENABLE_CPU_PINNING": True,\n',
        f"{TEST}::test_it_takes_the_threads_that_it_is_given",
    ),
    Mutant(
        "results in memory of the request",
        OV,
        "request.infer(feed)",
        "request.infer(feed, share_outputs=True)",
        f"{TEST}::test_results_outlive_the_next_call",
    ),
    Mutant(
        "one request for all threads",
        OV,
        "request = self._free.pop()  #",
        "request = self._free[-1]  #",
        f"{TEST}::test_calls_at_a_time_do_not_meet",
    ),
    Mutant(
        "the converter imported, which reports its use",
        OV,
        "        sys.modules[CONVERTER] = None  # type: ignore[assignment]\n",
        "        sys.modules.setdefault(CONVERTER)\n        del sys.modules[CONVERTER]\n"
        "        hidden = False\n",
        f"{TEST}::test_nothing_is_reported_to_anybody",
    ),
    Mutant(
        "the converter hidden from others for good",
        OV,
        "            del sys.modules[CONVERTER]",
        "            pass",
        f"{TEST}::test_nothing_is_reported_to_anybody",
    ),
    Mutant(
        "want of memory taken for a failure",
        OV,
        "            if of_memory(e):\n                error = MemoryError(said(e))\n",
        "",
        f"{TEST}::test_without_memory_it_goes_on_with_half",
    ),
    Mutant(
        "want of memory not known in OpenVINO's words",
        "tadiff_rt/backends/tensors.py",
        "|bad_alloc|can't alloc|failed to map segment",
        "",
        f"{TEST}::test_without_memory_it_goes_on_with_half",
    ),
    Mutant(
        "want of memory while loading taken for a bad file",
        OV,
        "            if of_memory(e):\n"
        "                raise no_memory_to_load(self.artefact.file) from None\n",
        "",
        f"{TEST}::test_what_cannot_be_loaded_is_named",
    ),
    Mutant(
        "OpenVINO's own sources named to users",
        OV,
        ' and not x.startswith("Exception from ")',
        "",
        f"{TEST}::test_what_fails_otherwise_is_named",
    ),
    Mutant(
        "a failed request kept by its error",
        OV,
        "        raise error  # without `e` behind it, whose frames hold the request",
        "            raise error",
        f"{TEST}::test_what_fails_otherwise_is_named",
    ),
    Mutant(
        "a graph run that nobody scanned",
        OV,
        "verified(self._bundle, self.artefact, inputs=inputs, outputs=outputs)",
        "self._bundle.read(self.artefact)",
        f"{TEST}::test_a_hostile_graph_does_not_reach_it",
    ),
    Mutant(
        "fewer rows than the bucket, whose bits are others",
        OV,
        "        self.partial = False\n",
        "",
        f"{TEST}::test_it_says_what_it_is",
    ),
    Mutant(
        "imported where it cannot be taken",
        CHOOSE,
        "reason = _not_considered(name, held) or unavailable(name)",
        "reason = unavailable(name) or _not_considered(name, held)",
        f"{TEST}::test_a_bundle_without_bf16_does_not_import_it",
    ),
    Mutant(
        "fp32 measured for nothing",
        CHOOSE,
        "if not reason and kind.alone and usual(name, held).precision != kind.alone:",
        "if False:",
        f"{TEST}::test_fp32_is_not_measured",
    ),
    Mutant(
        "bf16 refused where there is nothing else",
        CHOOSE,
        "usual(name, held).precision != kind.alone:",
        '(usual(name, held).precision, "fp32" in held) != (kind.alone, True):',
        f"{TEST}::test_it_runs_bf16_where_there_is_nothing_else",
    ),
    Mutant(
        "a bf16 graph written that was never run",
        "tadiff_export/workshop.py",
        "        if not unavailable(runtime):\n",
        '        if runtime == "onnxruntime":\n',
        f"{TEST}::test_a_written_bf16_graph_is_the_one_that_was_certified",
    ),
)
