"""The run's folder, its log, lock and wishes; what others may have written; what a model says."""

from tests.mutants.mutant import mutant

_LOG, _READING = "store/test_event_log.py", "store/test_event_log_reading.py"
_LOCK, _BAD, _TRUST = "store/test_lock.py", "store/test_bad_folders.py", "store/test_trust.py"

STORE = (
    mutant(
        "a-half-written-line-is-lost",
        "store/event_log.py",
        "            self._offset += end\n",
        "            self._offset += len(new)\n",
        _LOG,
        _READING,
    ),
    mutant(
        "who-follows-loses-a-half-written-line",
        "store/event_log.py",
        ", offset + end)",
        ", offset + len(piece))",
        _READING,
    ),
    mutant(
        "a-torn-line-takes-the-next-one-along",
        "store/event_log.py",
        "file.truncate(start + end + 1)",
        "file.truncate(start + end)",
        _LOG,
    ),
    mutant(
        "a-log-ends-at-a-line-that-is-not-known",
        "store/event_log.py",
        "self.events.append(events.from_line(line))\n"
        "                except (ValueError, TypeError):\n                    continue",
        "self.events.append(events.from_line(line))\n"
        "                except (ValueError, TypeError):\n                    break",
        _LOG,
        _BAD,
    ),
    mutant(
        "a-pid-that-was-used-again-owns-the-run",
        "store/lock.py",
        'return _started(owner.get("pid", -1)) == owner.get("started")',
        'return _started(owner.get("pid", -1)) is not None',
        _LOCK,
    ),
    mutant(
        "who-was-taken-for-dead-writes-on",
        "store/lock.py",
        "        if self._lost.is_set():\n",
        "        if False:\n",
        _LOCK,
    ),
    mutant(
        "a-copied-folder-is-owned",
        "store/lock.py",
        "    if _is_a_copy(owner, path):\n        return False",
        "    if _is_a_copy(owner, path):\n        pass",
        _LOCK,
    ),
    mutant(
        "a-second-wish-for-a-checkpoint-is-none",
        "store/control.py",
        "changes[counter] = getattr(now, counter) + 1",
        "changes[counter] = 1",
        "store/test_control.py",
    ),
    mutant(
        "a-killed-run-is-still-running",
        "store/run_reader.py",
        "if state in _LIVE_STATES and not self.alive:",
        "if state in _LIVE_STATES and False:",
        "engine/test_run.py::test_a_killed_run_is_interrupted_and_goes_on_from_its_last_checkpoint",
    ),
    mutant(
        "a-step-that-was-done-twice-is-shown-as-it-was-first",
        "store/run_reader.py",
        "steps[event.step] = {**event.metrics, **{name: getattr(event, name) for name in columns}}",
        "steps.setdefault(event.step, {**event.metrics, **{name: getattr(event, name) for name in columns}})",
        "store/test_run_reader.py::test_a_step_that_was_done_twice_is_shown_as_it_was_done_last",
    ),
    mutant(
        "what-was-learnt-is-what-was-forgotten",
        "store/row_losses.py",
        "return None if self.base is None else self.base - self.loss",
        "return None if self.base is None else self.loss - self.base",
        "store/test_row_losses.py",
        "widgets/test_losses_panel.py",
    ),
    mutant(
        "control-characters-reach-a-terminal",
        "untrusted.py",
        "shown = _CONTROL.sub(_escaped, str(text))",
        "shown = str(text)",
        _BAD,
    ),
    mutant(
        "a-spec-consents-to-its-own-models-code",
        "store/folder.py",
        "    return remembered and consent.is_remembered(folder, code_subject(spec, spec_code(spec, folder)))\n",
        "    return True\n",
        f"{_TRUST}::test_a_models_own_code_is_not_run_because_its_spec_says_so",
    ),
    mutant(
        "whatever-is-asked-for-is-allowed",
        "data/sources/consent.py",
        "    return _place(folder, subject).is_file()\n",
        "    return True\n",
        f"{_TRUST}::test_a_function_that_is_named_in_the_data_is_not_called",
        f"{_TRUST}::test_data_outside_of_the_folder_is_not_read",
    ),
    mutant(
        "links-out-of-a-folder-are-followed",
        "untrusted.py",
        "        if not path.resolve().is_relative_to(real):\n",
        "        if False:\n",
        f"{_TRUST}::test_exports_follow_no_link_out_of_the_folder",
    ),
    mutant(
        "json-may-be-as-deep-as-it-likes",
        "untrusted.py",
        "    if _depth(body) > DEEPEST:\n",
        "    if False:\n",
        _BAD,
    ),
    mutant(
        "a-pipe-is-waited-for",
        "untrusted.py",
        "        if not stat.S_ISREG(os.fstat(descriptor).st_mode):\n",
        "        if False:\n",
        _BAD,
    ),
    mutant(
        "a-whole-number-may-be-too-large",
        "untrusted.py",
        "    if len(digits) > 50 or abs(int(digits)) >= below:\n",
        "    if False:\n",
        _BAD,
    ),
    mutant(
        "an-answer-leaves-the-model-asleep",
        "generate/sampling.py",
        "            model.train(training)\n    made",
        "            pass\n    made",
        "generate/test_sampling.py",
        "engine/test_four_bits.py::test_evaluation_and_samples_change_no_loss",
        "engine/test_full.py",
    ),
    mutant(
        "the-base-answers-with-its-adapter",
        "generate/sampling.py",
        "without_adapter(model, adapter):\n        model.eval()\n        try:\n            output",
        "without_adapter(model, True):\n        model.eval()\n        try:\n            output",
        "generate/test_sampling.py",
        "engine/test_run.py::test_what_was_learnt_is_what_generate_says_and_base_is_not",
    ),
)
