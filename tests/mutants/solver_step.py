"""Faults in the solver's kernel."""

from tests.mutants.mutant import Mutant

OP = "kernels/solver_step.py"
TRITON = "kernels/solver_step_triton.py"
TEST = "tests/kernels/test_solver_step.py"

MUTANTS = (
    Mutant(
        "a solver row that multiplies by the reciprocal of alpha",
        TRITON,
        "x0 = tl.div_rn(x - sigma * eps, alpha)",
        "x0 = (x - sigma * eps) * tl.div_rn(1.0, alpha)",
        f"{TEST}::test_a_run_has_the_bits_of_solve",
    ),
    Mutant(
        "a solver row that fuses its last product and sum",
        TRITON,
        "x = coef_x * x + coef_x0 * x0\n",
        "x = tl.fma(x0, coef_x0 + tl.zeros_like(x), coef_x * x)\n",
        f"{TEST}::test_a_run_has_the_bits_of_solve",
    ),
    Mutant(
        "a solver row that reads the history one slot off",
        TRITON,
        "((i + HISTORY + 1 - k) % (HISTORY + 1))",
        "((i + HISTORY - k) % (HISTORY + 1))",
        f"{TEST}::test_a_run_has_the_bits_of_solve",
    ),
    Mutant(
        "a first row that multiplies an old history by zero",
        TRITON,
        "tl.load(slot + at, ok & counts, 0.0)",
        "tl.load(slot + at, ok, 0.0)",
        f"{TEST}::test_a_run_has_the_bits_of_solve",
    ),
    Mutant(
        "a history that is not moved to its batch row",
        TRITON,
        "    estimates_ptr += row * 3 * P\n",
        "",
        f"{TEST}::test_a_run_has_the_bits_of_solve",
    ),
    Mutant(
        "history slots that a batch of one is apart",
        TRITON,
        "tl.num_programs(1).to(tl.int64) * 3 * P",
        "tl.full((), 3, tl.int64) * P",
        f"{TEST}::test_a_run_has_the_bits_of_solve",
    ),
    Mutant(
        "noise of the step before",
        TRITON,
        "seed_ptr, i + 1, BLOCK)",
        "seed_ptr, i, BLOCK)",
        f"{TEST}::test_the_noise_is_that_of_the_definition",
    ),
    Mutant(
        "noise of the other half of the seed",
        TRITON,
        "high = tl.load(seed_ptr + 1)",
        "high = tl.load(seed_ptr)",
        f"{TEST}::test_the_noise_is_that_of_the_definition",
    ),
    Mutant(
        "noise of a slice and a sample swapped",
        TRITON,
        "_philox(counter, slice_index, sample, step, low, high)",
        "_philox(counter, sample, slice_index, step, low, high)",
        f"{TEST}::test_a_run_starts_from_noise_or_from_a_noised_guess",
    ),
    Mutant(
        "noise whose four elements come in the wrong order",
        TRITON,
        "tl.join(tl.join(z0, z2), tl.join(z1, z3))",
        "tl.join(tl.join(z0, z1), tl.join(z2, z3))",
        f"{TEST}::test_a_run_starts_from_noise_or_from_a_noised_guess",
    ),
    Mutant(
        "noise that ends with the last counter of a channel",
        TRITON,
        "ok = (at < 4 * end) & (at < 3 * P)",
        "ok = (at < 4 * end) & (at < (c + 1) * P)",
        f"{TEST}::test_any_size_has_the_bits_of_solve",
    ),
    Mutant(
        "a counter that is taken to lie in one channel",
        TRITON,
        "c + (at >= (c + 1) * P).to(tl.int32) + (at >= (c + 2) * P).to(tl.int32)",
        "c + tl.zeros_like(at)",
        f"{TEST}::test_any_size_has_the_bits_of_solve",
    ),
    Mutant(
        "a state whose last program writes past the image",
        TRITON,
        "ok = (at < 4 * end) & (at < 3 * P)",
        "ok = at < 4 * end",
        f"{TEST}::test_a_run_has_the_bits_of_solve",
    ),
    Mutant(
        "an eps that is read as if rows were adjacent",
        TRITON,
        "(pixel // W).to(tl.int64) * eps_h + (pixel % W).to(tl.int64) * eps_w",
        "pixel.to(tl.int64) * eps_w",
        f"{TEST}::test_outputs_of_any_float_and_strides",
    ),
    Mutant(
        "logits that are read with the strides of eps",
        TRITON,
        "strides = (*eps.stride(), *logits.stride())",
        "strides = (*eps.stride(), *eps.stride())",
        f"{TEST}::test_outputs_of_any_float_and_strides",
    ),
    Mutant(
        "an eps in half precision until it is subtracted",
        TRITON,
        "tl.div_rn(x - sigma * eps, alpha)",
        "tl.div_rn(x - (sigma * eps).to(eps_ptr.dtype.element_ty).to(tl.float32), alpha)",
        f"{TEST}::test_outputs_of_any_float_and_strides",
    ),
    Mutant(
        "a clip at its low end alone",
        TRITON,
        "            x0 = tl.where(x0 > HIGH, HIGH, x0)\n",
        "",
        f"{TEST}::test_estimates_are_clipped_as_solve_does",
    ),
    Mutant(
        "a clip that turns NaN into its bound",
        TRITON,
        "x0 = tl.where(x0 < LOW, LOW, x0)",
        "x0 = tl.where(x0 >= LOW, x0, LOW)",
        f"{TEST}::test_clipping_keeps_what_is_not_a_number",
    ),
    Mutant(
        "masks that are summed whatever their weight",
        TRITON,
        "weighted = ok & (tl.full([4 * BLOCK], mask_weight, tl.float32) != 0.0)",
        "weighted = ok",
        f"{TEST}::test_the_first_row_that_is_not_finite_is_remembered",
    ),
    Mutant(
        "logits that are checked as far as the third channel",
        TRITON,
        "        logits_ptr += logits_c\n        bad |= _not_finite(logits)\n",
        (
            "        logits_ptr += logits_c\n        if c < 3:\n            bad |= "
            "_not_finite(logits)\n"
        ),
        f"{TEST}::test_the_first_row_that_is_not_finite_is_remembered",
    ),
    Mutant(
        "a broken row that remembers its last bad step",
        TRITON,
        'tl.atomic_min(broken_ptr + row, i, tl.max(bad, 0) != 0, sem="relaxed")',
        "tl.store(broken_ptr + row, i, tl.max(bad, 0) != 0)",
        f"{TEST}::test_the_first_row_that_is_not_finite_is_remembered",
    ),
    Mutant(
        "finite numbers that are taken for infinite",
        TRITON,
        "& 0x7F800000) == 0x7F800000)",
        "& 0x7F000000) == 0x7F000000)",
        f"{TEST}::test_huge_values_are_finite",
    ),
    Mutant(
        "a table row that is always the first",
        TRITON,
        "    table_ptr += i * COLUMNS\n",
        "",
        f"{TEST}::test_a_run_has_the_bits_of_solve",
    ),
    Mutant(
        "a start that forgets its guess's level",
        TRITON,
        "x = tl.load(table_ptr + 1) * guess + tl.load(table_ptr + 2) * x",
        "x = guess + tl.load(table_ptr + 2) * x",
        f"{TEST}::test_a_run_starts_from_noise_or_from_a_noised_guess",
    ),
    Mutant(
        "an operator on a CPU that keeps no history",
        OP,
        "enumerate(coef_prev[:history], start=1)",
        "enumerate(coef_prev[:0], start=1)",
        f"{TEST}::test_a_run_has_the_bits_of_solve",
    ),
    Mutant(
        "an operator that does not say that it lowers broken",
        OP,
        'mutates_args=("x", "estimates", "fused", "broken")',
        'mutates_args=("x", "estimates", "fused")',
        f"{TEST}::test_the_operators_are_what_they_say",
    ),
    Mutant(
        "a solver step that does not check its logits",
        OP,
        '(("eps", eps, 3), ("logits", logits, 4))',
        '(("eps", eps, 3),)',
        f"{TEST}::test_rejects_what_it_would_misread",
    ),
)
