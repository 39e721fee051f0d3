"""Faults in the ensemble's kernels."""

from tests.mutants.mutant import Mutant

OP = "kernels/ensemble_step.py"
TRITON = "kernels/ensemble_step_triton.py"
TEST = "tests/kernels/test_ensemble_step.py"

MUTANTS = (
    Mutant(
        "a mean that keeps one float",
        TRITON,
        "        mean, mean_lo = _as_float64(mean, mean_lo)\n",
        "        mean_lo = tl.zeros_like(mean)\n",
        f"{TEST}::test_sums_keep_their_bounds",
    ),
    Mutant(
        "squares of the difference from the new mean",
        TRITON,
        "_product(before, before_lo, after, after_lo)",
        "_product(after, after_lo, after, after_lo)",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "squares whose product is rounded",
        TRITON,
        "return _sum(hi, tl.fma(a, b, -hi) + tl.fma(a_lo, b, a * b_lo))",
        "return _sum(hi, tl.fma(a_lo, b, a * b_lo))",
        f"{TEST}::test_sums_keep_their_bounds",
    ),
    Mutant(
        "a quotient without its remainder",
        TRITON,
        "rest = (a - product) - tl.fma(hi, n, -product)",
        "rest = a - product",
        f"{TEST}::test_sums_keep_their_bounds",
    ),
    Mutant(
        "a sum that drops the low parts' own error",
        TRITON,
        "    hi, lo = _sum(hi, lo + low)\n    return _sum(hi, lo + low_lo)",
        "    return _sum(hi, lo + b_lo)",
        f"{TEST}::test_sums_keep_their_bounds",
    ),
    Mutant(
        "Dekker's sum where the larger term is not known",
        TRITON,
        "return hi, (a - (hi - part)) + (b - part)",
        "return hi, b - part",
        f"{TEST}::test_sums_keep_their_bounds",
    ),
    Mutant(
        "samples counted from zero",
        TRITON,
        "(done + k + 1).to(tl.float32)",
        "(done + rows).to(tl.float32)",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "samples counted anew in every batch",
        TRITON,
        "(done + k + 1).to(tl.float32)",
        "(k + 1 + 0 * done).to(tl.float32)",
        f"{TEST}::test_how_samples_are_cut_into_batches_changes_no_bit",
    ),
    Mutant(
        "a first sample that has a pair",
        TRITON,
        "        sign = tl.where(done + k == 0, 0.0, sign)  # the first has none before it\n",
        "",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "pairs that are not made across batches",
        TRITON,
        "tl.where(done + k == 0, 0.0, sign)",
        "tl.where(k == 0, 0.0, sign)",
        f"{TEST}::test_how_samples_are_cut_into_batches_changes_no_bit",
    ),
    Mutant(
        "pair differences with their sign",
        TRITON,
        "sign = tl.where(apart < 0.0, -1.0, 1.0)",
        "sign = tl.full([BLOCK], 1.0, tl.float32)",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "sums that are trimmed where a batch ends",
        TRITON,
        (
            "        squares, squares_lo = _as_float64(squares, squares_lo)\n        pairs, "
            "pairs_lo = _as_float64(pairs, pairs_lo)\n"
        ),
        (
            "    squares, squares_lo = _as_float64(squares, squares_lo)\n    pairs, pairs_lo = "
            "_as_float64(pairs, pairs_lo)\n"
        ),
        f"{TEST}::test_how_samples_are_cut_into_batches_changes_no_bit",
    ),
    Mutant(
        "sums that are no float64",
        TRITON,
        "spare = tl.minimum(tl.maximum(apart - 29, 0), 24)",
        "spare = tl.minimum(tl.maximum(apart - 34, 0), 24)",
        f"{TEST}::test_a_state_comes_back_to_the_same_bits",
    ),
    Mutant(
        "a slot that keeps what it held",
        TRITON,
        "    held = ok & (tl.full([BLOCK], done, tl.int32) > 0)\n    inside",
        "    held = ok\n    inside",
        f"{TEST}::test_a_slot_is_used_again",
    ),
    Mutant(
        "a segment of no rows that is written",
        TRITON,
        "    if rows == 0:\n        return\n    if",
        "    if",
        f"{TEST}::test_segments_of_a_batch_go_to_their_slots",
    ),
    Mutant(
        "every segment from the first row",
        TRITON,
        "    images_ptr += first * N + at\n",
        "    images_ptr += at\n",
        f"{TEST}::test_segments_of_a_batch_go_to_their_slots",
    ),
    Mutant(
        "counts of another slot",
        TRITON,
        "    counts_ptr += (slot * SAMPLES + done) * 2\n    total",
        "    counts_ptr += done * 2\n    total",
        f"{TEST}::test_segments_of_a_batch_go_to_their_slots",
    ),
    Mutant(
        "counts that are not cleared",
        TRITON,
        (
            "            tl.store(counts_ptr + entry, tl.zeros([BLOCK], tl.int32), entry < 2 * "
            "rows)\n"
        ),
        "            tl.store(counts_ptr + entry, tl.zeros([BLOCK], tl.int32), entry < rows)\n",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "tumour outside of the patient",
        TRITON,
        "mask = tl.where(inside & (logit > 2.220446049250313e-16), 1.0, 0.0)",
        "mask = tl.where(logit > 2.220446049250313e-16, 1.0, 0.0)",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "a probability of one half outside of the patient",
        TRITON,
        "tl.where(inside, _sigmoid(logit), 0.0)",
        "_sigmoid(tl.where(inside, logit, 0.0))",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "tumour above a logit of zero",
        TRITON,
        "logit > 2.220446049250313e-16",
        "logit > 0.0",
        f"{TEST}::test_tumour_is_where_the_definition_says_so",
    ),
    Mutant(
        "tumour at the logit that rounds to one half",
        TRITON,
        "logit > 2.220446049250313e-16",
        "logit >= 2.220446049250313e-16",
        f"{TEST}::test_tumour_is_where_the_definition_says_so",
    ),
    Mutant(
        "the logits of another slot",
        TRITON,
        "TARGET=TARGET_SLOT",
        "TARGET=TARGET_SLOT - 1",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "a sigmoid without the low part of log(2)",
        TRITON,
        "    r = tl.fma(n, -1.4286068203094173e-06, r)\n",
        "",
        f"{TEST}::test_the_sigmoid_keeps_its_bound",
    ),
    Mutant(
        "a sigmoid with a shorter series",
        TRITON,
        "e = tl.fma(r, tl.fma(r, 1 / 5040, 1 / 720), 1 / 120)",
        "e = tl.fma(r, tl.full([1], 1 / 720, tl.float32) + 0.0 * r, 1 / 120)",
        f"{TEST}::test_the_sigmoid_keeps_its_bound",
    ),
    Mutant(
        "probabilities summed in one float",
        TRITON,
        (
            "        total, total_lo = _plus(total, total_lo, probability)\n        total, "
            "total_lo = _as_float64(total, total_lo)\n"
        ),
        "        total += probability\n",
        f"{TEST}::test_the_sum_of_probabilities_loses_nothing",
    ),
    Mutant(
        "a mask that is not kept for the next batch",
        TRITON,
        "    tl.store(sums_ptr + 23 * P, last, ok)\n",
        "",
        f"{TEST}::test_how_samples_are_cut_into_batches_changes_no_bit",
    ),
    Mutant(
        "a mask plane that is written past its end",
        TRITON,
        "    tl.store(sums_ptr + 23 * P, last, ok)\n",
        "    tl.store(sums_ptr + 23 * P, last)\n",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "the last image of another program",
        TRITON,
        "    tl.store(sums_ptr + 6 * N, last, ok)\n",
        "    tl.store(sums_ptr + 6 * N, last, at < BLOCK)\n",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "a state whose overlaps begin with the first sample",
        OP,
        '"_overlaps": found[1:, _OVERLAP]',
        '"_overlaps": found[:-1, _OVERLAP]',
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "a state without its low parts",
        OP,
        "    return hi.double() + lo.double()\n",
        "    return hi.double()\n",
        f"{TEST}::test_the_statistics_are_those_of_float64",
    ),
    Mutant(
        "a slot that is filled without low parts",
        OP,
        "= hi, state[name] - hi",
        "= hi, 0",
        f"{TEST}::test_a_state_of_the_definition_goes_on_on_the_device",
    ),
)
