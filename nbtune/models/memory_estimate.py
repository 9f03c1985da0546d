"""How many bytes a model in training needs, from plain facts. Formulas, not tables; each says what it counts.

T is the tokens of a micro-batch (rows × sequence length), H hidden, I intermediate, e bytes a number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, ConfigDict

from nbtune.spec.learning import OPTIMIZERS

if TYPE_CHECKING:
    from nbtune.models.config_facts import ModelFacts
    from nbtune.spec import AdapterSpec, Placement

_LOGITS = {"cuda": 2**29, "mps": 2**29, "cpu": 2**25}  # bytes of a chunk: `nbtune_kernels.linear_cross_entropy`
CUDA_CONTEXT = int(0.85 * 2**30)  # what a process takes of a card beside torch's allocator, as measured on an H200
_WORKSPACE = 32 * 2**20  # of cuBLAS, for each stream: the main one, the backward's, and that which is recorded
MLP_ROWS = 4096
"""Rows that go through the MLP of a block at once, where blocks keep nothing: as many as make its products fast."""
UPDATED_AT_ONCE = 2**24
"""Numbers of a 16-bit weight that are widened at a time where it is updated in backward: of blocks of 256, which share
a scale in 8-bit states, a whole number."""
_BORROWED = 5  # one is worked with and was put together before, the next one comes in; and what is multiplied with
PYTHON = 480 * 2**20  # not of files: torch, transformers and peft loaded (330 MiB), and a model's trial (415)


class MemoryPlan(BaseModel):
    """Predicted bytes on the training device, by what holds them."""

    model_config = ConfigDict(frozen=True)

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    reserve: int

    @property
    def total(self) -> int:
        """The expected peak, in bytes."""
        return sum(self.model_dump().values())


def trainable_parameters(model: ModelFacts, adapter: AdapterSpec) -> int:
    """Return how many numbers are trained: as they were counted, or by the config for a LoRA on all linear layers."""
    if model.trained is not None:
        return model.trained
    if adapter.type == "full":
        return model.parameters
    return model.lora_parameters(adapter.r)


def estimate(
    model: ModelFacts,
    adapter: AdapterSpec,
    *,
    weights: Placement,
    activations: MemoryPolicy,
    micro_batch_size: int,
    sequence_len: int,
    dtype: str,
    device: str,
    own_layers: float = 1.0,
    own_head: bool = True,
    starting_weights: bool = False,
    optimizer: str = "adamw",
    averaged: bool = False,
    accumulates: bool = True,
    in_backward: bool = False,
    once: int = 0,
) -> MemoryPlan:
    """Return the expected bytes on the training device.

    Args:
        model: plain facts; nothing is loaded.
        adapter: what is trained; its numbers and gradients are fp32 (`nbtune.train.master_weights`).
        weights: of the blocks' frozen layers; embedding and head stay at 16 bit (32 on a CPU), on each device. Of
            layers that are streamed `Placement.places` are there at a time, and none of an embedding that is not the
            head too; of parted ones `_BORROWED` are there whole. 4-bit ones are decoded into one block's scratch, and
            the scales of all of them stay.
        activations: what blocks keep.
        own_layers: share of the layers that are nbtune's own; stock ones keep more a token, and stay on the device.
        own_head: nbtune's head, which makes the logits of some rows at a time; stock keeps those of all.
        starting_weights: what is trained is kept once more, as it was at the start, for a method's reference; while
            that is asked (and nothing is kept for a backward), the trained numbers wait in a second copy.
        optimizer: of `nbtune.spec.learning.OPTIMIZERS`.
        averaged: a running average of what is trained is kept beside it.
        accumulates: a step has more than one micro-batch. If not, gradients of trained weights come as activations go.
        in_backward: weights are trained as they are, each updated as soon as its gradient is there.
        once: tokens of a row that go through layers, where some of its places have the same (0: all do): a pair's
            prompt does once, and attention alone sees all places.
    """
    width = 4 if dtype == "fp32" else 2
    trained = trained_here(model, adapter, weights)
    rest = max(0, model.parameters - model.block_parameters * model.num_layers)
    travelling = model.num_layers - (model.num_layers if weights.resident is None else weights.resident)
    travelling = int(travelling * own_layers)
    blocks: float = model.num_layers - travelling + min(travelling, weights.places)
    rest, stacks = _beside(rest, model, weights, width, blocks)
    if travelling and packs(weights, dtype):  # two that come, and what one is unpacked in
        blocks = model.num_layers - travelling + 2 * PACKED + 1
    places = micro_batch_size * sequence_len
    tokens = shared_tokens(places, micro_batch_size * once) if once else places
    borrowed = min(_BORROWED, blocks) if weights.shards else 0
    frozen = int((blocks / weights.parts + borrowed) * block_bytes(model, weights)) + rest * width + stacks
    head = head_bytes(model, tokens, width, device) if own_head else tokens * model.vocab_size * (4 + width)
    copies = 4 * trained * (2 if starting_weights else 1)
    full = adapter.type == "full"
    head += model.vocab_size * model.hidden_size * width * (full and own_head)  # the gradient of its weights
    at_once = min(tokens, MLP_ROWS) if activations in ("recompute", "offload") and not adapter.dropout else tokens
    kept, working = _activations(model, activations, (tokens, at_once, places), width, own_layers)
    kept += int(own_layers * tokens * _beside_inputs(model, adapter, activations, width)) * model.num_layers
    if weights.streams:
        frozen -= embedding_bytes(model, width)
        away = model.num_layers - blocks
        frozen += int(away * model.block_parameters * (weights.bytes_a_weight - weights.bits / 8))
    if weights.four_bit and own_layers:
        frozen += model.block_parameters * width
    if weights.eight_bit:  # one block's are there transposed, too
        frozen += block_bytes(model, weights)
    if not full and own_layers:  # LoRA once more, where products find it
        frozen += trained * width
    gradients = trained * 4
    if full and width == 2 and not accumulates and not weights.shards:
        gradients = max(0, gradients - kept - max(working, head))
    if in_backward:
        gradients, copies = max(0, _passing_gradients(model, optimizer, width, working) - max(working, head)), 0
    context = CUDA_CONTEXT + (2 if weights.streams else 3) * _WORKSPACE
    needs = MemoryPlan(
        weights=frozen,
        adapter=0 if full and width == 4 else copies,  # of 16-bit weights: fp32 copies
        gradients=gradients,
        optimizer=int(trained * (state_bytes(optimizer, model, adapter) + 4 * averaged)),
        activations=max(kept + working, trained * 4) if starting_weights else kept + working,
        head=max(0, head - working) if own_head else head,  # made before the first block works backward
        reserve=context if device == "cuda" else PYTHON,
    )
    # 8-bit weights come into memory as 16-bit ones first
    covered = model.block_parameters * model.num_layers + (model.stacked if stacks else 0)
    loading = 2 * covered + rest * width if weights.eight_bit else 0
    return needs.model_copy(update={"reserve": needs.reserve + max(0, loading - needs.total)})


def _passing_gradients(model: ModelFacts, optimizer: str, width: int, working: int) -> int:
    """Return what a backward has most of at a time, where each weight is updated in it: a layer's gradients beside what
    that works with, or the embedding's; and a part of a weight in fp32, with its gradient and what rounds it."""
    table, layer = model.vocab_size * model.hidden_size, model.block_parameters + model.stacked // model.num_layers
    widest = max(table, model.hidden_size * model.intermediate_size)
    part = widest if OPTIMIZERS[optimizer].state_bytes is None else min(widest, UPDATED_AT_ONCE)
    scratch = 0 if width == 4 else 12 * part
    return max(max(working, scratch) + (layer + model.tied * table) * width, scratch + table * width)


def head_bytes(model: ModelFacts, tokens: int, width: int, device: str) -> int:
    """Return the bytes of nbtune's head: a chunk of logits, which their gradients are written over, and what it is
    given, normalised and the gradient of that."""
    limit = max(1, _LOGITS[device] // (model.vocab_size * width))
    even = -(-tokens // -(-tokens // limit))
    rows = min(limit, -(-even // 128) * 128) if limit >= 128 else limit
    return width * (min(rows, tokens) * model.vocab_size + 3 * tokens * model.hidden_size)


def _beside_inputs(model: ModelFacts, adapter: AdapterSpec, policy: MemoryPolicy, width: int) -> int:
    """Return the bytes that a block keeps of a token beside inputs of products: xA' of each group of them, attention's
    and the norms' numbers of a row. They count where layers are narrow."""
    rank = 0 if adapter.type == "full" else adapter.r
    if policy in ("recompute", "offload"):
        return rank * width
    return 11 * rank * width + 4 * model.num_heads + 8  # room for LoRA beside gate and up, too


def _beside(rest: int, model: ModelFacts, weights: Placement, width: int, here: float) -> tuple[int, int]:
    """Return the numbers beside linear layers that stay as they are, and the bytes of stacks of experts: where they are
    rounded, with what the larger one of a layer is decoded in; where they travel, of so many layers that are here."""
    rounded = weights.quantised and weights.experts
    if not (weights.streams or rounded):
        return rest, 0
    stacked = min(model.stacked, rest)
    scratch = 2 * stacked // (3 * model.num_layers) * width if rounded else 0
    return rest - stacked, int(stacked * here / model.num_layers * _bytes_of_experts(weights)) + scratch


def _bytes_of_experts(weights: Placement) -> float:
    return 2.0 if weights.quantised and not weights.experts else weights.bytes_a_weight


def trained_here(model: ModelFacts, adapter: AdapterSpec, weights: Placement) -> int:
    """Return how many numbers a device trains: of blocks that are parted its part."""
    trained = trainable_parameters(model, adapter)
    if adapter.type != "full" or not weights.shards:
        return trained
    blocks = min(trained, model.block_parameters * model.num_layers)
    return trained - blocks + -(-blocks // weights.parts)


def state_bytes(optimizer: str, model: ModelFacts, adapter: AdapterSpec) -> float:
    """Return the bytes of an optimizer's state for each trained number.

    Adafactor has a number a row and one a column: most matrices of a LoRA have `r` of the one or the other. Muon has
    one a number of the blocks' matrices, and AdamW's two for the rest.
    """
    known = OPTIMIZERS[optimizer].state_bytes
    if known is not None:
        return known
    full = adapter.type == "full"
    if optimizer == "adafactor":
        return 4 * 2 / model.hidden_size if full else 4 / adapter.r
    matrices = model.block_parameters * model.num_layers / max(1, model.parameters)
    return 8 - 4 * min(1.0, matrices) if full else 4


def frozen_bytes(model: ModelFacts, weights: Placement, dtype: str) -> int:
    """Return bytes of all frozen weights in memory, wherever they are: formats cover linear layers and experts, the
    rest is as it was."""
    rounded = model.block_parameters * model.num_layers + (model.stacked if weights.experts else 0)
    return int(rounded * weights.bytes_a_weight) + max(0, model.parameters - rounded) * (4 if dtype == "fp32" else 2)


def block_bytes(model: ModelFacts, weights: Placement) -> int:
    """Return the bytes of one block's frozen linear layers, wherever they are."""
    return int(model.block_parameters * weights.bytes_a_weight)


PACKED = 0.75 + 0.012
"""What 16-bit weights that travel in 12 bits take of their bytes, with room for the exceptions."""


def packs(weights: Placement, dtype: str) -> bool:
    """Return whether weights that are streamed travel in 12 bits (`nbtune.models.accelerate.packed_linear`)."""
    return weights.streams and _in_twelve(weights, dtype)


def _in_twelve(weights: Placement, dtype: str) -> bool:
    return not weights.quantised and weights.bits == 16 and dtype == "bf16"


def sent_bytes(model: ModelFacts, weights: Placement, dtype: str) -> int:
    """Return the bytes that travel for one block if its weights do: its experts too, as they are."""
    saved = (1 - PACKED) * block_bytes(model, weights) if _in_twelve(weights, dtype) else 0
    return travelling_bytes(model, weights) - int(saved)


def travelling_bytes(model: ModelFacts, weights: Placement) -> int:
    """Return the bytes on the device of what travels of one block where weights are streamed: its experts too."""
    stacks = model.stacked / model.num_layers * _bytes_of_experts(weights)
    return block_bytes(model, weights) + int(stacks)


def embedding_bytes(model: ModelFacts, width: int) -> int:
    """Return the bytes of an embedding whose rows may stay in the host's memory: it is not the head as well."""
    return 0 if model.tied else model.vocab_size * model.hidden_size * width


def shared_tokens(places: int, tokens: int) -> int:
    """Return how many tokens go through, of those that are laid out once (`nbtune.train.shared_prompts`)."""
    multiple = max(8, 2 ** (tokens.bit_length() - 1) // 8)
    rounded = -(-tokens // multiple) * multiple
    return rounded if rounded <= places * 15 / 16 else places


def _activations(
    model: ModelFacts, policy: MemoryPolicy, rows: tuple[int, int, int], width: int, own_layers: float
) -> tuple[int, int]:
    """Return the bytes that wait for the backward, and those of the block that is being computed.

    Args:
        rows: of the micro-batch, of these in an MLP at once, and those that attention sees.
    """
    tokens, at_once, places = rows
    hidden, heads = model.hidden_size, model.head_dim * (model.num_heads + 2 * model.num_kv_heads)
    queries, inner = model.head_dim * model.num_heads, model.intermediate_size
    attention = 2 * hidden + queries + heads  # the block's input, the second norm's, attention's output; q, k, v
    attention += hidden * model.norms_behind + (heads + queries) // 2 * model.head_norms  # and what a norm has read
    own = {"keep": attention + (1 + model.gated) * inner, "selective": attention, "recompute": hidden, "offload": 0}[
        policy
    ]
    # of stock ones every norm's, rotary's, activation's and cast's input is kept by autograd (of an RMSNorm what it is
    # in fp32, too); where all are stock they can be computed again as a whole (`nbtune.models.factory.build`)
    stock = attention + 2 * (1 + model.gated) * inner + (2 if model.layer_norms else 6) * hidden + heads
    stock = stock if policy == "keep" or own_layers else hidden
    kept = own_layers * own + (1 - own_layers) * stock
    if own_layers:
        working = _working(model, policy, tokens, at_once, places)
    else:
        working = tokens * (4 * hidden + 2 * heads + 4 * inner)
    copied = (places - tokens) * (queries + heads) if policy in ("keep", "selective") else 0
    return int((tokens * kept + copied) * width * model.num_layers), width * working


def _working(model: ModelFacts, policy: MemoryPolicy, tokens: int, at_once: int, places: int) -> int:
    """Return how many numbers a block's backward works with, beside what was kept: in its MLP or in its attention."""
    hidden, heads = model.hidden_size, model.head_dim * (model.num_heads + 2 * model.num_kv_heads)
    queries, inner = model.head_dim * model.num_heads, model.intermediate_size
    again = heads + queries + hidden if policy in ("recompute", "offload") else 0  # q k v, attention's output, a
    if policy == "offload":  # its own input and the next one's, on their way in; and what a norm behind it has read
        again += 2 * hidden * (1 + model.norms_behind)
    of_mlp = at_once * (inner * (1 if policy == "keep" else 2 + model.gated) + 4 * hidden) + tokens * (
        2 * hidden + again
    )
    # gradients of q, k, v twice, as attention makes them and as one matrix; attention's own sums are in fp32
    of_attention = tokens * 2 * hidden + places * (2 * heads + 5 * queries + max(0, again - hidden))
    return max(of_mlp, of_attention)


MemoryPolicy = Literal["keep", "selective", "recompute", "offload"]
"""What stays in memory between a block's forward and its backward.

- ``keep``: the inputs of every matrix product; norms, rotary and the gated activation are computed again.
- ``selective``: like keep, without the MLP's gate and up: their product runs again (half of a layer's bytes).
- ``recompute``: the block's input alone; everything runs again.
- ``offload``: like recompute, and the block's input waits in pinned host memory.
"""

MEMORY_POLICIES: tuple[str, ...] = get_args(MemoryPolicy)
