"""Mamba, Falcon Mamba and Mamba 2: models of states, without attention."""

from __future__ import annotations

from typing import Any

from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.single_families import check_llama, refuse
from nbtune.export.gguf.tensors import GgufTensor, mapped
from nbtune.export.merge import MergedModel

CONTEXT = 2**20  # tokens: there is no end to what a state can read
NAMES = {r"(?:backbone|model)\.layers\.(\d+)\.(?:mixer|mamba|linear_attn)\.dt_bias": r"blk.\1.ssm_dt.bias"}
GROUPS = ("n_groups", "mamba_n_groups")


def check(config: Config) -> None:
    """Refuse what llama.cpp's architectures compute otherwise."""
    check_llama(config)
    refuse(config, bool(config.get("use_bias")), "its linear layers have biases")
    refuse(config, not config.get("use_conv_bias", default=True), "its convolution has no bias")
    check_limits(config)


def check_limits(config: Config) -> None:
    """Refuse steps of time that are kept within limits."""
    limits = [_number(one) for one in config.get("time_step_limit", default=(0.0, "inf"))]
    refuse(config, limits != [0.0, float("inf")], "its steps of time have limits")


def _number(value: Any) -> float:
    """Return what JSON has no number for, as transformers writes it."""
    return float(value.get("__float__", "nan") if isinstance(value, dict) else value)


def metadata(config: Config, writer: Any) -> None:
    """Write all that llama.cpp has to know of such a model, its vocabulary apart."""
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(float(config.get("layer_norm_epsilon", default=1e-5)))
    writer.add_ssm_conv_kernel(int(config.get("conv_kernel", default=4)))
    writer.add_ssm_inner_size(_width(config))
    writer.add_ssm_state_size(int(config.need("state_size")))
    if _second(config):
        writer.add_ssm_time_step_rank(int(config.need("num_heads")))
        writer.add_ssm_group_count(int(config.get("n_groups", default=1)))
        return
    rank = config.get("time_step_rank", default="auto")
    writer.add_ssm_time_step_rank(-(-config.hidden // 16) if rank == "auto" else int(rank))
    writer.add_ssm_dt_b_c_rms(config.model_type == "falcon_mamba")


def change(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Return the weights that llama.cpp wants otherwise: A itself, numbers in columns, a flat convolution."""
    shape = model.shape(source)
    if source.endswith(".conv1d.weight"):
        found = mapped(model, source, name, lambda w: w.flatten(1), shape=(shape[0], shape[-1]))
    elif source.endswith(".A_log"):
        flat = (shape[0], 1) if len(shape) == 1 else shape
        found = mapped(model, source, name, lambda w: -w.exp().view(flat), shape=flat)
    elif source.endswith((".mixer.D", ".mamba.D")) and _second(config):
        found = mapped(model, source, name, lambda w: w[:, None], shape=(shape[0], 1))
    elif source.endswith((".mixer.norm.weight", ".mamba.norm.weight")):
        groups = (int(config.get(*GROUPS, default=1)), -1)
        found = mapped(model, source, name, lambda w: w.view(groups), shape=(groups[0], shape[0] // groups[0]))
    else:
        return None
    return GgufTensor(found.name, found.shape, found.chunks, True, source)  # kept in fp32


def _second(config: Config) -> bool:
    """Return whether its states are Mamba 2's, with heads."""
    return config.model_type == "mamba2" or config.get("mamba_n_heads", "mamba_num_heads") is not None


def _width(config: Config) -> int:
    if _second(config):
        return int(config.need("num_heads")) * int(config.need("head_dim"))
    return int(config.get("intermediate_size", default=config.get("expand", default=2) * config.hidden))
