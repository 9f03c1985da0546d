"""What each trained parameter is to an optimizer: some have a rate, or an optimizer, of their own."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

ParameterKind = Literal["embedding", "head", "lora_b", "matrix", "other"]


def parameter_kinds(model: "nn.Module") -> list[ParameterKind]:
    """Return the kind of each trained parameter, in the model's order.

    A head that is the embedding's own weight is ``embedding``; ``matrix`` is any other of two dimensions, LoRA's A too.
    """
    embeddings, heads = _within(model, "get_input_embeddings"), _within(model, "get_output_embeddings")

    def kind(name: str, parameter: "nn.Parameter") -> ParameterKind:
        if id(parameter) in embeddings:
            return "embedding"
        if ".lora_B." in name:
            return "lora_b"
        if id(parameter) in heads and "lora_" not in name:
            return "head"
        return "matrix" if parameter.dim() == 2 else "other"

    return [kind(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _within(model: Any, getter: str) -> set[int]:
    module = getattr(model, getter, lambda: None)()
    return set() if module is None else {id(p) for p in module.parameters()}
