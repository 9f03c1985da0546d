"""What the user asked for: `RunSpec` and its parts, YAML in and out with line numbers."""

from nbtune.spec.adapter import AdapterSpec
from nbtune.spec.model import RunSpec
from nbtune.spec.parts import CheckpointSpec, EvalSpec, KeepRule, MemorySpec, MixSpec, SourceSpec, SpanRule
from nbtune.spec.placement import Placement
from nbtune.spec.usual import unusual
from nbtune.spec.yaml import from_mapping, from_yaml, placing
from nbtune.spec.yaml_text import parse_value, to_yaml

__all__ = [
    "AdapterSpec",
    "CheckpointSpec",
    "EvalSpec",
    "KeepRule",
    "MemorySpec",
    "MixSpec",
    "Placement",
    "RunSpec",
    "SourceSpec",
    "SpanRule",
    "from_mapping",
    "from_yaml",
    "parse_value",
    "placing",
    "to_yaml",
    "unusual",
]
