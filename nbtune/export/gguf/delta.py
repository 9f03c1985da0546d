"""Qwen3-Next and Qwen3.5: gated delta nets, and gated attention in every so many layers.

Qwen3-Next keeps queries, keys, values and gates of each key head together, llama.cpp wants all of a kind behind one
another. Where keys have fewer heads than values, llama.cpp repeats Qwen3.5's keys as a whole, so value heads lie in
turn there: head 0 of each key, then head 1.
"""

from __future__ import annotations

from typing import Any

import torch

from nbtune.export.gguf import hybrids
from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.single_families import change_qwen2_moe, check_llama, extra_moe, refuse
from nbtune.export.gguf.tensors import GgufTensor, Rows, mapped, plain
from nbtune.export.merge import MergedModel

_SECTIONS = (11, 11, 10)  # pairs of a head that time, height and width turn; a text has the same number for all
ARRAY = "{arch}.attention.recurrent_layers"


def check(config: Config) -> None:
    """Refuse what llama.cpp's architectures compute otherwise."""
    check_llama(config)
    same = config.need("linear_key_head_dim") == config.need("linear_value_head_dim")
    refuse(config, not same, "its delta nets' keys are not as wide as their values")
    refuse(config, config.rope()["rope_type"] != "default", "its rotary angles are scaled")


def check_experts(config: Config) -> None:
    check(config)
    refuse(config, not config.get("norm_topk_prob", default=True), "norm_topk_prob is off")
    dense = config.get("decoder_sparse_step", default=1) != 1 or bool(config.get("mlp_only_layers"))
    refuse(config, dense, "some layers are dense")


def metadata(config: Config, writer: Any) -> None:
    """Write the delta nets' sizes, and which layers are such."""
    values = int(config.need("linear_num_value_heads"))
    writer.add_ssm_conv_kernel(int(config.get("linear_conv_kernel_dim", default=4)))
    writer.add_ssm_state_size(int(config.need("linear_key_head_dim")))
    writer.add_ssm_group_count(int(config.need("linear_num_key_heads")))
    writer.add_ssm_time_step_rank(values)
    writer.add_ssm_inner_size(int(config.need("linear_value_head_dim")) * values)
    writer.add_array(ARRAY.format(arch=writer.arch), [not heads for heads in hybrids.attends(config)])
    if config.get("moe_intermediate_size"):
        extra_moe(config, writer)


def metadata_3_5(config: Config, writer: Any) -> None:
    metadata(config, writer)
    sections = config.rope().get("mrope_section") or _SECTIONS
    writer.add_rope_dimension_sections([*(int(n) for n in sections), 0])


def parts(model: MergedModel, config: Config, source: str) -> dict[str, Rows] | None:
    """Return what Qwen3-Next keeps by key head apart: queries, keys and values; and gates."""
    if not source.endswith(".linear_attn.in_proj_qkvz.weight"):
        return None
    keys, width = int(config.need("linear_num_key_heads")), int(config.need("linear_key_head_dim"))
    each = int(config.need("linear_num_value_heads")) // keys * int(config.need("linear_value_head_dim"))

    def sorted_rows(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = weight.view(keys, 2 * width + 2 * each, -1).split([width, width, each, each], dim=1)
        return tuple(one.reshape(-1, weight.shape[1]) for one in found)

    block = f"blk.{source.split('.layers.')[1].split('.')[0]}"
    return {
        f"{block}.attn_qkv.weight": lambda weight: torch.cat(sorted_rows(weight)[:3]),
        f"{block}.attn_gate.weight": lambda weight: sorted_rows(weight)[3],
    }


def change(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Return the weights that llama.cpp wants otherwise."""
    if ".linear_attn." not in source:
        return change_qwen2_moe(model, config, source, name)
    shape = model.shape(source)
    if source.endswith(".norm.weight"):
        return plain(model, source, name)  # one of w, where others are of 1 + w
    if source.endswith(".A_log"):
        return mapped(model, source, name, lambda weight: -weight.exp())
    if source.endswith(".conv1d.weight"):
        return mapped(model, source, name, lambda weight: weight.flatten(1), shape=(shape[0], shape[-1]))
    return None


def change_3_5(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Return them with value heads in turn, too."""
    tensor = change(model, config, source, name)
    order = _in_turn(config, source)
    if order is None:
        return tensor
    made = tensor or plain(model, source, name)

    def chunks() -> Any:
        yield torch.cat(list(made.chunks()))[order]

    return GgufTensor(made.name, made.shape, chunks, made.full or ".conv1d." in source, source)


def columns(config: Config, source: str) -> Rows | None:
    """Return what puts the inputs of the projection out of a delta net in turn."""
    if not source.endswith(".linear_attn.out_proj.weight"):
        return None
    order = _heads_in_turn(config, int(config.need("linear_value_head_dim")))
    return lambda weight: weight[:, order]


def _in_turn(config: Config, source: str) -> torch.Tensor | None:
    """Return the order of a weight's rows."""
    what = source.rpartition(".linear_attn.")[2].removesuffix(".weight")
    width = int(config.need("linear_value_head_dim"))
    if what in ("A_log", "dt_bias", "in_proj_a", "in_proj_b"):
        return _heads_in_turn(config, 1)
    if what == "in_proj_z":
        return _heads_in_turn(config, width)
    if what in ("in_proj_qkv", "conv1d"):
        before = 2 * int(config.need("linear_num_key_heads")) * int(config.need("linear_key_head_dim"))
        return torch.cat([torch.arange(before), before + _heads_in_turn(config, width)])
    return None


def _heads_in_turn(config: Config, width: int) -> torch.Tensor:
    keys, values = int(config.need("linear_num_key_heads")), int(config.need("linear_num_value_heads"))
    return torch.arange(values * width).view(keys, values // keys, width).transpose(0, 1).flatten()
