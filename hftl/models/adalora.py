"""What AdaLoRA needs while it is trained: its ranks are moved between layers, and its factors kept orthogonal.

peft adds the penalty to the loss that a network computes itself, which Trainer does not use when it is given a loss
function, and leaves the moving to the training loop (Zhang et al. 2023, sections 3.1 and 3.2).
"""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WARM_UP, COOL_DOWN = 0.1, 0.3  # shares of the steps with all ranks, and with the final ones


class AllocateRanks(TrainerCallback):
    """Runs AdaLoRA's schedule over the steps that the run turns out to have.

    Args:
        adapted: the network, wrapped.
    """

    def __init__(self, adapted: nn.Module) -> None:
        self.adapted = adapted
        self.config = adapted.peft_config["default"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        steps = state.max_steps
        self.config.tinit, self.config.tfinal = round(WARM_UP * steps), round(COOL_DOWN * steps)
        self.config.deltaT = max(1, steps // 100)
        self.adapted.base_model.rankallocator.set_total_step(steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        factors = [p for name, p in self.adapted.named_parameters() if ".lora_A." in name or ".lora_B." in name]
        penalty = self.config.orth_reg_weight * sum(map(_distance_from_orthogonal, factors)) / len(factors)
        for factor, gradient in zip(factors, torch.autograd.grad(penalty, factors), strict=True):
            factor.grad = gradient if factor.grad is None else factor.grad + gradient

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.adapted.base_model.update_and_allocate(state.global_step + 1)


def _distance_from_orthogonal(factor: torch.Tensor) -> torch.Tensor:
    """Frobenius norm of P P' - 1 for a factor [r, n] or [n, r]."""
    square = factor @ factor.T if factor.shape[0] < factor.shape[1] else factor.T @ factor
    return torch.linalg.norm(square - torch.eye(len(square), device=square.device, dtype=square.dtype))
