"""State of a training as tensors that stand still: copied out of it, and put back into an optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def copied(state: Any) -> Any:
    """A copy on the CPU of nested dicts, lists and tensors: later steps do not change it."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [copied(value) for value in state]
    return state


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take up an optimizer's state, its tensors laid out in memory as their parameters are.

    A fused optimizer goes through parameter, gradient and moments by their places in memory.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, x in moments.items():
            if torch.is_tensor(x) and x.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(x).detach()
