"""Faults in plans, noise, statistics, bundles and export."""

from tests.mutants.mutant import Mutant

SOLVERS = "tests/rt/test_solvers.py"
CONVERGENCE = "tests/rt/test_convergence.py"
PARITY = "tests/rt/test_diffusers_parity.py"
SPREAD = "tests/rt/test_spread.py"
PITFALLS = "tests/rt/test_pitfalls.py"
SCHEDULE = "tests/rt/test_schedule.py"
NOISE = "tests/rt/test_noise.py"
ENSEMBLE = "tests/rt/test_ensemble.py"
VOLUME = "tests/rt/test_volume.py"
BUNDLE = "tests/rt/test_bundle.py"
CANARY = "tests/rt/test_canary.py"
CHOOSE = "tests/rt/test_choose.py"
CACHE = "tests/rt/test_cache.py"
EXPORT = "tests/export"
HOSTILE = f"{EXPORT}/test_torch_package.py::test_what_loading_would_execute_is_refused"
PACKED = (
    f"{EXPORT}/test_export.py::test_a_conditioner_program_that_is_packed_wrongly_ends_the_export"
)
WIDE = f"{EXPORT}/test_export.py::test_heads_too_wide_for_the_kernel_cost_the_torch_programs_alone"

MUTANTS = (
    # plans
    Mutant(
        "2M without its history",
        "tadiff_rt/coefficients.py",
        "rows[i, :3] = s[i + 1] / s[i], gain * (1 + half_over_r), -gain * half_over_r",
        "rows[i, :3] = s[i + 1] / s[i], gain, 0.0",
        f"{CONVERGENCE}::test_order_on_the_flow_of_a_gaussian",
    ),
    Mutant(
        "2M with the step ratio upside down",
        "tadiff_rt/coefficients.py",
        "half_over_r = 0.5 * h / (lam[i] - lam[i - 1]) if path.order(i, most) == 2 else 0.0",
        "half_over_r = 0.5 * (lam[i] - lam[i - 1]) / h if path.order(i, most) == 2 else 0.0",
        f"{SOLVERS}::test_dpmpp_2m_is_the_published_algorithm",
    ),
    Mutant(
        "3M of polynomials of one degree less",
        "tadiff_rt/coefficients.py",
        "        order = path.order(i, 3)\n        nodes",
        "        order = path.order(i, 2)\n        nodes",
        f"{CONVERGENCE}::test_third_order_rows_integrate_quadratics_exactly",
    ),
    Mutant(
        "3M parity with the factor that makes it third-order",
        "tadiff_rt/coefficients.py",
        "d2 = (near - far) / (r0 + r1)",
        "d2 = 2 * (near - far) / (r0 + r1)",
        f"{PARITY}::test_dpm_solver",
    ),
    Mutant(
        "2S that does not eliminate the middle",
        "tadiff_rt/coefficients.py",
        "gain * (1 - half_over_r) - back * rows[i, X0]",
        "gain * (1 - half_over_r)",
        f"{SOLVERS}::test_exact_noise_estimates_stay_on_the_levels",
    ),
    Mutant(
        "UniPC without its corrector",
        "tadiff_rt/coefficients.py",
        "rows[i, X0:NOISE] += forward * correction[: NOISE - X0]",
        "pass",
        f"{CONVERGENCE}::test_order_on_the_flow_of_a_mixture",
    ),
    Mutant(
        "UniPC with B(h) = h",
        "tadiff_rt/coefficients.py",
        "    base = math.expm1(h)\n    phi, right",
        "    base = h\n    phi, right",
        f"{PARITY}::test_unipc",
    ),
    Mutant(
        "SDE-2M with too little noise",
        "tadiff_rt/coefficients.py",
        "rows[i, NOISE] = s[i + 1] * math.sqrt(fresh)",
        "rows[i, NOISE] = s[i + 1] * fresh",
        f"{PARITY}::test_dpm_solver",
    ),
    Mutant(
        "DDPM with the variance beta",
        "tadiff_rt/coefficients.py",
        "rows[i, NOISE] = s[i + 1] / s[i] * math.sqrt(beta)",
        "rows[i, NOISE] = math.sqrt(beta)",
        f"{SOLVERS}::test_ddpm_on_the_full_grid_is_the_published_loop",
    ),
    Mutant(
        "DDIM that keeps the direction when it adds noise",
        "tadiff_rt/coefficients.py",
        "direction = math.sqrt(s[i + 1] ** 2 - variance) / s[i]",
        "direction = s[i + 1] / s[i]",
        f"{SOLVERS}::test_ddim_is_another_solver_at_the_ends_of_eta",
    ),
    Mutant(
        "a last step that keeps the noise of the last level",
        "tadiff_rt/coefficients.py",
        "        rows[-1, X0] = 1.0\n",
        "        rows[-1, X0] = self.alpha[-1]\n",
        f"{PITFALLS}::test_06_no_noise_is_left_and_no_step_is_a_dummy",
    ),
    Mutant(
        "order limited near the end without being asked",
        "tadiff_rt/coefficients.py",
        "left = len(self.alpha) - i if self.ramp_down else most",
        "left = len(self.alpha) - i",
        f"{PITFALLS}::test_05_the_order_near_the_end_does_not_depend_on_the_number_of_steps",
    ),
    Mutant(
        "x0 without dividing by alpha",
        "tadiff_rt/solvers.py",
        "        ops.divide(x0, alpha, out=x0)\n",
        "",
        f"{SOLVERS}::test_exact_noise_estimates_stay_on_the_levels",
    ),
    Mutant(
        "history read one row too far back",
        "tadiff_rt/solvers.py",
        "estimates[(i - k) % len(estimates)]",
        "estimates[(i - k - 1) % len(estimates)]",
        f"{SOLVERS}::test_dpmpp_2m_is_the_published_algorithm",
    ),
    Mutant(
        "the caller's noise overwritten",
        "tadiff_rt/solvers.py",
        "x, scratch = x_T * 1.0, x_T * 0.0",
        "x, scratch = x_T, x_T * 0.0",
        f"{SOLVERS}::test_float32_stays_float32_and_the_input_is_not_modified",
    ),
    # levels
    Mutant(
        "times counted from zero",
        "tadiff_rt/schedule.py",
        "result = np.where(times == low, self.alphas_cumprod[low - 1], between)",
        "result = np.where(times == low, self.alphas_cumprod[low - 2], between)",
        f"{PITFALLS}::test_02_times_are_one_based",
    ),
    Mutant(
        "lambda the whole log-SNR",
        "tadiff_rt/schedule.py",
        "result = 0.5 * (np.log(a) - np.log1p(-a))",
        "result = np.log(a) - np.log1p(-a)",
        f"{SCHEDULE}::test_lam_is_half_the_log_snr",
    ),
    Mutant(
        "a log-SNR grid that ends above t = 1",
        "tadiff_rt/schedule.py",
        "lams = np.linspace(low, high, num_steps)\n",
        "lams = np.linspace(low, 0.9 * high, num_steps)\n",
        f"{SCHEDULE}::test_logsnr_grid_is_even_in_lambda_from_T_to_1",
    ),
    Mutant(
        "rounded times that repeat",
        "tadiff_rt/schedule.py",
        "return np.minimum(np.maximum.accumulate((whole + place)[::-1])[::-1], most) - place",
        "return whole",
        f"{PITFALLS}::test_08_rounded_times_are_distinct_where_levels_crowd",
    ),
    # quadrature
    Mutant(
        "mask weights without alpha-bar",
        "tadiff_rt/plan.py",
        "published = schedule.alpha_bar(t) / schedule.alpha_bar(t).sum()",
        "published = np.full(len(t), 1 / len(t))",
        f"{SOLVERS}::test_full_grid_has_the_published_mask_weights",
    ),
    Mutant(
        "mask weights by the nearest level",
        "tadiff_rt/plan.py",
        "hats = [np.interp(window, nodes, one_hot) for one_hot in np.eye(len(nodes))]",
        "hats = list(np.eye(len(nodes))[:, np.abs(window[:, None] - nodes).argmin(axis=1)])",
        f"{SOLVERS}::test_mask_converges_to_the_published_one",
    ),
    Mutant(
        "mask window of eleven times",
        "tadiff_rt/plan.py",
        "MASK_WINDOW = 10\n",
        "MASK_WINDOW = 11\n",
        f"{SOLVERS}::test_full_grid_has_the_published_mask_weights",
    ),
    # noise
    Mutant(
        "Philox with nine rounds",
        "tadiff_rt/philox.py",
        "for _ in range(10):",
        "for _ in range(9):",
        f"{NOISE}::test_known_answers_of_random123",
    ),
    Mutant(
        "noise that ignores the slice",
        "tadiff_rt/noise.py",
        '(("slice", slice_index),',
        '(("slice", 0),',
        f"{NOISE}::test_different_identities_share_no_counter",
    ),
    Mutant(
        "first row adds the initial noise again",
        "tadiff_rt/noise.py",
        "return lambda i: self._normal(rows, i + 1, shape)",
        "return lambda i: self._normal(rows, i, shape)",
        f"{NOISE}::test_first_solver_row_does_not_reuse_the_initial_noise",
    ),
    Mutant(
        "coherent noise that is not standardised",
        "tadiff_rt/gaussian.py",
        "return np.array(powers) / math.sqrt(math.fsum(p * p for p in powers))",
        "return np.array(powers) / math.fsum(powers)",
        f"{NOISE}::test_coherent_noise_is_standard_normal_with_the_correlation_asked_for",
    ),
    Mutant(
        "strata without a place inside",
        "tadiff_rt/latin.py",
        "u = (_strata(seed, slice_index, latin, len(blocks))[sample] + place) / latin",
        "u = (_strata(seed, slice_index, latin, len(blocks))[sample] + 0.5 + 0 * place) / latin",
        f"{NOISE}::test_a_sample_of_a_hypercube_is_standard_normal",
    ),
    # statistics
    Mutant(
        "spread divided by n",
        "tadiff_rt/ensemble.py",
        "np.sqrt(self._squares / (self.count - 1)) if",
        "np.sqrt(self._squares / self.count) if",
        f"{ENSEMBLE}::test_matches_two_pass_numpy",
    ),
    Mutant(
        "probability as sigmoid of the mean of sigmoids",
        "tadiff_rt/ensemble.py",
        "        return self._probability_sum / self.count\n",
        "        return mask_probability(self._probability_sum / self.count)\n",
        f"{ENSEMBLE}::test_probability_is_one_sigmoid_averaged_over_samples",
    ),
    Mutant(
        "CRPS with the whole spread term",
        "tadiff_rt/ensemble.py",
        "self._error_sum / self.count - 0.5 * spread",
        "self._error_sum / self.count - spread",
        f"{ENSEMBLE}::test_crps_is_unbiased",
    ),
    Mutant(
        "pairs with the first sample instead of the last",
        "tadiff_rt/ensemble.py",
        "        self._last_image[...], self._last_mask[...] = rounded, mask\n",
        "        if not self._areas:\n"
        "            self._last_image[...], self._last_mask[...] = rounded, mask\n",
        f"{ENSEMBLE}::test_overlaps_are_of_neighbours_and_of_the_threshold",
    ),
    Mutant(
        "interval of a further draw without its own spread",
        "tadiff_rt/volume.py",
        "return _student_interval(volumes_ml, level, further_draws=1)",
        "return _student_interval(volumes_ml, level, further_draws=0)",
        f"{VOLUME}::test_volume_interval_covers_the_next_draw_as_often_as_it_says",
    ),
    Mutant(
        "scalar CRPS that is not fair",
        "tadiff_rt/volume.py",
        "pair_sum / (n * (n - 1))",
        "pair_sum / (n * n)",
        f"{VOLUME}::test_fair_crps_is_unbiased",
    ),
    Mutant(
        "Dice of two empty masks 0",
        "tadiff_rt/volume.py",
        "if before + after else 1.0",
        "if before + after else 0.0",
        f"{VOLUME}::test_expected_pairwise_dice_of_empty_masks",
    ),
    # bundles and backends
    Mutant(
        "graphs need not keep the bundle's contract",
        "tadiff_rt/backends/ort.py",
        'contract={f"tadiff.{key}": value for key, value in stated.items()},',
        "contract={},",
        f"{BUNDLE}::test_a_graph_from_elsewhere_is_refused_with_the_reason",
    ),
    Mutant(
        "what was never certified is run unasked",
        "tadiff_rt/backends/__init__.py",
        "if canary and not as_certified:",
        "if False:",
        f"{CANARY}::test_it_is_asked_only_of_what_has_no_certificate",
    ),
    Mutant(
        "a damaged artefact is passed over",
        "tadiff_rt/backends/choose.py",
        "if e.code not in PASSED_OVER or len(candidates) == 1:",
        "if len(candidates) == 1:",
        f"{CHOOSE}::test_a_damaged_artefact_is_not_passed_over",
    ),
    Mutant(
        "speeds of another machine",
        "tadiff_rt/backends/choose.py",
        "*versions, machine()]",
        "*versions]",
        f"{CHOOSE}::test_other_threads_and_other_machines_are_measured_anew",
    ),
    Mutant(
        "a group may write to the cache",
        "tadiff_rt/cache.py",
        "(stat.S_IWGRP | stat.S_IWOTH)",
        "stat.S_IWOTH",
        f"{CACHE}::test_others_may_not_write_to_it",
    ),
    Mutant(
        "code behind a harmless beginning",
        "tadiff_rt/pt2_scan.py",
        "not _FORMS.get(key, _NAME).fullmatch(value):",
        "not _FORMS.get(key, _NAME).match(value):",
        HOSTILE,
    ),
    Mutant(
        "sizes of as many digits as one likes",
        "tadiff_rt/pt2_scan.py",
        '|[0-9]{{1,9}}")',
        '|[0-9e]{{1,20}}")',
        HOSTILE,
    ),
    Mutant(
        "sizes that are names",
        "tadiff_rt/pt2_scan.py",
        "if not _EXPRESSION.fullmatch(str(value)):",
        "if not (_EXPRESSION.fullmatch(str(value)) or _NAME.fullmatch(str(value))):",
        HOSTILE,
    ),
    Mutant(
        "sizes judged where they are strings",
        "tadiff_rt/pt2_scan.py",
        'if key == "expr_str":',
        'if key == "expr_str" and isinstance(value, str):',
        HOSTILE,
    ),
    Mutant(
        "sizes of images below 100",
        "tadiff_rt/pt2_scan.py",
        "Mul\\(Integer\\([0-9]{{1,9}}\\)",
        "Mul\\(Integer\\([0-9]{{1,4}}\\)",
        f"{EXPORT}/test_torch_package.py::test_a_program_for_images_of_192_is_not_refused",
    ),
    Mutant(
        "guards that are names",
        "tadiff_rt/pt2_scan.py",
        '_GUARD = re.compile(rf"',
        '_GUARD = re.compile(rf"[A-Za-z0-9_.]+|',
        HOSTILE,
    ),
    # export
    Mutant(
        "group norms of one channel for all",
        "tadiff_export/norms.py",
        "if groups == shape[1]:",
        "if groups:",
        f"{EXPORT}/test_norms.py::test_it_is_the_group_norm",
    ),
    Mutant(
        "weights are read without their checksum",
        "tadiff_export/archive.py",
        "!= told.crc:",
        "!= told.crc and False:",
        f"{EXPORT}/test_hostile.py",
    ),
    Mutant(
        "raw weights before averaged ones",
        "tadiff_export/formats.py",
        "[group for group in groups if group.averaged] or groups",
        "[group for group in groups if not group.averaged] or groups",
        f"{EXPORT}/test_formats.py",
    ),
    Mutant(
        "a conditioner program that is never run",
        "tadiff_export/programs.py",
        "_require_shifts(judge.net, load_module(draft, artefact, device), device, reference)",
        "load_module(draft, artefact, device)",
        PACKED,
    ),
    Mutant(
        "a conditioner program compared with itself",
        "tadiff_export/programs.py",
        "sides = (got, shifts_of(exact_net, condition), shifts_of(net, condition))",
        "sides = (got, got, got)",
        PACKED,
    ),
    Mutant(
        "a conditioner program with the budget of half precision",
        "tadiff_export/programs.py",
        'errors(plain, exact), BUDGETS["fp32"])',
        'errors(plain, exact), BUDGETS["fp16"])',
        PACKED,
    ),
    Mutant(
        "a conditioner program of any shape",
        "tadiff_export/programs.py",
        "    if shape != expected:\n",
        "    if False:\n",
        PACKED,
    ),
    Mutant(
        "heads of any width as torch programs",
        "tadiff_export/programs.py",
        "if widest > WIDEST:",
        "if False:",
        WIDE,
    ),
    Mutant(
        "a conditioner program without a denoiser",
        "tadiff_export/programs.py",
        "    if no_form(judge.net):\n        return\n",
        "",
        WIDE,
    ),
    Mutant(
        "half precision certified on a CPU as if it ran on a GPU",
        "tadiff_export/programs.py",
        'if precision == "fp32" or backend.on_device() is not None:',
        "if True:",
        f"{EXPORT}/test_export.py::test_every_artefact_is_certified",
    ),
    Mutant(
        "a budget of 1 % for fp32",
        "tadiff_export/certify/measure.py",
        "OWN_FLOOR = 1e-5",
        "OWN_FLOOR = 1e-2",
        f"{EXPORT}/test_certificate.py",
    ),
)
