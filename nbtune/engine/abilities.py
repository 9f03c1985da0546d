"""What will be possible, gathered from the rooms: before anything is loaded for a plan, on the loaded model for a run.

Each room answers for its part: `models` for blocks, settings and weights, `train` for packing, `generate` for where
answers end, `export` for what leaves the house. The object itself is `nbtune.models.abilities.Abilities`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.data.prepare.row_pipeline import speaking
from nbtune.errors import NbtuneError
from nbtune.methods import METHODS
from nbtune.models.abilities import Abilities, Blocks, Claim, settings_of
from nbtune.spec import AdapterSpec
from nbtune.spec.placement import PLAIN, Format, Placement, PlacementWish

if TYPE_CHECKING:
    from nbtune.models import Built, ModelFacts
    from nbtune.spec import RunSpec


def expected(spec: RunSpec, facts: ModelFacts, tokenizer: Any) -> Abilities:
    """Return what a plan can say: no weight is loaded, and none downloaded.

    Args:
        spec: of the run.
        facts: with what the adapter trains counted (`nbtune.models.counted`).
        tokenizer: of the model.

    Raises:
        SpecError: a run would refuse the model's weights, or its adapter; as it would.
    """
    from nbtune.export.abilities import NO_SCORES, can_be_merged, can_be_written_as_gguf
    from nbtune.generate.stops import stops_where_answers_end
    from nbtune.models.config_facts import headers_of
    from nbtune.models.handed_over import is_absent
    from nbtune.models.heads import layer_of, no_class
    from nbtune.models.loading import resolve
    from nbtune.models.token_rows import base_of
    from nbtune.models.weight_checks import check_files

    trust = spec.trust_remote_code
    folder = Path(resolve(spec.model, weights=False, trust_remote_code=trust))
    if Path(spec.model).expanduser().is_dir() and not is_absent(folder) and base_of(spec.model) is None:
        check_files(folder, spec.model)
    headers = headers_of(spec.model)
    config = (folder / "config.json").read_text(encoding="utf-8")
    form = PlacementWish.of_spec(spec.weights, spec.adapter.type).format
    asked = (spec.model, config, spec.adapter.model_dump_json(), METHODS[spec.method].by_tokens, form)
    blocks, packing = _tried(*asked, accelerate=spec.accelerate, trust_remote_code=trust)
    merging = can_be_merged(folder, headers, spec.adapter, facts.targets)
    settings, weights, model_config = _outlined(spec, facts, headers, folder)
    if (of := METHODS[spec.method].head) and model_config is not None and not layer_of(model_config, of):
        merging = Claim(holds=False, words=no_class(model_config.model_type, of))
    if of:  # merged it is a model of transformers, and no text comes out of it
        unspoken = Claim(words="it gives scores, no answers")
        told = Claim(holds=False, words=NO_SCORES)
        return Abilities(
            blocks=blocks, settings=settings, weights=weights, packing=packing, merging=merging, gguf=told,
            ends=unspoken,
        )  # fmt: skip
    return Abilities(
        blocks=blocks,
        settings=settings,
        weights=weights,
        packing=packing,
        ends=stops_where_answers_end(speaking(tokenizer, spec), spec),
        merging=merging,
        gguf=can_be_written_as_gguf(folder, headers, tokenizer, merging),
    )


@lru_cache(maxsize=32)
def _tried(
    model: str,
    config: str,
    adapter: str,
    by_tokens: bool,
    form: Format | None,
    *,
    accelerate: bool,
    trust_remote_code: bool,
) -> tuple[tuple[Blocks, ...], Claim]:
    """Return what a small copy tells of blocks and packs; of `config` (the text of its file) it counts that it is the
    same."""
    from nbtune.models.trial import try_small
    from nbtune.train.packing_check import small_packs_are_kept_apart

    wanted = AdapterSpec.model_validate_json(adapter)
    weights = PLAIN if form is None else Placement(format=form)
    trial = try_small(model, wanted, weights=weights, accelerate=accelerate, trust_remote_code=trust_remote_code)
    fused = not by_tokens or (trial.patch is not None and "head" in trial.patch.report.taken)
    return trial.blocks, small_packs_are_kept_apart(trial, fused=fused)


def _outlined(
    spec: RunSpec, facts: ModelFacts, headers: dict[str, Any], place: Path
) -> tuple[dict[str, str], Claim, Any]:
    """Return the config's settings, whether the weights will all be there, and the config (None: it is not known).

    Raises:
        SpecError: the adapter's first values want weights that are not there as they are.
    """
    from nbtune.models.first_values import check_files
    from nbtune.models.gguf_file.decoded import said_of
    from nbtune.models.headers_check import weights_by_headers
    from nbtune.models.outline_facts import outlined

    try:
        whole = outlined(spec.model, trust_remote_code=spec.trust_remote_code)
    except NbtuneError:
        raise
    except Exception as error:  # noqa: BLE001 — a model's own code may want numbers; what is wrong with it, loading says
        return {}, Claim(words=f"it cannot be outlined without numbers ({type(error).__name__})"), None
    check_files(spec.adapter, facts.targets, headers, whole)
    weights = weights_by_headers(whole, headers, place, spec.model)
    if origin := said_of(place):
        weights = weights.model_copy(update={"words": f"{weights.words}; {origin}"})
    return settings_of(whole.config), weights, whole.config


def confirmed(
    plan: Abilities, built: Built, spec: RunSpec, *, packing: Claim | None, ask: bool
) -> tuple[Abilities, list[str]]:
    """Return what the loaded model says, and what of it is worse than the plan said, a sentence each.

    Args:
        plan: what was expected.
        built: the model, with its tokenizer.
        spec: of the run.
        packing: what its first pack said; None: it does not pack.
        ask: the model can be asked for an answer here (of one that is parted, all processes are needed).
    """
    from nbtune.generate.stops import stops_where_answers_end
    from nbtune.models.trial import blocks_of

    model: Any = built.model
    patch = built.patch
    report = None if patch is None else patch.report
    told = packing is not None and packing.holds is not None
    now = plan.model_copy(
        update={
            "tried": "loaded",
            "blocks": plan.blocks if report is None else blocks_of(report),
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "frozen_bytes": sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad),
            "weights": Claim(holds=True, words="as they were loaded"),
            "packing": packing if told else plan.packing,
            "ends": stops_where_answers_end(built.tokenizer, spec, model) if ask else plan.ends,
        }
    )
    return now, _worse(plan, now)


def _worse(plan: Abilities, now: Abilities) -> list[str]:
    said = []
    if plan.blocks and plan.takes("layers") and not now.takes("layers"):
        left = "; ".join(blocks.why for blocks in now.blocks if blocks.why)
        said.append(f"the plan expected all layers to be accelerated, and the loaded ones are not: {left}")
    if plan.trained and plan.trained != now.trained:
        said.append(f"the plan counted {plan.trained:,} numbers that are trained, there are {now.trained:,}")
    if plan.ends.holds and now.ends.holds is False:
        said.append(f"generation does not stop {now.ends.words}")
    return said
