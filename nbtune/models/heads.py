"""A head of scores in place of a model's own: what a reward model and a classifier end with.

It is a linear layer on the last hidden state, under the name that transformers gives it (`score`), so that what is
saved is what ``AutoModelForSequenceClassification`` (or ``…TokenClassification``) loads. The model's own head stays
beside it, frozen and unasked: so all that is known of a causal language model holds of this one too.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbtune.atomic_io import read_json, write_json
from nbtune.errors import SpecError
from nbtune.models.config_facts import ModelFacts
from nbtune.models.transformers_state import MAKING

if TYPE_CHECKING:
    import torch
    from torch import nn

SCORE, FILE = "score", "head.json"


@dataclass(frozen=True)
class Head:
    """What is put onto a model.

    Args:
        of: a ``text``, whose last token is asked, or each judged ``token``.
        labels: what its outputs are called.
        layer: what transformers' class of such a model calls it, "" where it has no such class (`layer_of`).
    """

    of: Literal["text", "token"]
    labels: tuple[str, ...]
    layer: str = SCORE

    @property
    def task(self) -> str:
        """What peft calls a model with it."""
        return "SEQ_CLS" if self.of == "text" else "TOKEN_CLS"

    @property
    def suffix(self) -> str:
        """What transformers calls a model with it, behind its family."""
        return "ForSequenceClassification" if self.of == "text" else "ForTokenClassification"

    def config(self, base: dict[str, Any], pad: int | None) -> dict[str, Any]:
        """Return a base's config as that of the model with this head.

        Args:
            pad: the token that rows are padded with: transformers looks for the last one that is another.
        """
        written = dict(base)
        if known := _classes(self.of).get(str(base.get("model_type"))):
            written["architectures"] = [known]
        written["id2label"] = {str(number): label for number, label in enumerate(self.labels)}
        written["label2id"] = {label: number for number, label in enumerate(self.labels)}
        written |= {"classifier_dropout": 0.0, "tie_word_embeddings": False}
        if written.get("pad_token_id") is None and pad is not None:
            written["pad_token_id"] = pad
        return written


def layer_of(config: Any, of: Literal["text", "token"]) -> str:
    """Return what the class of transformers that gives scores of such a base's texts, or tokens, calls their layer; ""
    where it has no such class, or one whose scores are made otherwise.

    >>> from nbtune.models.heads import layer_of
    >>> layer_of(nbtune.models.outline_facts.outlined("nbtune/tiny").config, "token")
    'score'

    Args:
        config: the base's, of transformers.
    """
    import transformers

    if config is None or (name := _classes(of).get(config.model_type)) is None:
        return ""
    kind = getattr(transformers, name, None)
    return "" if kind is None or kind.config_class is not type(config) else _layer_in(kind, config, of)


def no_class(model_type: str, of: Literal["text", "token"]) -> str:
    """Return what is said where `layer_of` is ""."""
    return f"transformers has no class that scores {of}s of a {model_type} by one layer, so that nothing would load it"


def _classes(of: Literal["text", "token"]) -> dict[str, str]:
    from transformers.models.auto import modeling_auto

    kind = "SEQUENCE" if of == "text" else "TOKEN"
    return dict(getattr(modeling_auto, f"MODEL_FOR_{kind}_CLASSIFICATION_MAPPING_NAMES"))


_LAYERS: dict[tuple[Any, str], str] = {}


def _layer_in(kind: Any, config: Any, of: Literal["text", "token"]) -> str:
    """Look at such a model without its numbers; once a config whose model has one."""
    import torch
    from torch import nn

    asked = copy.deepcopy(config)
    asked.num_labels = 2
    key = kind, asked.to_json_string()
    if key not in _LAYERS:
        with MAKING, torch.device("meta"):
            made = kind(asked)
        rest = {n: m for n, m in made.named_children() if n != made.base_model_prefix and not isinstance(m, nn.Dropout)}
        layers = [n for n, m in rest.items() if isinstance(m, nn.Linear) and (m.bias is not None) == (of == "token")]
        if len(layers) != 1 or len(rest) != 1:
            return ""
        _LAYERS[key] = layers[0]
    return _LAYERS[key]


def add_head(model: "nn.Module", head: Head, *, seed: int, pad: int | None = None) -> None:
    """Put a head onto a model with its adapter; it is trained.

    Args:
        model: of `nbtune.models.add_adapter`.
        seed: of its first numbers, which are as small as the model's own were.
        pad: the token that its tokenizer pads with, where its config names none.

    Raises:
        SpecError: the model does not tell its last hidden state.
    """
    import torch

    from nbtune.models.accelerate.detect import causal_lm, decoder

    lm: Any = causal_lm(model)
    if decoder(lm) is None:
        raise SpecError(
            f"{type(lm).__name__} does not tell its last hidden state, which scores are made of",
            place="model",
            fix="name a model of another family, or a method that learns texts",
        )
    config = lm.config.get_text_config()
    wide: int = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
    biased = head.of == "token"  # as transformers has it
    score = torch.nn.Linear(wide, len(head.labels), bias=biased, dtype=torch.float32)
    spread = float(getattr(config, "initializer_range", None) or 0.02)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        score.weight.copy_(torch.randn(score.weight.shape, generator=chance) * spread)
        if biased:
            score.bias.zero_()
    for parameter in unasked(lm):
        parameter.requires_grad_(False)
    lm.add_module(SCORE, score.to(next(lm.parameters()).device))
    head = replace(head, layer=layer_of(lm.config, head.of))
    lm.nbtune_head, lm.nbtune_pad = head, pad if config.pad_token_id is None else config.pad_token_id


def unasked(model: Any) -> "list[nn.Parameter]":
    """Return the numbers of a model's own head, which has no part in scores: none that are the embedding's, too, as
    single tokens' trained rows are where both are one."""
    own = model.get_output_embeddings()
    shared = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    return [] if own is None else [parameter for parameter in own.parameters() if id(parameter) not in shared]


def with_outputs(facts: ModelFacts, head: Head | None) -> ModelFacts:
    """Return a model's facts with a head's numbers counted among what is trained."""
    if head is None or facts.trained is None:
        return facts
    each = facts.hidden_size + (head.of == "token")
    kinds = tuple(sorted({*facts.kinds, "head"})) if facts.kinds else ()
    trained = facts.trained - facts.trained_in_head + each * len(head.labels)
    return replace(facts, trained=trained, kinds=kinds, decays=True)


def head_of(model: "nn.Module") -> "tuple[Head, nn.Module] | None":
    """Return a model's head and its layer; None: it has its own."""
    from nbtune.models.accelerate.detect import causal_lm

    lm: Any = causal_lm(model)
    head = getattr(lm, "nbtune_head", None)
    return None if head is None else (head, getattr(lm, SCORE))


def read_at(model: "nn.Module", ids: "torch.Tensor", ends: "torch.Tensor") -> "torch.Tensor":
    """Return where a head of texts is asked: at each text's last token that does not pad.

    So does transformers, which knows no text's length: a text whose end of turn is also what pads is read before it.

    Args:
        model: with a head (`add_head`).
        ids: int64 `[tokens]`, of rows or packs one behind the other.
        ends: int64 `[texts]`, the places of each text's last token.
    """
    import torch

    from nbtune.models.accelerate.detect import causal_lm

    pad = getattr(causal_lm(model), "nbtune_pad", None)
    if pad is None:
        return ends
    places = torch.arange(len(ids), device=ids.device)
    return torch.where(ids == pad, torch.zeros_like(places), places).cummax(0).values[ends]


def write_head(head: Head, folder: Path) -> None:
    """Write beside an adapter, or a whole model, what its outputs are called."""
    write_json(folder / FILE, {"of": head.of, "labels": list(head.labels), "layer": head.layer})


def read_head(folder: Path) -> Head | None:
    """Return what a folder of a trained model says of its head; None: it has none."""
    try:
        body = read_json(folder / FILE, links=True)
        return (
            None if body is None else Head(body["of"], tuple(map(str, body["labels"])), str(body.get("layer", SCORE)))
        )
    except (ValueError, KeyError, TypeError, json.JSONDecodeError):
        return None


def names(labels: Sequence[str], most: int = 6) -> str:
    """Return some labels, for people."""
    return ", ".join(labels[:most]) + (" …" if len(labels) > most else "")
