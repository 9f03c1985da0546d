"""Does a token's prediction see only what is before it? Asked of the loaded model, not of its config.

transformers counts BERT and its like among causal language models: unless their config says `is_decoder`, such a model
sees the very tokens that it is to predict, and its loss goes to nothing while nothing is learnt.
"""

from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError
from nbtune.models.accelerate.layer_trace import evaluating
from nbtune.models.accelerate.norms import tolerance

if TYPE_CHECKING:
    from torch import nn

_TOKENS, _KEPT = 16, 8


def refuse_unless_causal(model: "nn.Module", name: str) -> None:
    """Compare the logits of the first tokens of two rows that differ in what is behind these.

    Args:
        model: stock, its weights on its device.
        name: as the spec says it.

    Raises:
        SpecError: they differ.
    """
    import torch

    lm: Any = model
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, lm.config.get_text_config().vocab_size, (2, _TOKENS), generator=generator)
    ids[1, :_KEPT] = ids[0, :_KEPT]
    with evaluating(lm), torch.no_grad():
        logits = lm(input_ids=ids.to(next(lm.parameters()).device), use_cache=False).logits[:, :_KEPT]
    kind = logits.dtype
    one, other = logits.float()
    moved = (one - other).norm(dim=-1) / one.norm(dim=-1).clamp(min=1e-12)
    if moved.median() > tolerance(kind):  # of the middle one: an expert may be chosen by a rounding
        raise SpecError(
            f"{name} is no causal language model: what it says of a token depends on the tokens behind it",
            place="model",
            fix="Name a model that writes text from left to right.",
        )
