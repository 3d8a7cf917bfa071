"""In what precision are products computed while training? Weights, gradients, their sums and scores stay in float32.

On a GPU `hftl.config` decides, before anything is loaded. On a CPU it depends on the network, so it is decided here.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode

from hftl.config import Arguments
from hftl.models.modes import find_mode
from hftl.models.quantization import is_quantized
from hftl.models.targets import is_convolutional
from hftl.runtime.cpu import has_instructions

# Below it the casts cost what the products gain. docs/performance.md has what was measured.
MIN_WIDTH = 256
INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def choose_autocast(args: Arguments, network: nn.Module) -> torch.dtype | None:
    """bfloat16 for training on a CPU that is known to multiply it, unless the user has chosen; otherwise None.

    Not for small networks and weights in few bits, which do not gain, nor where nothing is trained. Evaluation stays
    in float32, so that anybody finds the same predictions.
    """
    is_chosen = {"bf16", "fp16"} & set(args.given) or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
    if args.training.device.type != "cpu" or is_chosen or not find_mode(args.model.mode).is_trained:
        return None
    if not has_instructions(*INSTRUCTIONS) or is_quantized(network):
        return None
    if is_convolutional(network):
        return torch.bfloat16 if _gains_in_convolutions(args, network) else None
    width = getattr(network.config.get_text_config(), "hidden_size", None) or 0
    return torch.bfloat16 if width >= MIN_WIDTH else None


def _gains_in_convolutions(args: Arguments, network: nn.Module) -> bool:
    """Whether convolutions gain, as they were measured to where images are classified.

    What is computed again for its gradients, or compiled, would be computed without `_DepthwiseInFloat32`.
    """
    if args.data.task != "image-classification" or args.training.gradient_checkpointing or args.training.torch_compile:
        return False
    return max(m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)) >= MIN_WIDTH


@contextmanager
def computing_in(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast; on a CPU without depthwise convolutions."""
    with torch.autocast(device, dtype):
        if device != "cpu":
            yield
            return
        with _DepthwiseInFloat32():
            yield


class _DepthwiseInFloat32(TorchFunctionMode):
    """Leave depthwise convolutions in float32; other grouped ones gain.

    The gradient of their weights in bfloat16 takes 3 to 10 times as long (oneDNN of torch 2.13).
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is not torch.conv2d or not _is_depthwise(*args, **kwargs):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return function(*map(_to_float32, args), **{name: _to_float32(value) for name, value in kwargs.items()})


def _is_depthwise(input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
    """Whether each channel of a convolution is computed from one channel; the arguments of `torch.conv2d`."""
    return weight.shape[1] == 1 and input.shape[-3] > 1


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value


def describe_precision(training: transformers.TrainingArguments, autocast: torch.dtype | None = None) -> str:
    """What products are computed in while training; the trained weights are float32."""
    if autocast is not None:
        return f"{str(autocast).removeprefix('torch.')} autocast, evaluation float32"
    return {"bf16": "bfloat16 autocast", "fp16": "float16 autocast"}.get(training.mixed_precision, "float32")
