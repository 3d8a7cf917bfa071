"""Which modules of a network does an adapter change, and how much of the network is that?

Must not know adapter methods: they say which kinds of layers they can change.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hftl.errors import UserError, unknown_name
from hftl.models.load import body_prefix
from hftl.models.quantization import count_elements

LINEAR, CONV1D, CONV2D, NORM = "linear", "Conv1D (GPT-2's linear)", "convolution", "normalization"
BIAS = "bias"  # of whatever layer has one
ATTENTION_WORDS = ("attn", "attention")  # in the path of a layer; T5 writes SelfAttention
ALIASES = ("all-linear", "attention", "mlp", "conv")


def kind_of(module: nn.Module) -> str | None:
    """The kind of layer; None for what no adapter changes, such as grouped convolutions and embeddings."""
    if isinstance(module, nn.Linear):
        return LINEAR
    if isinstance(module, Conv1D):
        return CONV1D
    if isinstance(module, nn.Conv2d):
        return CONV2D if module.groups == 1 else None
    # Each family has an RMSNorm of its own. BatchNorm has statistics, which no adapter saves.
    is_norm = "norm" in type(module).__name__.lower() and not isinstance(module, nn.modules.batchnorm._NormBase)
    return NORM if is_norm and getattr(module, "weight", None) is not None else None


def shape_of(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a layer as one matrix, quantized or not; those of a convolution count its window."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return module.weight[0].numel(), module.weight.shape[0]


def is_convolutional(network: nn.Module) -> bool:
    """Whether most of the weights in matrix products are those of convolutions."""
    weights = {nn.Conv2d: 0, nn.Linear: 0}
    for name, module in network.named_modules():
        kind = next((kind for kind in weights if isinstance(module, kind)), None)
        if kind and name.startswith(body_prefix(network)):
            weights[kind] += count_elements(module.weight)
    return weights[nn.Conv2d] > weights[nn.Linear]


def default_targets(network: nn.Module, heads: list[str]) -> list[str]:
    """The modules that LoRA and its like adapt when none are named.

    Every linear layer of the body (adapting all of them matters more than the rank: Biderman et al. 2024; Schulman
    2025). In a convolutional network the 1x1 convolutions, which hold most of its weights, or, where there are
    none, as in ResNet-18, every ungrouped convolution but the first. Squeeze-and-excitation gates are left alone.
    """
    body = {name: kind for name, kind in list_layers(network, heads).items() if "squeeze" not in name}
    linear = [name for name, kind in body.items() if kind in (LINEAR, CONV1D)]
    convolutions = [name for name, kind in body.items() if kind == CONV2D]
    if linear and not is_convolutional(network):
        return linear
    sizes = {name: network.get_submodule(name).kernel_size for name in convolutions}
    pointwise = [name for name in convolutions if sizes[name] == (1, 1)]
    wider = [name for name in convolutions[1:] if sizes[name] != (1, 1)]
    spatial_weights = sum(network.get_submodule(name).weight.numel() for name in wider)
    pointwise_weights = sum(network.get_submodule(name).weight.numel() for name in pointwise)
    chosen = pointwise if pointwise_weights >= spatial_weights else pointwise + wider
    if not chosen + linear:
        raise UserError(f"{type(network).__name__} has neither linear layers nor convolutions that LoRA can adapt.")
    return chosen + linear


def list_layers(network: nn.Module, heads: list[str]) -> dict[str, str]:
    """Name -> kind of each layer of the body that some adapter can change."""
    return {name: kind for name, module in _list_body(network, heads) if (kind := kind_of(module)) is not None}


def _list_body(network: nn.Module, heads: list[str]) -> list[tuple[str, nn.Module]]:
    prefix = body_prefix(network)
    words = network.get_output_embeddings()  # often the input embedding as well, which stays
    inside = [
        (name, module)
        for name, module in network.named_modules()
        if name.startswith(prefix) and (words is None or module is not words)
    ]
    return [(name, module) for name, module in inside if not any(f"{name}.".startswith(f"{h}.") for h in heads)]


def resolve_targets(
    network: nn.Module, heads: list[str], wanted: list[str] | None, kinds: Collection[str]
) -> list[str]:
    """Full names of the modules to adapt.

    Args:
        network: not yet wrapped.
        heads: modules that are trained whole and never adapted.
        wanted: words of `ALIASES`, ends of module names, or regular expressions that match a whole name; None for
            the default.
        kinds: the kinds of layers that the method can change.

    Raises:
        UserError: a word matches nothing, or only layers that the method cannot change.
    """
    layers = list_layers(network, heads)
    if BIAS in kinds:
        owned = ((name, dict(module.named_parameters(recurse=False))) for name, module in _list_body(network, heads))
        layers = {name: BIAS for name, parameters in owned if "bias" in parameters}
        if not layers:
            raise UserError(f"{type(network).__name__} has no biases in its body. Use --adapter lora.")
        wanted = wanted or [".*"]
    if wanted is None:
        names = [name for name, kind in layers.items() if kind == NORM] if NORM in kinds else None
        names = default_targets(network, heads) if names is None else names
        usable = [name for name in names if layers[name] in kinds]
        if not usable:
            raise _unfit(network, names, layers, kinds)
        return usable
    chosen: dict[str, None] = {}
    for word in wanted:
        found = _match(word, network, layers)
        usable = [name for name in found if layers[name] in kinds]
        if not usable:
            raise _unfit(network, found, layers, kinds)
        chosen |= dict.fromkeys(usable)
    return list(chosen)


def describe_coverage(network: nn.Module, targets: list[str], batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """How much of a network an adapter reaches; for `run.json`.

    Args:
        network: not yet wrapped.
        targets: full names of the adapted modules; none for prompts.
        batch: model inputs of a few rows, for the operations that each layer makes on them.
    """
    operations = _count_multiplications(network, batch)
    weights = {name: count_elements(network.get_submodule(name).weight) for name in targets}
    return {
        "modules": sorted({name.rsplit(".", 1)[-1] for name in targets}),
        "num_modules": len(targets),
        "share_of_parameters": sum(weights[name] for name in targets) / sum(map(count_elements, network.parameters())),
        "share_of_flops": sum(operations.get(name, 0) for name in targets) / max(1, sum(operations.values())),
    }


def _count_multiplications(network: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Name -> multiplications of each layer with a weight matrix, in one forward pass."""
    counts: dict[str, int] = {}

    def count(name: str, layer: nn.Module, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            inputs = layer.in_features  # the weights of a quantized layer have another shape
        else:
            inputs = layer.weight.numel() // layer.weight.shape[1 if isinstance(layer, Conv1D) else 0]
        counts[name] = counts.get(name, 0) + output.numel() * inputs

    hooks = [
        layer.register_forward_hook(lambda module, _, output, name=name: count(name, module, output))
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d, Conv1D))
    ]
    was_training = network.training
    try:
        with torch.inference_mode():
            network.eval()(**batch)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return counts


def _match(word: str, network: nn.Module, layers: dict[str, str]) -> list[str]:
    linear = [name for name, kind in layers.items() if kind in (LINEAR, CONV1D)]
    attention = [name for name in linear if any(part in name.lower() for part in ATTENTION_WORDS)]
    found = {
        "all-linear": linear,
        "attention": attention,
        "mlp": [name for name in linear if name not in attention and re.search(r"\.\d+\.", name)],  # in the stack
        "conv": [name for name, kind in layers.items() if kind == CONV2D],
    }.get(word)
    if found is None:
        found = [name for name in layers if name == word or name.endswith(f".{word}")]
        try:
            found = found or [name for name in layers if re.fullmatch(word, name)]
        except re.error as error:
            raise UserError(f"--target_modules: {word!r} is no regular expression: {error}.") from error
    if not found:
        leaves = {name.rsplit(".", 1)[-1] for name in layers}
        raise unknown_name("target module", word, {*leaves, *ALIASES})
    return found


def _unfit(network: nn.Module, names: list[str], layers: dict[str, str], kinds: Collection[str]) -> UserError:
    found = sorted({layers[name] for name in names})
    wanted = f"This adapter changes {' and '.join(sorted(kinds))} layers"
    if not found:
        return UserError(f"{wanted}, but {type(network).__name__} has none that it could. Use --adapter lora.")
    return UserError(
        f"{wanted}, but the modules to adapt of {type(network).__name__} are {' and '.join(found)} layers. "
        "Use --adapter lora, which adapts all of them."
    )
