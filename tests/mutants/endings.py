"""Faults in how results reach the disk, and in how the command ends."""

from tests.mutants.mutant import Mutant

ENDINGS = "tests/rt/test_endings.py"
FLUSHED = f"{ENDINGS}::test_what_is_named_was_flushed"
SIGNALS = f"{ENDINGS}::test_a_signal_during_a_call_that_makes_or_names"
MUTANTS = (
    Mutant(
        "data not flushed",
        "tadiff_rt/atomic.py",
        "                os.fsync(fd)\n",
        "",
        FLUSHED,
    ),
    Mutant(
        "names of files not flushed",
        "tadiff_rt/atomic.py",
        "        sync_folder(path.parent)\n",
        "",
        FLUSHED,
    ),
    Mutant(
        "folders in a result not flushed",
        "tadiff_rt/write.py",
        "sync_folder(folder.parent)",
        "pass",
        FLUSHED,
    ),
    Mutant(
        "the name of a result not flushed",
        "tadiff_rt/write.py",
        "            sync_folder(self.target.parent)\n",
        "",
        FLUSHED,
    ),
    Mutant(
        "a removed folder of the result made anew",
        "tadiff_rt/write.py",
        "                    folder.mkdir()\n",
        "                    folder.mkdir(parents=True)\n",
        f"{ENDINGS}::test_a_folder_that_vanishes_meanwhile",
    ),
    Mutant(
        "the end of a terminal not taken for a signal to end",
        "tadiff_rt/console.py",
        '("SIGINT", "SIGTERM", "SIGHUP")',
        '("SIGINT", "SIGTERM")',
        f"{ENDINGS}::test_a_signal_again_and_again_does_not_stop_the_clean_up",
    ),
    Mutant(
        "a second signal that breaks into the clean-up",
        "tadiff_rt/console.py",
        "if time.monotonic() - raised >= REPEAT_S:",
        "if time.monotonic() >= raised:",
        f"{ENDINGS}::test_a_signal_again_and_again_does_not_stop_the_clean_up",
    ),
    Mutant(
        "a signal that leaves a temporary",
        "tadiff_rt/atomic.py",
        "        except BaseException:\n            with suppress",
        "        except Exception:\n            with suppress",
        SIGNALS,
    ),
    Mutant(
        "a signal that leaves an earlier result aside",
        "tadiff_rt/write.py",
        "            if aside.exists() and self._done:\n                discard",
        "            if aside.exists() and not self._done:\n                discard",
        SIGNALS,
    ),
    Mutant(
        "a signal that leaves what was discarded",
        "tadiff_rt/atomic.py",
        "        os.rename(aside, trash)\n    finally:",
        "        os.rename(aside, trash)\n    except OSError:",
        SIGNALS,
    ),
    Mutant(
        "a removal that a signal cuts short",
        "tadiff_rt/atomic.py",
        "        shutil.rmtree(folder, ignore_errors=True)\n        raise\n",
        "        raise\n",
        SIGNALS,
    ),
    Mutant(
        "a journal removed before its slices",
        "tadiff_rt/journal.py",
        "            if _SLICE.fullmatch(path.name):\n",
        "            if _SLICE.fullmatch(path.name) or path.name == ABOUT:\n",
        f"{ENDINGS}::test_a_journal_whose_removal_is_interrupted_is_one_still",
    ),
    Mutant(
        "a file beyond the limit not taken for a full disk",
        "tadiff_rt/atomic.py",
        "_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)",
        "_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)",
        f"{ENDINGS}::test_a_limit_of_file_sizes",
    ),
    Mutant(
        "a full disk that does not say what is needed",
        "tadiff_rt/write.py",
        "verify=verify, needed_bytes=len(data)",
        "verify=verify",
        f"{ENDINGS}::test_a_limit_of_file_sizes",
    ),
    Mutant(
        "temporaries on another file system",
        "tadiff_rt/atomic.py",
        "return path.with_name(",
        'return Path("/dev/shm").joinpath(',
        f"{ENDINGS}::test_another_file_system",
    ),
    Mutant(
        "an earlier result removed before the new one is there",
        "tadiff_rt/write.py",
        "                os.rename(self.target, aside)\n",
        "                shutil.rmtree(self.target)\n",
        f"{ENDINGS}::test_a_rename_that_fails",
    ),
    Mutant(
        "a command that begins without memory",
        "tadiff_rt/console.py",
        "    if not _memory_is_left():\n",
        "    if not RESERVE_BYTES:\n",
        f"{ENDINGS}::test_no_memory_at_the_start",
    ),
    Mutant(
        "an error without memory taken for a bug",
        "tadiff_rt/console.py",
        "isinstance(error, TadiffError) or _memory_is_left()",
        "isinstance(error, Exception) or _memory_is_left()",
        f"{ENDINGS}::test_an_error_of_any_kind_without_memory_is_one_of_memory",
    ),
    Mutant(
        "temporaries of dead processes left",
        "tadiff_rt/write.py",
        "            clean_leftovers(self.target.parent)\n",
        "",
        f"{ENDINGS}::test_the_end_before_any_call_tears_nothing[97-new]",
    ),
)
