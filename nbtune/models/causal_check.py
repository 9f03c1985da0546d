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

_TOKENS, _PLACES = 12, (3, 4, 7, 10)


def refuse_unless_causal(model: "nn.Module", name: str) -> None:
    """Compare what is said right before places behind which rows differ: who sees only a few tokens more, or those of
    its own block, sees the very next one before most of these.

    Args:
        model: stock, its weights on its device.
        name: as the spec says it.

    Raises:
        SpecError: it differs.
    """
    import torch

    lm: Any = model
    vocabulary = lm.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, vocabulary, (1, _TOKENS), generator=generator).repeat(1 + len(_PLACES), 1)
    for row, place in enumerate(_PLACES, 1):
        ids[row, place:] += torch.randint(1, vocabulary, (_TOKENS - place,), generator=generator)
    before = torch.tensor(_PLACES) - 1
    with evaluating(lm), torch.no_grad():
        logits = lm(input_ids=(ids % vocabulary).to(next(lm.parameters()).device), use_cache=False).logits
    kind, rows = logits.dtype, torch.arange(1, 1 + len(_PLACES))
    one, other = logits[0, before].float(), logits[rows, before].float()
    moved = (one - other).norm(dim=-1) / one.norm(dim=-1).clamp(min=1e-12)
    if moved.sort().values[-2] > tolerance(kind):  # one alone may be an expert, chosen by a rounding
        raise SpecError(
            f"{name} is no causal language model: what it says of a token depends on the tokens behind it",
            place="model",
            fix="Name a model that writes text from left to right.",
        )
