"""Faults in training windows, the loop, and what brings a run back."""

from tests.mutants.mutant import Mutant

T = "tests/train"
WINDOWS, TRAINER = "tadiff_train/data/windows.py", "tadiff_train/fit/trainer.py"
RESUME, MANY, WATCH = f"{T}/test_resume.py", f"{T}/test_distributed.py", f"{T}/test_fit_watch.py"
UNBROKEN = f"{RESUME}::test_a_resumed_run_is_the_unbroken_one_to_the_bit"
MUTANTS = (
    Mutant(
        "windows of neighbouring indices share their draws",
        WINDOWS,
        "counter=[0, number, stream, 0]",
        "counter=[number, 0, stream, 0]",
        f"{T}/test_windows.py::test_the_draws_of_a_window",
    ),
    Mutant(
        "a slot drawn from the stream of the window",
        WINDOWS,
        "self._rng(index, SLOT), of_batch",
        "rng, of_batch",
        f"{T}/test_windows.py",
    ),
    Mutant(
        "coins tossed for each window",
        WINDOWS,
        "self._rng(index // self.batch_size, BATCH)",
        "self._rng(index, BATCH)",
        f"{T}/test_windows.py::test_published_coins_are_of_a_batch",
    ),
    Mutant(
        "the rules of repeated sources exchanged",
        WINDOWS,
        "if second_shared and not first_shared:",
        "if first_shared and not second_shared:",
        f"{T}/test_windows.py::test_proportions_of_target_slots",
    ),
    Mutant(
        "the paper's slots show the answer",
        WINDOWS,
        "return slot if np.count_nonzero(days == days[slot]) == 1 else LAST",
        "return slot",
        f"{T}/test_windows.py::test_proportions_of_target_slots",
    ),
    Mutant(
        "masks not flipped with their images",
        WINDOWS,
        "return images[..., ::-1], masks[..., ::-1]",
        "return images[..., ::-1], masks",
        f"{T}/test_windows.py::test_flip_and_none",
    ),
    Mutant(
        "accumulated gradients are a sum",
        TRAINER,
        '(terms["loss"] / passes)',
        '(terms["loss"])',
        f"{MANY}::test_accumulated_passes_are_one_batch",
    ),
    Mutant(
        "the average is taken before the step",
        TRAINER,
        "        self.scaler.step(self.optimiser)\n        self.scaler.update()\n"
        "        self.ema.update_parameters(self.net)\n",
        "        self.ema.update_parameters(self.net)\n"
        "        self.scaler.step(self.optimiser)\n        self.scaler.update()\n",
        f"{T}/test_fit.py::test_the_arithmetic_of_a_run",
    ),
    Mutant(
        "the learning rate one step ahead",
        TRAINER,
        "learning_rate_at(number - 1, self.config)",
        "learning_rate_at(number, self.config)",
        f"{T}/test_fit.py::test_learning_rate_follows_its_schedule",
    ),
    Mutant(
        "gradients are clipped after the step",
        TRAINER,
        "        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), "
        "self.config.clip_norm)\n        self.scaler.step(self.optimiser)\n",
        "        self.scaler.step(self.optimiser)\n"
        "        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), "
        "self.config.clip_norm)\n",
        f"{T}/test_fit.py::test_gradients_are_clipped",
    ),
    Mutant(
        "the optimiser's moments are forgotten",
        TRAINER,
        "        self.optimiser.load_state_dict(state)\n",
        "",
        UNBROKEN,
    ),
    Mutant(
        "the average starts anew",
        TRAINER,
        '        self.ema.load_state_dict(_below(tensors, "ema."))\n',
        "",
        UNBROKEN,
    ),
    Mutant(
        "a resumed run sees the first windows again",
        "tadiff_train/fit/loop.py",
        "shares = shares_of(config, course.step + 1, processes)",
        "shares = shares_of(config, 1, processes)",
        UNBROKEN,
    ),
    Mutant(
        "settings are not compared",
        "tadiff_train/fit/identity.py",
        "if before.get(name) != values.get(name)",
        "if name not in before",
        f"{RESUME}::test_changed_settings_are_refused",
    ),
    Mutant(
        "of cases in memory only the images count",
        "tadiff_train/fit/identity.py",
        "what: list[object] = [case.days, case.treatments]",
        "what: list[object] = [case.treatments]",
        f"{RESUME}::test_changed_data_are_refused",
    ),
    Mutant(
        "curves are not cut back",
        "tadiff_train/fit/curves.py",
        "        cut_back(out / CURVES, last_step)\n",
        "",
        f"{RESUME}::test_curves_are_cut_back_and_go_on",
    ),
    Mutant(
        "TensorBoard keeps both courses",
        "tadiff_train/fit/curves.py",
        "purge = last_step + 1 if last_step else None",
        "purge = None",
        f"{RESUME}::test_tensorboard_reads_one_course",
    ),
    Mutant(
        "an interrupted run is not saved",
        "tadiff_train/fit/recorder.py",
        "if saves or ends:",
        "if saves:",
        f"{RESUME}::test_a_signal_ends_the_step_and_saves",
    ),
    Mutant(
        "a torn checkpoint stays",
        "tadiff_train/fit/recorder.py",
        "        if self.course.step:\n            self.save_weights(self.out)\n",
        "",
        f"{RESUME}::test_a_finished_run_resumes_to_itself",
    ),
    Mutant(
        "the state is written over the old one",
        "tadiff_train/fit/run.py",
        "    with atomic_file(out / STATE) as file:\n        file.write(data)\n",
        "    (out / STATE).write_bytes(data)\n",
        f"{RESUME}::test_a_full_disk_keeps_the_old_state",
    ),
    Mutant(
        "the best weights are those of the highest loss",
        "tadiff_train/fit/recorder.py",
        'found["loss"] < self.course.best',
        'found["loss"] > self.course.best',
        f"{WATCH}::test_best_holds_the_save_with_the_least_held_out_loss",
    ),
    Mutant(
        "held-out windows at levels that are not trained",
        "tadiff_train/fit/heldout.py",
        "NoiseSchedule(schedule.alphas_cumprod[:num_timesteps])",
        "schedule",
        f"{WATCH}::test_held_out_loss_is_the_mean_over_fixed_windows_and_levels",
    ),
    Mutant(
        "batches of held-out windows count alike, whatever their size",
        "tadiff_train/fit/heldout.py",
        "float(value) * size / sum(self.sizes)",
        "float(value) / len(self.sizes)",
        f"{WATCH}::test_held_out_loss_is_the_mean_over_fixed_windows_and_levels",
    ),
    Mutant(
        "a sample starts from the first source",
        "tadiff_train/fit/sample.py",
        "noised(batch.images[:, -2]",
        "noised(batch.images[:, 0]",
        f"{WATCH}::test_a_sample_with_the_exact_noise_is_the_truth",
    ),
    Mutant(
        "all processes take the same windows",
        "tadiff_train/fit/loader.py",
        "share = k * self.processes.count + self.processes.rank",
        "share = k * self.processes.count",
        f"{MANY}::test_shares_are_each_window_once",
    ),
    Mutant(
        "losses of the first process alone",
        "tadiff_train/fit/processes.py",
        "            values /= self.count\n",
        "",
        f"{MANY}::test_two_processes_are_one",
    ),
    Mutant(
        "an error of the first process is its own",
        "tadiff_train/fit/processes.py",
        "        if told[0] is not None:",
        "        if failure is not None:",
        f"{MANY}::test_processes_fail_together",
    ),
    Mutant(
        "a signal to another process is not heard",
        "tadiff_train/fit/loop.py",
        "signal = processes.highest(asked.number) if step < config.steps else 0",
        "signal = asked.number if step < config.steps else 0",
        f"{MANY}::test_a_signal_to_one_process_ends_all",
    ),
    Mutant(
        "the mean of x_t is not passed on",
        "tadiff_train/start.py",
        "for k, sign in enumerate((1.0, -1.0)):",
        "for k, sign in enumerate((1.0, 1.0)):",
        f"{T}/test_start.py",
    ),
    Mutant(
        "the first source instead of the last",
        "tadiff_train/start.py",
        "first.weight[c, target - NUM_MODALITIES, 1, 1]",
        "first.weight[c, m, 1, 1]",
        f"{T}/test_start.py::test_the_start_returns_the_normalised_difference",
    ),
    Mutant(
        "the published preset averages its weights",
        "tadiff_train/fit/config.py",
        '"ema_decay": 0.0,',
        '"ema_decay": 0.999,',
        f"{T}/test_fit.py::test_presets",
    ),
    Mutant(
        "fit splits patients in other shares than evaluate",
        "tadiff_train/commands/fit.py",
        "test_fraction: o.TestFraction = 0.1",
        "test_fraction: o.TestFraction = 0.2",
        f"{T}/test_fit_command.py::test_the_split_is_that_of_evaluate",
    ),
)
