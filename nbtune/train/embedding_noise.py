"""Noise on token embeddings while a model trains (Jain et al. 2023, "NEFTune", algorithm 1)."""

from __future__ import annotations

import math
from typing import Any

import torch


class _Noise:
    """A forward hook: adds uniform noise within alpha / √(length · width), where the module is in training mode."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, module: torch.nn.Module, _given: Any, made: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return made
        limit = self.alpha / math.sqrt(made.size(1) * made.size(2))
        return made + torch.zeros_like(made).uniform_(-limit, limit)


def add_noise(model: torch.nn.Module, alpha: float) -> None:
    """Let the model read noisy embeddings while it is in training mode; 0: none."""
    if alpha:
        model.get_input_embeddings().register_forward_hook(_Noise(alpha))  # type: ignore[operator]


def noisy(model: torch.nn.Module) -> bool:
    """Return whether `add_noise` was at work: each step then draws random numbers."""
    module: Any = getattr(model, "get_input_embeddings", lambda: None)()
    return module is not None and any(isinstance(hook, _Noise) for hook in module._forward_hooks.values())
