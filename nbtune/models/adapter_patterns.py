"""What of a model an adapter's patterns reach: layers by number, ranks and alphas by name, modules and weights that are
trained whole. A pattern that reaches nothing is refused: peft, or nobody, would act on it without a word."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

    from nbtune.spec import AdapterSpec

_NUMBER = re.compile(r"\.(\d+)\.")


def in_layers(names: Iterable[str], layers: tuple[int, ...]) -> list[str]:
    """Return those of the modules that are in layers of these numbers.

    Raises:
        SpecError: some layer is not there, or has none of the modules.
    """
    numbers = {name: int(match[1]) for name in names if (match := _NUMBER.search(name))}
    if missing := sorted(set(layers) - set(numbers.values())):
        raise SpecError(
            f"there is no layer {missing[0]} with a target",
            place="adapter.layers_to_transform",
            fix=f"Layers have the numbers 0 to {max(numbers.values(), default=0)}.",
        )
    return [name for name, number in numbers.items() if number in layers]


def check_patterns(names: Iterable[str], adapter: "AdapterSpec") -> None:
    """Refuse a rank or an alpha for none of the adapter's layers; peft matches ends of their names.

    Raises:
        SpecError: see above.
    """
    names = list(names)
    for key, patterns in (("rank_pattern", adapter.rank_pattern), ("alpha_pattern", adapter.alpha_pattern)):
        for pattern in patterns:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                raise SpecError(
                    f"`{pattern}` matches none of the layers that get an adapter",
                    place=f"adapter.{key}",
                    fix=f"Their names end in: {', '.join(sorted({name.rsplit('.', 1)[-1] for name in names}))}.",
                )


def check_saved(model: Any, names: Iterable[str], adapter: "AdapterSpec") -> None:
    """Refuse modules to train whole that are not there, or that are the same weight.

    Raises:
        SpecError: see above.
    """
    place = "adapter.modules_to_save"
    for end in adapter.modules_to_save:
        if not any(name == end or name.endswith(f".{end}") for name in names):
            raise SpecError(f"no module of this model is called `{end}`", place=place)
    if not adapter.modules_to_save:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or embedding is None or head.weight is not embedding.weight:
        return
    for name, module in model.named_modules():
        if is_one_of(name, adapter.modules_to_save) and module in (embedding, head):
            raise SpecError(
                f"`{name}` is embedding and head at once in this model: trained whole by an adapter, one of them would "
                "stay as it was",
                place=place,
                fix="Write `adapter: {type: full, unfrozen_parameters: […]}`, or drop it.",
            )


def is_one_of(name: str, ends: Iterable[str]) -> bool:
    """Return whether a module's name is one of the ends, or ends in it, as peft matches them.

    >>> is_one_of("model.embed_tokens", ["embed_tokens"])
    True
    """
    return any(name == end or name.endswith(f".{end}") for end in ends)


def check_tokens(model: Any, adapter: "AdapterSpec") -> None:
    """Refuse to train embeddings of tokens that are not there, or that are trained anyway: those of new tokens may be.

    Raises:
        SpecError: see above.
    """
    if not adapter.trainable_token_indices:
        return
    place, embedding = "adapter.trainable_token_indices", model.get_input_embeddings()
    most = embedding.weight.shape[0]
    if (last := max(adapter.trainable_token_indices)) >= most:
        raise SpecError(f"there is no token {last}", place=place, fix=f"Tokens have the numbers 0 to {most - 1}.")
    if adapter.grows:
        return
    name = next(name for name, module in model.named_modules() if module is embedding)
    if is_one_of(name, adapter.modules_to_save):
        raise SpecError(f"all of `{name}` is trained already", place=place, fix="Drop one of both.")


def check_biases(model: Any, layers: Iterable[str], adapter: "AdapterSpec") -> None:
    """Refuse to train biases of a model, or of an adapter's layers, that have none.

    Raises:
        SpecError: see above.
    """
    if adapter.bias == "none":
        return
    inside = {f"{name}.bias" for name in layers} if adapter.bias == "lora_only" else None
    names = [name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1] == "bias"]
    if not any(inside is None or name in inside for name in names):
        which = "layers that get an adapter have" if names else "this model has"
        raise SpecError(
            f"{which} no biases",
            place="adapter.bias",
            fix="Write `bias: all`, or drop it." if names else "Drop it.",
        )


def unfrozen(model: "nn.Module", adapter: "AdapterSpec") -> set[str]:
    """Return the names of the weights that `adapter: full` trains.

    Raises:
        SpecError: one of the patterns matches none.
    """
    names = [name for name, p in model.named_parameters() if p.is_floating_point()]
    if not adapter.unfrozen_parameters:
        return set(names)
    chosen: set[str] = set()
    for pattern in adapter.unfrozen_parameters:
        found = [name for name in names if re.match(pattern, name)]
        if not found:
            raise SpecError(
                f"no weight's name begins as `{pattern}` says",
                place="adapter.unfrozen_parameters",
                fix=f"They are such as {names[0]}, {names[-1]}.",
            )
        chosen.update(found)
    return chosen
