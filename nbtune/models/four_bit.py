"""Which of a model's weights are rounded to 4 bits as it is loaded, and how."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nbtune.errors import PlanError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def must_be_installed() -> None:
    """Refuse 4-bit weights where the library that rounds to them is missing: the same sentence by a plan and by a run.

    Raises:
        PlanError: it is.
    """
    if find_spec("bitsandbytes") is None:
        raise PlanError(
            "4-bit weights need bitsandbytes, which is not installed",
            fix="Run `pip install bitsandbytes`, or use adapter: {type: lora}.",
        )


def four_bit(shape: "PreTrainedModel", dtype: "torch.dtype") -> Any:
    """Return bitsandbytes' settings: nf4 with double quantisation, of all linear layers but the head and those whose
    weights the model's own code reads past them (packed, they have another shape).

    Args:
        shape: the model, without its numbers.
        dtype: that is computed in.

    Raises:
        PlanError: bitsandbytes is not installed.
    """
    from nbtune.models.adapter_targets import read_past

    must_be_installed()
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    if past := read_past(shape):  # named, these are in place of what transformers leaves out by itself: the head
        head = shape.get_output_embeddings()
        options["llm_int8_skip_modules"] = sorted(past | {name for name, m in shape.named_modules() if m is head})
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **options)
