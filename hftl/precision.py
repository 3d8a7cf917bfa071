"""In what precision are products computed while training? Weights, gradients, their sums and scores stay in float32.

On a GPU `hftl.config` decides, before anything is loaded. On a CPU it depends on the network, so it is decided here.
"""

import functools
import os
from pathlib import Path

import torch
import transformers
from torch import nn

from hftl.config import Arguments
from hftl.models.modes import find_mode
from hftl.models.quantization import is_quantized
from hftl.models.targets import is_convolutional

# Below it the casts cost what the products gain. docs/performance.md has what was measured.
MIN_WIDTH = 256
INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def choose_autocast(args: Arguments, network: nn.Module) -> torch.dtype | None:
    """bfloat16 for training on a CPU that multiplies it in hardware, unless the user has chosen; otherwise None.

    Not for convolutions, small networks and weights in few bits, which do not gain, nor where nothing is trained.
    Evaluation stays in float32, so that anybody finds the same predictions.
    """
    is_chosen = {"bf16", "fp16"} & set(args.given) or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
    if args.training.device.type != "cpu" or is_chosen or not find_mode(args.model.mode).is_trained:
        return None
    if not has_bfloat16_instructions() or is_quantized(network) or is_convolutional(network):
        return None
    width = getattr(network.config.get_text_config(), "hidden_size", None) or 0
    return torch.bfloat16 if width >= MIN_WIDTH else None


@functools.cache
def has_bfloat16_instructions() -> bool:
    """Whether the processor has them, as Linux tells it; elsewhere nothing is known, and `--bf16 true` decides."""
    path = Path("/proc/cpuinfo")
    return path.is_file() and any(name in path.read_text(errors="replace") for name in INSTRUCTIONS)


def describe_precision(training: transformers.TrainingArguments, autocast: torch.dtype | None = None) -> str:
    """What products are computed in while training; the trained weights are float32."""
    if autocast is not None:
        return f"{str(autocast).removeprefix('torch.')} autocast, evaluation float32"
    return {"bf16": "bfloat16 autocast", "fp16": "float16 autocast"}.get(training.mixed_precision, "float32")
