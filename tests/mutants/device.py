"""Faults in the loop that runs on a device."""

from tests.mutants.mutant import Mutant

BUCKETS = "tadiff_rt/device/buckets.py"
FEED = "tadiff_rt/device/feed.py"
FIT = "tadiff_rt/device/fit.py"
FORM = "tadiff_rt/device/form.py"
LOOP = "tadiff_rt/device/loop.py"
RUNNER = "tadiff_rt/device/runner.py"
RUNNERS = "tadiff_rt/device/runners.py"
STATISTICS = "tadiff_rt/device/statistics.py"
TEST_FORECAST = "tests/rt/test_device_forecast.py"
TEST_GRAPH = "tests/rt/test_device_graph.py"
TEST_MEMORY = "tests/rt/test_device_memory.py"
TEST_SHARED = "tests/rt/test_device_shared.py"
TEST_RUNNER = "tests/rt/test_device_runner.py"

MUTANTS = (
    Mutant(
        "device: the seed of the first request stays",
        LOOP,
        "        for name, tensor in inputs.tensors.items():\n            held[name]",
        (
            "        for name, tensor in inputs.tensors.items():\n            if name == "
            '"seed" and self._seen:\n                continue\n            self._seen = '
            "True\n            held[name]"
        ),
        f"{TEST_RUNNER}::test_a_request_does_not_depend_on_the_one_before",
    ),
    Mutant(
        "device: seed read as 32 bits",
        FEED,
        "_words([seed & 0xFFFFFFFF, seed >> 32])",
        "_words([seed & 0xFFFFFFFF, 0])",
        f"{TEST_RUNNER}::test_a_request_does_not_depend_on_the_one_before",
    ),
    Mutant(
        "device: the table is not refreshed",
        LOOP,
        "            held[name].copy_(tensor, non_blocking=True)\n",
        (
            '            if name != "table" or not held[name].any():\n                '
            "held[name].copy_(tensor, non_blocking=True)\n"
        ),
        f"{TEST_RUNNER}::test_a_request_does_not_depend_on_the_one_before",
    ),
    Mutant(
        "device: conditioning is not refreshed",
        LOOP,
        '        held["shifts"][:, : inputs.shifts.shape[1]].copy_(inputs.shifts)',
        (
            '        if not held["shifts"].any():\n            held["shifts"][:, : '
            "inputs.shifts.shape[1]].copy_(inputs.shifts)"
        ),
        f"{TEST_RUNNER}::test_a_request_does_not_depend_on_the_one_before",
    ),
    Mutant(
        "device: rows of a segment off by one",
        FEED,
        "line[:] = s.row, s.count, slot_of[s.item.at], s.sample",
        "line[:] = max(s.row - 1, 0), s.count, slot_of[s.item.at], s.sample",
        f"{TEST_RUNNER}::test_the_bucket_changes_no_bit",
    ),
    Mutant(
        "device: padding rows are counted",
        FEED,
        "line[:] = s.row, s.count, slot_of[s.item.at], s.sample",
        (
            "line[:] = s.row, form.rows - s.row if s is bucket.segments[-1] else s.count, "
            "slot_of[s.item.at], s.sample"
        ),
        f"{TEST_RUNNER}::test_the_bucket_changes_no_bit",
    ),
    Mutant(
        "device: a straddling slice begins anew",
        FEED,
        "slot_of[s.item.at], s.sample\n",
        "slot_of[s.item.at], 0\n",
        f"{TEST_RUNNER}::test_the_bucket_changes_no_bit",
    ),
    Mutant(
        "device: samples of a segment numbered from 0",
        BUCKETS,
        "[(s.item.at, s.sample + k) for s in",
        "[(s.item.at, k) for s in",
        f"{TEST_RUNNER}::test_the_bucket_changes_no_bit",
    ),
    Mutant(
        "device: a slot is free when it is enqueued",
        RUNNER,
        "            before, running = running, _Running(bucket, finished, fetched)\n",
        (
            "            free += finished.values()\n            before, running = running, "
            "_Running(bucket, finished, fetched)\n"
        ),
        f"{TEST_RUNNER}::test_a_slot_is_not_used_again_before_it_was_fetched",
    ),
    Mutant(
        "device: slots of one bucket alone",
        FORM,
        "return 2 * self.segments",
        "return self.segments",
        f"{TEST_RUNNER}::test_samples_are_those_of_the_loop_on_arrays",
    ),
    Mutant(
        "device: flags are not reset",
        LOOP,
        "        broken.fill_(UNBROKEN)\n",
        "",
        f"{TEST_RUNNER}::test_flags_of_a_failed_request_are_gone_in_the_next",
    ),
    Mutant(
        "device: fused logits are not reset",
        LOOP,
        "        fused.zero_()\n",
        "",
        f"{TEST_RUNNER}::test_the_bucket_changes_no_bit",
    ),
    Mutant(
        "device: flags of padding rows are read",
        RUNNER,
        "results.broken.numpy()[: len(rows)]",
        "results.broken.numpy()",
        f"{TEST_RUNNER}::test_what_fills_a_bucket_up_is_not_looked_at",
    ),
    Mutant(
        "device: flags are not read",
        RUNNER,
        "        if steps[worst] != UNBROKEN:",
        "        if steps[worst] < 0:",
        f"{TEST_RUNNER}::test_a_row_that_is_not_finite_is_named",
    ),
    Mutant(
        "device: the first flagged row, not the first step",
        RUNNER,
        "worst = int(steps.argmin())",
        "worst = int((steps != UNBROKEN).argmax())",
        f"{TEST_RUNNER}::test_the_first_step_that_fails_is_named",
    ),
    Mutant(
        "device: what a slice goes on from is not loaded",
        FEED,
        "if s.item.so_far is not None and s.sample == s.item.first",
        "if False",
        f"{TEST_RUNNER}::test_a_slice_goes_on_where_it_was",
    ),
    Mutant(
        "device: it is loaded again where the slice straddles",
        FEED,
        "if s.item.so_far is not None and s.sample == s.item.first",
        "if s.item.so_far is not None",
        f"{TEST_RUNNER}::test_a_slice_goes_on_where_it_was",
    ),
    Mutant(
        "device: sources of the first slices",
        LOOP,
        "        at = inputs.at.to(self.device, non_blocking=True)\n",
        "        at = torch.arange(len(inputs.at), device=self.device) % len(inputs.volume)\n",
        f"{TEST_RUNNER}::test_samples_are_those_of_the_loop_on_arrays",
    ),
    Mutant(
        "device: guess from the first source",
        LOOP,
        'held["sources"][:, LAST_SOURCE]',
        'held["sources"][:, :3]',
        f"{TEST_RUNNER}::test_samples_are_those_of_the_loop_on_arrays",
    ),
    Mutant(
        "device: a given start is not noised",
        FEED,
        "        if not self._sampling.informed:\n",
        "        if True:\n",
        f"{TEST_RUNNER}::test_samples_are_those_of_the_loop_on_arrays",
    ),
    Mutant(
        "device: given noise is drawn again",
        LOOP,
        '        if form.start != "given":',
        "        if True:",
        f"{TEST_RUNNER}::test_samples_are_those_of_the_loop_on_arrays",
    ),
    Mutant(
        "device: shifts of the first step in every step",
        LOOP,
        'held["shifts"][i : i + 1, : form.width]',
        'held["shifts"][:1, : form.width]',
        f"{TEST_RUNNER}::test_samples_are_those_of_the_loop_on_arrays",
    ),
    Mutant(
        "device: not clipped",
        LOOP,
        "list(form.x0_range or ())",
        "[]",
        f"{TEST_RUNNER}::test_samples_are_those_of_the_loop_on_arrays",
    ),
    Mutant(
        "device: fixed noise flag",
        RUNNER,
        "noisy=bool(plan.coef_noise.any())",
        "noisy=False",
        f"{TEST_RUNNER}::test_samples_are_those_of_the_loop_on_arrays",
    ),
    Mutant(
        "device: history of two always",
        RUNNER,
        "history=plan.history",
        "history=min(1, plan.history)",
        f"{TEST_RUNNER}::test_samples_are_those_of_the_loop_on_arrays",
    ),
    Mutant(
        "device: everywhere is inside",
        FEED,
        '"inside": inside.astype(np.uint8)',
        '"inside": np.ones(inside.shape, np.uint8)',
        f"{TEST_RUNNER}::test_voxels_outside_hold_no_tumour_in_any_request",
    ),
    Mutant(
        "device: a graph is not compared",
        LOOP,
        "        if differ:\n",
        "        if False:\n",
        f"{TEST_GRAPH}::test_a_graph_that_is_wrong_is_found_out_on_its_first_bucket",
    ),
    Mutant(
        "device: results are not spoilt before the replay",
        LOOP,
        "        replay = capture(self._enqueue)\n        self._spoil()\n",
        (
            "        replay = capture(self._enqueue)\n        for name in "
            "RESULTS:\n            held[name].copy_(expected[name])\n"
        ),
        f"{TEST_GRAPH}::test_a_graph_that_is_wrong_is_found_out_on_its_first_bucket",
    ),
    Mutant(
        "device: captured with the inputs of the first bucket",
        LOOP,
        "            buffer.fill_(1 if buffer.is_floating_point() else 0)\n        replay",
        "            buffer += 0\n        replay",
        f"{TEST_GRAPH}::test_a_graph_that_is_wrong_is_found_out_on_its_first_bucket",
    ),
    Mutant(
        "device: inputs are not loaded again after the capture",
        LOOP,
        "        self._spoil()\n        self._load(inputs)\n        replay()",
        "        self._spoil()\n        replay()",
        f"{TEST_GRAPH}::test_replays_are_the_loop_bit_for_bit",
    ),
    Mutant(
        "device: captured for every request",
        LOOP,
        (
            "        if form == self.form and self.memory is not None:\n            return "
            "self.memory\n"
        ),
        "",
        f"{TEST_GRAPH}::test_a_graph_is_captured_again_where_its_form_changes_and_only_there",
    ),
    Mutant(
        "device: a graph stays when its form changes",
        LOOP,
        "        self._replay, self.form, self.memory = None, None, None\n",
        "        self.form, self.memory = None, None\n",
        f"{TEST_GRAPH}::test_a_graph_is_captured_again_where_its_form_changes_and_only_there",
    ),
    Mutant(
        "device: buffers of another request",
        LOOP,
        "        if form == self.form and self.memory is not None:",
        "        if self.form and form.rows == self.form.rows and self.memory is not None:",
        f"{TEST_RUNNER}::test_a_request_does_not_depend_on_the_one_before",
    ),
    Mutant(
        "device: the loop is not settled for the second of two requests",
        RUNNER,
        "            self._settle()  # another request may have used the loop\n",
        "",
        f"{TEST_RUNNER}::test_two_requests_may_be_asked_for_before_either_is_drawn",
    ),
    Mutant(
        "device: slices that came are drawn again",
        RUNNER,
        "                        del waiting[at]\n                        yield at, statistics\n",
        "                        yield at, statistics\n",
        f"{TEST_MEMORY}::test_slices_that_came_before_come_once",
    ),
    Mutant(
        "device: other errors are taken for want of memory",
        FIT,
        'return error.code == "TD7001"',
        "return True",
        f"{TEST_MEMORY}::test_an_error_of_another_kind_is_not_taken_for_want_of_memory",
    ),
    Mutant(
        "device: buffers are kept when memory ends",
        FIT,
        "    loop.release()\n",
        "",
        f"{TEST_MEMORY}::test_no_memory_for_the_smallest_bucket_is_the_end",
    ),
    Mutant(
        "device: old buffers are kept while new ones are made",
        LOOP,
        "        self.release()\n        free",
        "        free",
        f"{TEST_GRAPH}::test_a_graph_is_captured_again_where_its_form_changes_and_only_there",
    ),
    Mutant(
        "device: less than half where half would do",
        FIT,
        "if b <= rows // 2]",
        "if b < rows // 2]",
        f"{TEST_MEMORY}::test_the_bucket_becomes_half_and_no_bit_changes",
    ),
    Mutant(
        "device: all of the free memory is planned for",
        FORM,
        "SHARE = 0.9",
        "SHARE = 1.0",
        f"{TEST_MEMORY}::test_nine_tenths_of_the_free_memory_are_planned_for",
    ),
    Mutant(
        "device: the workspace is not planned for",
        FORM,
        "return self.buffers + self.workspace",
        "return self.buffers",
        f"{TEST_MEMORY}::test_nine_tenths_of_the_free_memory_are_planned_for",
    ),
    Mutant(
        "device: estimates are left out of the plan",
        FORM,
        '"estimates": (floats, (self.history + 1, *image))',
        '"estimates": (floats, (self.history + 2, *image))',
        f"{TEST_MEMORY}::test_bytes_of_buffers_by_hand",
    ),
    Mutant(
        "device: padding costs nothing",
        BUCKETS,
        "-(-total // rows) * (rows + CALL_ROWS)",
        "-(-total // rows) * CALL_ROWS + total",
        f"{TEST_MEMORY}::test_the_best_bucket_by_hand",
    ),
    Mutant(
        "device: a bucket of one slice too many",
        BUCKETS,
        "filled == rows or len(current) == segments",
        "filled == rows",
        f"{TEST_MEMORY}::test_every_row_is_in_one_bucket_and_in_order",
    ),
    Mutant(
        "device: segments for whole slices only",
        BUCKETS,
        "return 1 + -(-(rows - 1) // samples)",
        "return -(-rows // samples)",
        f"{TEST_MEMORY}::test_segments_suffice_and_are_needed",
    ),
    Mutant(
        "device: results of a bucket before the next is enqueued",
        RUNNER,
        "            before, running = running, _Running(bucket, finished, fetched)\n",
        "            before, running = _Running(bucket, finished, fetched), None\n",
        f"{TEST_RUNNER}::test_slices_of_a_bucket_come_while_the_next_runs",
    ),
    Mutant(
        "device: two loops on one denoiser",
        RUNNERS,
        "_LOOPS.get(id(denoiser)) or DeviceLoop(denoiser, check=check)",
        "DeviceLoop(denoiser, check=check)",
        f"{TEST_FORECAST}::test_the_loop_stays_for_the_next_request_and_is_shared",
    ),
    Mutant(
        "device: the loop keeps its graph while the host calls",
        RUNNERS,
        "            loop.release()  # the backend gets ready for other calls\n",
        "",
        f"{TEST_FORECAST}::test_the_device_is_given_back_before_the_host_calls_the_backend",
    ),
    Mutant(
        "device: coherent noise of steps on the device",
        RUNNERS,
        "if not (sampling.noise.coherence > 0 and sampling.plan.coef_noise.any()):",
        "if True:",
        f"{TEST_FORECAST}::test_coherent_noise_of_every_step_is_drawn_on_the_host_and_that_is_said",
    ),
    Mutant(
        "device: a journal of another bucket is gone on with",
        RUNNER,
        'return f"{self._runtime}, device loop, {self.batch} rows"',
        'return f"{self._runtime}, device loop"',
        f"{TEST_FORECAST}::test_a_journal_of_another_loop_or_bucket_is_not_gone_on_with",
    ),
    Mutant(
        "device: counts of an earlier slice",
        STATISTICS,
        "statistics_state(self.sums, self.counts, number, samples)",
        "statistics_state(self.sums, self.counts, 0, samples)",
        f"{TEST_RUNNER}::test_the_bucket_changes_no_bit",
    ),
    Mutant(
        "device: requests of two threads at once",
        LOOP,
        "        with self._turn:\n",
        "        with nullcontext():\n",
        f"{TEST_SHARED}::test_requests_of_two_threads_take_turns",
    ),
    Mutant(
        "device: half or nothing",
        FIT,
        " or [b for b in buckets if b < rows][:1]",
        "",
        f"{TEST_SHARED}::test_the_smallest_bucket_is_tried_where_half_is_smaller_still",
    ),
    Mutant(
        "device: memory only where it is named first",
        FIT,
        "    return ran_out(error.__cause__ or error.__context__)",
        "    return False",
        f"{TEST_SHARED}::test_memory_is_named_behind_the_error_that_it_led_to",
    ),
    Mutant(
        "device: sources beside what an earlier request holds",
        RUNNER,
        "        self._loop.release()\n        try:\n            return Feed",
        "        try:\n            return Feed",
        f"{TEST_SHARED}::test_sources_that_do_not_fit_beside_an_earlier_request_get_its_memory",
    ),
    Mutant(
        "device: collecting stays off",
        LOOP,
        "            if collects:\n                gc.enable()",
        "            pass",
        f"{TEST_SHARED}::test_collecting_is_on_again_after_a_capture",
    ),
    Mutant(
        "device: buckets that no canary saw",
        LOOP,
        "            if self._check is not None:\n",
        "            if not self.denoiser:\n",
        f"{TEST_SHARED}::test_every_bucket_of_the_device_gives_the_canarys_answer",
    ),
)
