"""Faults in the benchmarks of samplers and of the array work of the runtime."""

from tests.mutants.mutant import Mutant

SAMPLER, ENSEMBLES = "benchmarks/sampler.py", "benchmarks/slice_ensembles.py"
DIFFUSERS, KERNELS = "benchmarks/diffusers_run.py", "benchmarks/kernels.py"
ARRAYS, SPELLED_OUT = "benchmarks/array_problems.py", "benchmarks/spelled_out.py"
TEST_SAMPLER = "tests/benchmarks/test_sampler.py"
SCALED = f"{TEST_SAMPLER}::test_a_part_of_a_run_is_scaled_and_the_first_sample_is_not_timed"
DISTANCES = f"{TEST_SAMPLER}::test_distances_are_those_of_forecasts"
FLOOR = f"{TEST_SAMPLER}::test_the_floor_is_that_of_the_evaluations"
QUALITY = f"{TEST_SAMPLER}::test_quality_is_of_the_run_and_of_one_from_noise"
SAMPLES = f"{TEST_SAMPLER}::test_diffusers_at_our_times_draws_our_samples"
SPREAD = f"{TEST_SAMPLER}::test_spread_of_diffusers_is_that_of_a_plan_at_its_times"
DEFAULT = f"{TEST_SAMPLER}::test_their_default_as_it_comes"
BEFORE = f"{TEST_SAMPLER}::test_a_run_does_not_depend_on_the_one_before"
FORECAST = f"{TEST_SAMPLER}::test_ensembles_are_those_of_a_forecast"
TEST_KERNELS = "tests/benchmarks/test_kernels_benchmark.py"

MUTANTS = (
    Mutant(
        "the time of a part of the run for all of it",
        SAMPLER,
        "[one.scale * second for second in seconds[name]]",
        "[second for second in seconds[name]]",
        SCALED,
    ),
    Mutant(
        "the warm-up draws a sample too many",
        SAMPLER,
        "run_in_turns(dict(drawings), samples - 1)",
        "run_in_turns(dict(drawings), samples)",
        SCALED,
    ),
    Mutant(
        "distances from the first contestant after the dense run",
        SAMPLER,
        "    dense = next(iter(every))\n",
        "    dense = list(every)[1]\n",
        DISTANCES,
    ),
    Mutant(
        "the floor of one evaluation",
        SAMPLER,
        'floor = {"calls": one.nfe, **columns}',
        "floor = {**columns}",
        FLOOR,
    ),
    Mutant(
        "quality of a run from noise alone",
        SAMPLER,
        '"quality": plan_quality(plan, informed=where.informed),\n'
        '        "quality_from_noise": plan_quality(make_plan(where.schedule, solver, steps)),',
        '"quality": plan_quality(plan),\n        "quality_from_noise": plan_quality(plan),',
        QUALITY,
    ),
    Mutant(
        "other noise is the same noise",
        SAMPLER,
        "usual.steps, seed=OTHER_SEED)",
        "usual.steps)",
        DISTANCES,
    ),
    Mutant(
        "solvers that draw noise are called paired",
        SAMPLER,
        '"paired": seed == 0 and not plan.coef_noise.any()',
        '"paired": seed == 0',
        QUALITY,
    ),
    Mutant(
        "the quality of the part that is timed",
        SAMPLER,
        'plan_quality(make_plan(where.schedule, "ddpm", steps, "trailing"))',
        'plan_quality(make_plan(where.schedule, "ddpm", measured, "trailing"))',
        QUALITY,
    ),
    Mutant(
        "their times are ours",
        DIFFUSERS,
        "self.scheduler.timesteps[self.first :].numpy() + 1.0",
        "self.scheduler.timesteps[self.first :].numpy() + 0.0",
        SAMPLES,
    ),
    Mutant(
        "the state of the sample before",
        DIFFUSERS,
        '        """An image like `noise`, from the noised guess or from noise alone."""\n'
        "        self.begin()\n",
        '        """An image like `noise`, from the noised guess or from noise alone."""\n',
        BEFORE,
    ),
    Mutant(
        "image to image begins at its first time",
        DIFFUSERS,
        "self.scheduler.set_begin_index(self.first)",
        "self.scheduler.set_begin_index(0)",
        SPREAD,
    ),
    Mutant(
        "noise and guess change places",
        DIFFUSERS,
        "add_noise(torch.from_numpy(guess), x, times[:1])",
        "add_noise(x, torch.from_numpy(guess), times[:1])",
        SAMPLES,
    ),
    Mutant(
        "a pure start for an informed run",
        DIFFUSERS,
        "one if informed else None",
        "None",
        SPREAD,
    ),
    Mutant(
        "theirs asked for twenty times in all",
        DIFFUSERS,
        "asked = math.ceil(steps / strength)",
        "asked = math.ceil(steps / strength) + 3",
        DEFAULT,
    ),
    Mutant(
        "masks of the last evaluation alone",
        ENSEMBLES,
        "np.add(fused, np.float32(weights[i]) * logits[0, TARGET_SLOT], out=fused)",
        "fused[...] = logits[0, TARGET_SLOT]",
        SAMPLES,
    ),
    Mutant(
        "theirs conditioned on the first time",
        ENSEMBLES,
        "shifts[i : i + 1])\n",
        "shifts[:1])\n",
        SAMPLES,
    ),
    Mutant(
        "theirs is never clipped",
        ENSEMBLES,
        "if clipped and self.card.x0_range is not None:",
        "if False:",
        SAMPLES,
    ),
    Mutant(
        "tumour outside the patient",
        ENSEMBLES,
        "np.where(self._where.inside, logits, -np.inf)",
        "logits",
        FORECAST,
    ),
    Mutant(
        "a wrong result is timed",
        KERNELS,
        "errors = {name: problem.check(name, way.run()) for name, way in problem.ways.items()}",
        "errors = dict.fromkeys(problem.ways, 0.0)",
        TEST_KERNELS,
    ),
    Mutant(
        "the floor is the slower copy",
        KERNELS,
        "fastest = min(COPIES",
        "fastest = max(COPIES",
        TEST_KERNELS,
    ),
    Mutant(
        "the time of a run for that of a step",
        KERNELS,
        "second / problem.units for second",
        "second for second",
        TEST_KERNELS,
    ),
    Mutant(
        "the share of an evaluation of one image",
        KERNELS,
        "entry['ms'] / (problem.images * evaluation_ms)",
        "entry['ms'] / evaluation_ms",
        TEST_KERNELS,
    ),
    Mutant(
        "a copy of twice the bytes",
        KERNELS,
        "np.ones(int(bytes_moved) // 8",
        "np.ones(int(bytes_moved) // 4",
        TEST_KERNELS,
    ),
    Mutant(
        "an evaluation of the whole batch for that of an image",
        KERNELS,
        'roofline.floor(works(every, batch, "fp32"))[0] / batch',
        'roofline.floor(works(every, batch, "fp32"))[0]',
        TEST_KERNELS,
    ),
    Mutant(
        "spills for shared memory",
        KERNELS,
        '"shared_bytes": resources.shared',
        '"shared_bytes": resources.spilled',
        TEST_KERNELS,
    ),
    Mutant(
        "x0 that nobody reads again is written",
        ARRAYS,
        "images = 3 + plan.history + bool(plan.history)",
        "images = 4 + plan.history",
        TEST_KERNELS,
    ),
    Mutant(
        "noise of any spread is noise",
        ARRAYS,
        "max(abs(got.mean()), abs(got.std() - 1))",
        "abs(got.mean())",
        TEST_KERNELS,
    ),
    Mutant(
        "what is not a number passes",
        ARRAYS,
        "if not error <= allowed:",
        "if error > allowed:",
        TEST_KERNELS,
    ),
    Mutant(
        "history in the wrong order",
        SPELLED_OUT,
        "earlier = [x0, *earlier[:2]]",
        "earlier = [*earlier[-2:], x0]",
        TEST_KERNELS,
    ),
    Mutant(
        "words of another slice",
        SPELLED_OUT,
        "np.broadcast_arrays(blocks, slices, samples, np.uint64(step))",
        "np.broadcast_arrays(blocks, samples, slices, np.uint64(step))",
        TEST_KERNELS,
    ),
    Mutant(
        "noise is rounded on the way",
        "tadiff_rt/noise.py",
        "angle = (2.0 * np.pi) * (words[pair + 1] * 2.0**-32)",
        "angle = ((2.0 * np.pi) * (words[pair + 1] * 2.0**-32)).astype(np.float32)",
        TEST_KERNELS,
    ),
)
