"""How many bytes a run needs, from plain facts. Formulas, not tables; each says what it counts.

T is the tokens of a micro-batch (rows × sequence length), H hidden, I intermediate, e bytes a number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.planner.plan import MemoryPlan

if TYPE_CHECKING:
    from nbtune.models.facts import ModelFacts
    from nbtune.models.policy import MemoryPolicy
    from nbtune.spec import AdapterSpec

__all__ = ["estimate", "trainable_parameters"]

_LOGIT_CHUNK = 1024  # rows of the head that are in memory at once
_CUDA_CONTEXT = 600 * 2**20
_PYTHON = 700 * 2**20  # a process with torch and transformers loaded
BYTES_A_WEIGHT = {"32bit": 4.0, "16bit": 2.0, "fp8": 1.0, "nf4": 0.53}


def trainable_parameters(model: ModelFacts, adapter: AdapterSpec) -> int:
    """How many numbers are trained."""
    if adapter.type == "full":
        return model.parameters
    return model.lora_parameters(adapter.r)


def estimate(
    model: ModelFacts,
    adapter: AdapterSpec,
    *,
    weights: str,
    activations: MemoryPolicy,
    micro_batch_size: int,
    sequence_len: int,
    dtype: str,
    device: str,
    accelerated: bool = True,
) -> MemoryPlan:
    """The expected bytes on the training device.

    Args:
        model: plain facts; nothing is loaded.
        adapter: what is trained; its numbers, gradients and Adam moments are fp32.
        weights: a key of `BYTES_A_WEIGHT`; embedding and head stay at 16 bit (32 on a CPU).
        activations: what blocks keep.
        accelerated: nbtune's blocks and fused head; stock keeps more per token and the logits too.
    """
    width = 4 if dtype == "fp32" else 2
    trained = trainable_parameters(model, adapter)
    blocks = model.block_parameters * model.num_layers
    rest = max(0, model.parameters - blocks)
    tokens = micro_batch_size * sequence_len
    frozen = int(blocks * BYTES_A_WEIGHT[weights]) + rest * width
    logits = min(tokens, _LOGIT_CHUNK) if accelerated else tokens
    return MemoryPlan(
        weights=frozen,
        adapter=0 if adapter.type == "full" else trained * 4,
        gradients=trained * 4,
        optimizer=trained * 8,
        activations=_activations(model, activations, tokens, width, accelerated),
        head=logits * model.vocab_size * (4 + width),
        reserve=_CUDA_CONTEXT if device == "cuda" else _PYTHON,
    )


def _activations(model: ModelFacts, policy: MemoryPolicy, tokens: int, width: int, accelerated: bool) -> int:
    hidden, heads = model.hidden_size, model.head_dim * (model.num_heads + 2 * model.num_kv_heads)
    attention = 3 * hidden + heads  # the block's input, attention's output, the second norm's input; q, k, v
    gated = 2 * model.intermediate_size
    kept = {"keep": attention + gated, "selective": attention, "recompute": hidden, "offload": 0}[policy]
    if not accelerated:  # every norm's, rotary's, activation's and cast's input is kept by autograd
        kept += {
            "keep": 6 * hidden + heads + 2 * model.intermediate_size,
            "selective": 0,
            "recompute": 0,
            "offload": 0,
        }[policy]
    working = 4 * hidden + 2 * heads + 4 * model.intermediate_size  # the block that is being computed
    return tokens * width * (kept * model.num_layers + working)
