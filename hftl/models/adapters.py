"""Which PEFT configuration belongs to an adapter name, and which modules of a network it adapts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hftl.errors import UserError, unknown_name
from hftl.models.load import body_prefix


def default_targets(network: nn.Module, heads: list[str]) -> list[str]:
    """The modules that LoRA adapts when none are named.

    Every linear layer of the body (adapting all of them matters more than the rank: Biderman et al. 2024; Schulman
    2025). In a convolutional network the 1x1 convolutions, which hold most of its weights, or, where there are
    none, as in ResNet-18, every ungrouped convolution but the first. Squeeze-and-excitation gates are left alone.
    """
    prefix = body_prefix(network)
    body = [
        (name, module)
        for name, module in network.named_modules()
        if name.startswith(prefix)
        and "squeeze" not in name
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    ]
    linear = [name for name, module in body if isinstance(module, (nn.Linear, Conv1D))]  # Conv1D: GPT-2's linear layer
    convolutions = [(name, module) for name, module in body if isinstance(module, nn.Conv2d) and module.groups == 1]
    if linear and not is_convolutional(network):
        return linear
    pointwise = [name for name, module in convolutions if module.kernel_size == (1, 1)]
    wider = [name for name, module in convolutions[1:] if module.kernel_size != (1, 1)]
    spatial_weights = sum(network.get_submodule(name).weight.numel() for name in wider)
    pointwise_weights = sum(network.get_submodule(name).weight.numel() for name in pointwise)
    chosen = pointwise if pointwise_weights >= spatial_weights else pointwise + wider
    if not chosen + linear:
        raise UserError(f"{type(network).__name__} has neither linear layers nor convolutions that LoRA can adapt.")
    return chosen + linear


def is_convolutional(network: nn.Module) -> bool:
    """Whether most of the weights in matrix products are those of convolutions."""
    weights = {nn.Conv2d: 0, nn.Linear: 0}
    for name, module in network.named_modules():
        if type(module) in weights and name.startswith(body_prefix(network)):
            weights[type(module)] += module.weight.numel()
    return weights[nn.Conv2d] > weights[nn.Linear]


def _build_lora(args: Any, targets: list[str], heads: list[str], task_type: str | None) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        modules_to_save=heads,
        task_type=task_type,
    )


ADAPTERS: dict[str, Callable[[Any, list[str], list[str], str | None], Any]] = {"lora": _build_lora}


def build_adapter(network: nn.Module, args: Any, heads: list[str], task_type: str | None) -> Any:
    """Wrap a network in the adapter that `args.adapter` names; its head stays trainable and is saved with it.

    Raises:
        UserError: an unknown adapter, or `target_modules` that match nothing.
    """
    from peft import get_peft_model

    if args.adapter not in ADAPTERS:
        raise unknown_name("adapter", args.adapter, ADAPTERS)
    targets = _check_targets(network, args.target_modules) if args.target_modules else default_targets(network, heads)
    adapted = get_peft_model(network, ADAPTERS[args.adapter](args, targets, heads, task_type))
    _train_in_float32(adapted)
    return adapted


def _train_in_float32(adapted: nn.Module) -> None:
    """Over a bfloat16 body too: peft keeps its new matrices in float32, but not the copied head."""
    from peft.utils import ModulesToSaveWrapper

    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for head in module.modules_to_save.values():
                head.register_forward_pre_hook(_cast_inputs)


def _cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the body gives to the head, in the head's own type."""
    is_floating = [isinstance(value, torch.Tensor) and value.is_floating_point() for value in inputs]
    return tuple(value.float() if cast else value for value, cast in zip(inputs, is_floating, strict=True))


def _check_targets(network: nn.Module, targets: list[str]) -> list[str]:
    leaves = {
        name.rsplit(".", 1)[-1]
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, Conv1D))
    }
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name, _ in network.named_modules()):
            raise unknown_name("target module", target, leaves)
    return targets
