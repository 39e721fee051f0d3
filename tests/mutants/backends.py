"""Faults in the backends of GPUs."""

from tests.mutants.mutant import Mutant

ON_PROGRAM = "tests/rt/test_on_device_program.py"
ON_ORT = "tests/rt/test_on_device_ort.py"
ON_TRT = "tests/rt/test_on_device_trt.py"
ORT_CUDA = "tadiff_rt/backends/ort_cuda.py"
ORT_DENOISER = "tadiff_rt/backends/ort_denoiser.py"
PROGRAM = "tadiff_rt/backends/program.py"
PROGRAM_DENOISER = "tadiff_rt/backends/program_denoiser.py"
TENSORS = "tadiff_rt/backends/tensors.py"
TRT = "tadiff_rt/backends/trt.py"
TRT_DENOISER = "tadiff_rt/backends/trt_denoiser.py"

MUTANTS = (
    # PyTorch
    Mutant(
        "one function compiled for all buckets",
        PROGRAM_DENOISER,
        "        run = torch.compile(module, dynamic",
        "        run = torch.compile(self._module, dynamic",
        f"{ON_PROGRAM}::test_every_bucket_is_compiled_for_itself_once",
    ),
    Mutant(
        "a bucket compiled at every preparation",
        PROGRAM_DENOISER,
        "        if rows == self._rows:\n            return\n",
        "",
        f"{ON_PROGRAM}::test_every_bucket_is_compiled_for_itself_once",
    ),
    Mutant(
        "warnings of the compiler let through",
        PROGRAM_DENOISER,
        '            warnings.simplefilter("ignore")'
        "  # of the compiler's internals, and that TF32 is off\n",
        "",
        f"{ON_PROGRAM}::test_every_bucket_is_compiled_for_itself_once",
    ),
    Mutant(
        "a bucket ready before the GPU is done",
        PROGRAM_DENOISER,
        "        torch.cuda.synchronize(self.device)  # what fails later fails here\n",
        "",
        f"{ON_PROGRAM}::test_every_bucket_is_compiled_for_itself_once",
    ),
    Mutant(
        "shapes left to the compiler",
        PROGRAM_DENOISER,
        "            if tensor.shape != shape:",
        "            if tensor.ndim != len(shape):",
        f"{ON_PROGRAM}::test_other_shapes_are_refused",
    ),
    Mutant(
        "no rows taken for a bucket that is ready",
        PROGRAM_DENOISER,
        "        if rows < 1 or not (self._dynamic or rows in self.buckets):\n"
        '            raise ValueError(f"rows must be one of {self.buckets}, got {rows}")\n'
        "        if rows == self._rows:\n            return\n",
        "        if rows == self._rows:\n            return\n"
        "        if rows < 1 or not (self._dynamic or rows in self.buckets):\n"
        '            raise ValueError(f"rows must be one of {self.buckets}, got {rows}")\n',
        f"{ON_PROGRAM}::test_a_program_of_one_batch_has_one_bucket",
    ),
    Mutant(
        "a failed bucket left half ready",
        PROGRAM_DENOISER,
        "        self._release()  # out here: `e` holds what this must free\n        raise error",
        "        raise error",
        f"{ON_PROGRAM}::test_a_bucket_that_cannot_be_prepared_is_not_half_ready",
    ),
    Mutant(
        "an error that keeps the buffers of its cause",
        PROGRAM_DENOISER,
        '        error = _failed("run the program", rows, e,',
        '        raise _failed("run", rows, e) from e\n        error = _failed("", rows, e,',
        f"{ON_PROGRAM}::test_where_memory_ends_in_a_call_nothing_is_kept",
    ),
    Mutant(
        "only errors of memory of a program are named",
        PROGRAM_DENOISER,
        "    except Exception as e:  # of PyTorch, CUDA, a compiler: they share no base class",
        "    except (MemoryError, RuntimeError) as e:",
        f"{ON_PROGRAM}::test_other_errors_of_a_call_name_the_program",
    ),
    Mutant(
        "a conditioner program that is not compared",
        PROGRAM_DENOISER,
        "        if self._conditioner is not None:\n            self._check_conditioner",
        "        if not self:\n            self._check_conditioner",
        f"{ON_PROGRAM}::test_a_conditioner_of_other_weights_is_refused",
    ),
    Mutant(
        "TF32 left on",
        PROGRAM_DENOISER,
        "    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False\n",
        "    torch.backends.cudnn.allow_tf32 = False\n",
        f"{ON_PROGRAM}::test_no_arithmetic_that_no_certificate_covers",
    ),
    Mutant(
        "algorithms that differ between replays",
        PROGRAM_DENOISER,
        "torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True",
        "torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, True",
        f"{ON_PROGRAM}::test_no_arithmetic_that_no_certificate_covers",
    ),
    Mutant(
        "arrays computed in the thread that has them",
        PROGRAM,
        "return self._caller.submit(self._denoise, (sources, x, shifts)).result()",
        "return self._denoise((sources, x, shifts))",
        f"{ON_PROGRAM}::test_arrays_of_all_threads_are_computed_in_one",
    ),
    Mutant(
        "arrays in whatever bucket was prepared last",
        PROGRAM,
        "            self._arrays.prepare(self.batch)\n",
        "",
        f"{ON_PROGRAM}::test_arrays_and_tensors_have_buckets_of_their_own",
    ),
    Mutant(
        "threads set where they would be compiled for",
        PROGRAM,
        "        if not self._arrays.capturable:  # on a GPU",
        "        if True:  # on a GPU",
        f"{ON_PROGRAM}::test_arrays_and_tensors_have_buckets_of_their_own",
    ),
    Mutant(
        "the conditioner program not used",
        PROGRAM_DENOISER,
        "if program else None",
        "if not program else None",
        f"{ON_PROGRAM}::test_conditions_come_from_the_bundles_program_where_it_has_one",
    ),
    Mutant(
        "days and treatments exchanged",
        PROGRAM_DENOISER,
        "for values in (t, [days], [treatments])",
        "for values in (t, [treatments], [days])",
        f"{ON_PROGRAM}::test_programs_of_the_network_take_tensors",
    ),
    Mutant(
        "operators not registered",
        PROGRAM_DENOISER,
        "import tadiff_kernels.operators  # noqa: F401  registers torch.ops.tadiff\n",
        "",
        f"{ON_PROGRAM}::test_operators_are_registered_before_a_program_is_loaded",
    ),
    Mutant(
        "one bucket for tensors and arrays, torch",
        PROGRAM,
        "self._tensors = self._arrays.twin()",
        "self._tensors = self._arrays",
        f"{ON_PROGRAM}::test_arrays_and_tensors_have_buckets_of_their_own",
    ),
    Mutant(
        "errors of loading kept with their cause",
        PROGRAM_DENOISER,
        "        error = _failed(what, rows, e, where=str(bundle.path), fix=fix)\n"
        "    raise error\n",
        "        raise _failed(what, rows, e, where=str(bundle.path), fix=fix)\n",
        f"{ON_PROGRAM}::test_a_program_that_cannot_be_loaded_says_why",
    ),
    Mutant(
        "half precision given out as it is",
        TENSORS,
        "(y.float().contiguous().cpu().numpy() for y in",
        "(y.contiguous().cpu().numpy() for y in",
        f"{ON_PROGRAM}::test_tensors_and_arrays_go_the_same_way",
    ),
    # onnxruntime
    Mutant(
        "one bucket for tensors and arrays, onnxruntime",
        ORT_CUDA,
        "self._tensors = self._arrays.twin()",
        "self._tensors = self._arrays",
        f"{ON_ORT}::test_arrays_and_tensors_have_buckets_of_their_own",
    ),
    Mutant(
        "a session of arrays that stays beside the loop",
        ORT_CUDA,
        "        with self._turn:\n            self._arrays.release()\n",
        "",
        f"{ON_ORT}::test_one_session_is_held_at_a_time",
    ),
    Mutant(
        "a session on a stream of its own making",
        ORT_DENOISER,
        "self._providers = [(name, {**options, **stream}) for name, options in providers]",
        "self._providers = list(providers)",
        f"{ON_ORT}::test_every_provider_works_on_a_stream_that_is_not_0",
    ),
    Mutant(
        "onnxruntime that does not wait for the caller",
        ORT_DENOISER,
        "        self._stream.wait_stream(caller)\n",
        "",
        f"{ON_ORT}::test_the_gpu_orders_the_streams_and_nothing_waits",
    ),
    Mutant(
        "a caller that does not wait for onnxruntime",
        ORT_DENOISER,
        "        caller.wait_stream(self._stream)\n",
        "",
        f"{ON_ORT}::test_the_gpu_orders_the_streams_and_nothing_waits",
    ),
    Mutant(
        "a wait of the host in every run",
        ORT_DENOISER,
        "self._session.run_with_iobinding(self._binding, self._no_wait)",
        "self._session.run_with_iobinding(self._binding, ort.RunOptions())",
        f"{ON_ORT}::test_the_gpu_orders_the_streams_and_nothing_waits",
    ),
    Mutant(
        "an input bound once",
        ORT_DENOISER,
        "            if self._bound.get(name) != address:",
        "            if name not in self._bound:",
        f"{ON_ORT}::test_an_address_is_bound_when_it_changes",
    ),
    Mutant(
        "addresses of the last session taken for bound",
        ORT_DENOISER,
        "        self._shapes, self._bound, self._outputs = {}, {}, []\n",
        "        self._shapes, self._outputs = {}, []\n",
        f"{ON_ORT}::test_a_new_session_is_told_addresses_that_the_last_one_knew",
    ),
    Mutant(
        "a session that stays while the next is loaded",
        ORT_DENOISER,
        "        self._session, self._binding, self._rows = None, None, 0\n",
        "        self._rows = 0\n",
        f"{ON_ORT}::test_one_session_is_held_at_a_time",
    ),
    Mutant(
        "a session freed while the GPU works in it",
        ORT_DENOISER,
        "        self._torch.cuda.synchronize()  # the GPU may still be at work in what goes\n",
        "",
        f"{ON_ORT}::test_one_session_is_held_at_a_time",
    ),
    Mutant(
        "any address handed over",
        TENSORS,
        "[t if t.data_ptr() % ALIGNMENT == 0 else t.clone() for t in given]",
        "[*given]",
        f"{ON_ORT}::test_an_address_that_is_not_aligned_is_not_handed_over",
    ),
    Mutant(
        "half precision read as float32",
        TENSORS,
        "        if tensor.dtype != torch.float32 or tensor.device",
        "        if tensor.device",
        f"{ON_ORT}::test_memory_that_is_not_as_agreed_is_not_handed_over",
    ),
    Mutant(
        "channels_last read as contiguous",
        TENSORS,
        " or not tensor.is_contiguous()",
        "",
        f"{ON_ORT}::test_memory_that_is_not_as_agreed_is_not_handed_over",
    ),
    Mutant(
        "a fault of the GPU taken for lack of memory",
        TENSORS,
        '    r"|alloc_failed",',
        '    r"|alloc_failed|memory",',
        f"{ON_ORT}::test_where_a_run_fails_the_error_keeps_nothing",
    ),
    Mutant(
        "a session without memory taken for a bad file",
        ORT_DENOISER,
        'error = no_memory("onnxruntime", rows, e) if of_memory(e) else e',
        "error = e",
        f"{ON_ORT}::test_a_bucket_that_does_not_fit_is_a_resource_error",
    ),
    Mutant(
        "an upload that outlives its error",
        TENSORS,
        "        error = e.with_traceback(None)  # its frames hold the uploaded arrays\n",
        "        error = e\n",
        f"{ON_TRT}::test_an_error_of_arrays_keeps_no_copy_of_them",
    ),
    Mutant(
        "an error of the driver that nobody types",
        ORT_CUDA,
        "            except RuntimeError as e:  # of PyTorch",
        "            except MemoryError as e:  # of PyTorch",
        f"{ON_ORT}::test_what_pytorch_finds_on_the_way_is_typed",
    ),
    # TensorRT
    Mutant(
        "one bucket for tensors and arrays, TensorRT",
        TRT,
        "self._tensors = self._arrays.twin()",
        "self._tensors = self._arrays",
        f"{ON_TRT}::test_arrays_leave_alone_what_a_graph_was_captured_from",
    ),
    Mutant(
        "a context of arrays that stays beside the loop",
        TRT,
        "        with self._lock:\n            self._arrays.release()\n",
        "",
        f"{ON_TRT}::test_arrays_hold_nothing_while_tensors_are_in_use",
    ),
    Mutant(
        "TensorRT on stream 0",
        TRT_DENOISER,
        "        if not stream.cuda_stream:",
        "        if stream.cuda_stream is None:",
        f"{ON_TRT}::test_stream_0_is_left_for_one_of_its_own_and_back",
    ),
    Mutant(
        "TensorRT beside the stream of a capture",
        TRT_DENOISER,
        "        if not stream.cuda_stream:",
        "        if True:",
        f"{ON_TRT}::test_it_runs_on_the_callers_stream",
    ),
    Mutant(
        "addresses of the last context taken for set",
        TRT_DENOISER,
        "        self._outputs, self._addresses, self._shapes = [], {}, {}\n",
        "        self._outputs, self._shapes = [], {}\n",
        f"{ON_TRT}::test_a_new_context_is_told_addresses_that_the_last_one_knew",
    ),
    Mutant(
        "an address set once",
        TRT_DENOISER,
        "            if self._addresses.get(name) != address:",
        "            if name not in self._addresses:",
        f"{ON_TRT}::test_an_address_is_set_when_it_changes",
    ),
    Mutant(
        "an address set at every call",
        TRT_DENOISER,
        "            if self._addresses.get(name) != address:",
        "            if True:",
        f"{ON_TRT}::test_an_address_is_set_when_it_changes",
    ),
    Mutant(
        "an enqueue whose failure nobody sees",
        TRT_DENOISER,
        "        self._must(ok, f\"run a batch of {self._shapes['x_t'][0]}\")\n",
        "",
        f"{ON_TRT}::test_a_call_that_fails_says_so",
    ),
    Mutant(
        "a first run left to the capture",
        TRT_DENOISER,
        "            self._enqueue([torch.zeros(self._shapes[name], **made) for name in INPUTS])",
        "            pass",
        f"{ON_TRT}::test_prepared_means_run_once_and_finished",
    ),
    Mutant(
        "two contexts at a time",
        TRT_DENOISER,
        "        self._context, self._rows = None, 0\n",
        "        self._rows = 0\n",
        f"{ON_TRT}::test_one_bucket_is_held_at_a_time",
    ),
    Mutant(
        "an error that keeps its context",
        TRT_DENOISER,
        "            error = e.with_traceback(None)  # its frames hold what `release` must free\n",
        "            error = e\n",
        f"{ON_TRT}::test_where_memory_ends_a_smaller_bucket_can_be_prepared",
    ),
    Mutant(
        "kernels that TensorRT for RTX replaces as it runs",
        TRT_DENOISER,
        "        return self._engine.create_execution_context(runtime_config=config)",
        "        return self._engine.create_execution_context(runtime_config=type(config)())",
        f"{ON_TRT}::test_tensorrt_for_rtx_compiles_before_it_runs",
    ),
    Mutant(
        "every context taken for capturable",
        TRT_DENOISER,
        "self.capturable = own or bool(context.is_stream_capturable(stream))",
        "self.capturable = True",
        f"{ON_TRT}::test_tensorrt_for_rtx_compiles_before_it_runs",
    ),
    Mutant(
        "the profile of another bucket",
        TRT_DENOISER,
        "profile = self._build.buckets.index(rows)",
        "profile = len(self._build.buckets) - 1",
        f"{ON_TRT}::test_tensors_and_arrays_go_the_same_way",
    ),
)
