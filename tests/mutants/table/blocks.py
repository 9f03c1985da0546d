"""Blocks of layers by nbtune's own kernels, and the kernels."""

from tests.mutants.mutant import mutant

BLOCKS = (
    mutant(
        "a-mask-with-holes-is-padding",
        "models/accelerate/attention.py",
        "return not bool((mask[:, 1:] & ~mask[:, :-1]).any()) and",
        "return bool((mask[:, 1:] & ~mask[:, :-1]).any()) and",
        "models/test_hf_attention.py::test_padding_is_on_the_right_where_a_row_begins_with_a_token_and_never_goes_on_again",
    ),
    mutant(
        "lora-beside-4-bits-is-of-the-step-before",
        "models/accelerate/forwards.py",
        "            scratch.holds = None\n",
        "            pass\n",
        "models/test_nf4_linear.py::test_what_an_adapter_has_learnt_is_in_the_next_pass",
    ),
    mutant(
        "a-part-that-is-off-switches-all-off",
        "models/accelerate/lora_linear.py",
        "return bool(with_lora) and all(m.disable_adapters for m in with_lora)",
        "return bool(with_lora) and any(m.disable_adapters for m in with_lora)",
        "models/test_accelerate.py::test_an_adapter_of_which_a_part_is_switched_off_is_honoured",
    ),
    mutant(
        "a-norm-behind-a-sum-scales-the-other-part",
        "models/accelerate/norms.py",
        "h = torch.add(residual, x, alpha=scale, out=x)",
        "h = torch.add(x, residual, alpha=scale, out=x)",
        "models/test_norms.py::test_norms_before_and_behind_a_sum",
    ),
    mutant(
        "a-probe-asks-no-gradients-of-weights",
        "models/accelerate/self_check.py",
        '        differences |= {f"gradient {i}": g for i, g in enumerate(others, 1)}\n',
        "",
        "models/test_norms.py::test_a_block_whose_weights_learn_otherwise_is_left_alone",
    ),
)
