"""Plans: what is reckoned, said and refused before a run."""

from tests.mutants.mutant import mutant

_ONCE = "planner/test_abilities.py::test_what_goes_through_a_model_once_is_what_a_pair_begins_with"
_BACKWARD, _OPTIMIZERS = "planner/test_in_backward.py", "planner/test_optimizers.py"

PLANS = (
    mutant(
        "a-heads-pairs-share-their-prompts",
        "planner/done_once.py",
        "return method.pairwise and not method.head and bool(",
        "return method.pairwise and bool(",
        _ONCE,
    ),
    mutant(
        "a-pack-with-two-pairs-shares-prompts",
        "planner/done_once.py",
        "2 * data.tokens_total > tokens",
        "3 * data.tokens_total > tokens",
        _ONCE,
    ),
    mutant(
        "what-would-fit-is-the-largest-way",
        "planner/in_backward.py",
        "return min(found, key=lambda one: one[2].memory.total)",
        "return max(found, key=lambda one: one[2].memory.total)",
        f"{_BACKWARD}::test_what_a_refusal_says_it_needs_is_enough_and_less_is_not",
    ),
    mutant(
        "all-weights-are-said-to-be-rounded",
        "planner/in_backward.py",
        'if setup.dtype == "bf16":',
        "if True:",
        f"{_BACKWARD}::test_only_16_bit_weights_are_said_to_be_rounded",
    ),
    mutant(
        "columns-are-as-wide-as-their-narrowest",
        "planner/ways.py",
        "widths = [max(len(row[column])",
        "widths = [min(len(row[column])",
        f"{_BACKWARD}::test_the_tables_columns_stand_below_their_heads",
    ),
    mutant(
        "single-tokens-train-no-embedding",
        "planner/optimizers.py",
        '{"embedding"} if adapter.trainable_token_indices else set()',
        "set()",
        f"{_OPTIMIZERS}::test_a_rate_is_taken_where_its_part_is_trained",
    ),
    mutant(
        "a-constant-rate-knows-no-way-to-warm-up",
        "planner/idle.py",
        'way = ": `constant_with_warmup` has one" if spec.lr_scheduler_type == "constant" else ""',
        'way = ""',
        f"{_OPTIMIZERS}::test_a_warm_up_that_a_schedule_has_not_is_said_and_where_there_is_one",
    ),
    mutant(
        "nothing-is-said-to-be-rounded",
        "planner/planner.py",
        "model.stacked if best.weights.quantised else 0,",
        "model.stacked if best.weights.shards else 0,",
        "planner/test_planner.py::test_what_is_rounded_is_said_of_rounded_weights_alone",
    ),
    mutant(
        "a-limit-of-nothing-is-said",
        "planner/planner.py",
        "[memory] * bool(device.cap)",
        "[memory]",
        "planner/test_planner.py::test_a_limit_is_said_where_there_is_one",
    ),
    mutant(
        "one-machine-has-links-to-others",
        "planner/spread.py",
        "        if self.machines > 1:\n            links +=",
        "        if True:\n            links +=",
        "planner/test_spread.py::test_links_are_named_that_there_are",
    ),
    mutant(
        "no-run-goes-on-with-other-devices",
        "planner/plan.py",
        "if self.weights.shards and count == 1:",
        "if count == 1:",
        "planner/test_planner.py::test_a_run_goes_on_with_other_devices_by_the_same_plan",
    ),
    mutant(
        "what-is-here-is-downloaded",
        "planner/plan.py",
        "        if not self.download_bytes:\n",
        "        if self.download_bytes:\n",
        "planner/test_planner.py::test_a_download_is_said_where_there_is_one",
    ),
    mutant(
        "what-is-trained-whole-is-frozen",
        "planner/planner.py",
        '0 if spec.adapter.type == "full" else frozen_bytes(model, best.weights, dtype),',
        "frozen_bytes(model, best.weights, dtype),",
        "planner/test_planner.py::test_what_is_rounded_is_said_of_rounded_weights_alone",
    ),
    mutant(
        "16-bits-were-always-asked-for",
        "planner/planner.py",
        "if wish.overruled_by(weights):",
        "if True:",
        "planner/test_planner.py::test_weights_in_another_format_than_was_asked_for_are_said",
    ),
    mutant(
        "the-last-token-of-a-row-is-read",
        "data/prepare/untaught.py",
        "read = (places < last) |",
        "read = (places <= last) |",
        "data/prepare/test_untaught.py",
    ),
    mutant(
        "norms-alone-decay",
        "planner/idle.py",
        "if spec.weight_decay and decays is False:",
        "if spec.weight_decay and decays is None:",
        f"{_OPTIMIZERS}::test_weight_decay_of_norms_alone_is_said_to_do_nothing",
    ),
    mutant(
        "every-weight-sees-few-rows-oftener",
        "planner/run_length.py",
        'if spec.adapter.type == "full" or method',
        "if method",
        "planner/test_run_length.py",
    ),
    mutant(
        "a-part-of-a-step-is-none",
        "planner/planner.py",
        "total_steps = spec.steps or max(1, math.ceil(epochs * per_epoch))",
        "total_steps = spec.steps or max(1, math.floor(epochs * per_epoch))",
        "planner/test_run_length.py",
    ),
    mutant(
        "a-checkpoint-is-written-where-the-oldest-was",
        "planner/planner.py",
        "* (spec.checkpoint.keep + 1) + trained * 2 * width",
        "* spec.checkpoint.keep + trained * 2 * width",
        "planner/test_planner.py::test_a_disk_needs_room_for_a_checkpoint_beside_those_that_stay",
    ),
)
