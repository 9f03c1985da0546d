"""What stands in an adapter's adapter_config.json: nothing that only this version of peft knows and nobody chose.

peft writes every option that it has, and warns of those that it does not know when it reads ("Unexpected keyword
arguments …"; before 0.14 it was an error). So what is as it is by default is left out, unless every peft knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KNOWN_TO_ALL = (
    "alpha_pattern auto_mapping base_model_name_or_path bias fan_in_fan_out feedforward_modules inference_mode "
    "init_ia3_weights init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout modules_to_save "
    "peft_type r rank_pattern revision target_modules task_type use_dora use_rslora"
)
_OF_PEFT_ITSELF = "peft_version"  # of who wrote it; peft before 0.18 does not know it, later ones fill it in


def chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an adapter's config (as JSON) with what was chosen and what every peft knows, sorted by its options; what
    is within them stays as it is: of two patterns that match a layer the first one counts.

    >>> from nbtune.models.adapter_file import chosen
    >>> chosen({"peft_type": "LORA", "r": 8, "use_dora": False, "lora_bias": False, "target_parameters": ["up"]})
    {'peft_type': 'LORA', 'r': 8, 'target_parameters': ['up'], 'use_dora': False}

    Args:
        config: what stands, or would stand, in adapter_config.json; an option that the installed peft does not know
            stays, unless it is empty.
    """
    from peft import IA3Config, LoraConfig

    named = config.get("peft_type")
    kind = {"LORA": LoraConfig, "IA3": IA3Config}.get(named) if isinstance(named, str) else None
    known = _KNOWN_TO_ALL.split()
    usual = {} if kind is None else kind().to_dict()
    return {
        name: value
        for name, value in sorted(config.items())
        if name in known or not (name == _OF_PEFT_ITSELF or value == usual.get(name) or value in (None, {}, []))
    }
