"""How many floating-point operations does a computation take? Counted operator by operator, not estimated.

A multiplication and an addition are two operations. Only matrix products, convolutions and attention count, as in the
figures that are published as 6 x parameters x tokens; what an activation or a norm adds is about a percent.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

Shape = Sequence[int]


def _attention(query: Shape, key: Shape, value: Shape, *args: object, **kwargs: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *args: object, **kwargs: object) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _convolution_backward(grad: Shape, inputs: Shape, weight: Shape, *args: object, **kwargs: object) -> int:
    """As much as the forward pass for each of the gradients wanted: of the inputs and of the weight."""
    *_, is_transposed, _output_padding, _groups, output_mask = args
    return conv_flop_count(inputs, weight, grad, transposed=is_transposed) * sum(output_mask[:2])


def _quantized(inputs: Shape, weight: Shape, shape: Shape, *args: object, **kwargs: object) -> int:
    """Inputs [*, K] by packed weights that stand for [N, K]."""
    return 2 * math.prod(inputs) * shape[0]


def _linear(inputs: Shape, weight: Shape, *args: object, **kwargs: object) -> int:
    """Inputs [*, K] by weights [N, K]."""
    return 2 * math.prod(inputs) * weight[0]


def _quantized_mixed(inputs: Shape, quantized: Shape, weight: Shape, *args: object, **kwargs: object) -> int:
    """The same; what outliers add in float16 is under a hundredth."""
    return 2 * math.prod(inputs) * weight[0]


# Products that are operators of their own: of bitsandbytes, there once it was imported, and of oneDNN.
_PRODUCTS = {
    "bitsandbytes": {
        "gemm_4bit": _quantized,
        "gemv_4bit": _quantized,
        "int8_scaled_mm": _linear,
        "int8_mixed_scaled_mm": _quantized_mixed,
    },
    "mkldnn": {"_linear_pointwise": _linear},
}

# Where torch 2.8 to 2.13 is wrong.
_FORMULAS = {
    # Counted on CUDA alone, so 0 on the CPU: pytorch/pytorch#195460.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    # The weight gradient of a depthwise convolution is counted once for every channel: pytorch/pytorch#183405.
    torch.ops.aten.convolution_backward: _convolution_backward,
}


def count_units(batch: dict[str, torch.Tensor]) -> int:
    """What FLOPs are proportional to: padded tokens of texts, of both sides where there are two, or images."""
    tokens = sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)
    return tokens or len(batch["labels"])


def count_flops(function: Callable[[], object]) -> int:
    """Call `function` once and count what it executes, backward passes and recomputation included."""
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS | _find_products())
    with counter:
        function()
    return counter.get_total_flops()


def _find_products() -> dict[Any, Callable]:
    """Formulas of those operators that are there."""
    return {
        getattr(operators, name): formula
        for library, formulas in _PRODUCTS.items()
        for name, formula in formulas.items()
        if hasattr(operators := getattr(torch.ops, library), name)
    }
