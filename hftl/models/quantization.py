"""How are the frozen weights of a checkpoint held in 8 or 4 bits? By bitsandbytes, on a GPU or a CPU.

Heads, norms and embeddings stay as they are: what is trained is never quantized.
"""

import importlib.util
from typing import Any

import torch
from torch import nn

from hftl.errors import UserError

INSTALL = "pip install 'hftl[quant]'"


def check_quantization(args: Any) -> None:
    """Refuse what cannot be trained, or not here.

    Raises:
        UserError: another mode than peft, or bitsandbytes is missing.
    """
    if args.quantization == "none":
        return
    if args.mode != "peft":
        raise UserError(
            f"--quantization {args.quantization} is for --mode peft: rounded weights cannot be trained, because most "
            "steps are smaller than the distance between two of their values. Only what is added to them can."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"--quantization {args.quantization} needs the package bitsandbytes: {INSTALL}.")


def build_quantization(kind: str, kept: list[str]) -> Any:
    """The configuration for `from_pretrained`, or None.

    Args:
        kind: none, int8 or nf4, which quantizes its own scales as well (Dettmers et al. 2023, section 3).
        kept: modules that stay as they are.
    """
    from transformers import BitsAndBytesConfig

    if kind == "none":
        return None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if has_bfloat16 else torch.float32,
        llm_int8_skip_modules=kept,
    )


def keep_layout(network: nn.Module) -> None:
    """Leave 4-bit weights as they are stored, on every processor.

    On a CPU with AVX512_BF16 bitsandbytes 0.50 packs them anew at the first evaluation: their scales are rounded to
    bfloat16, a training step after it sends no gradient through them, and layers narrower than 64 are an error.
    """
    for module in network.modules():
        if type(module).__name__ == "Linear4bit":  # without importing bitsandbytes
            module.support_avx512bf16_for_cpu = False


def is_quantized(network: nn.Module) -> bool:
    """Whether a network as loaded has weights in 8 or 4 bits."""
    return getattr(network, "hf_quantizer", None) is not None


def count_elements(parameter: nn.Parameter) -> int:
    """Weights that a parameter stands for: two fit into each byte of nf4."""
    is_packed = type(parameter).__name__ == "Params4bit"  # without importing bitsandbytes
    return parameter.numel() * parameter.element_size() * 2 if is_packed else parameter.numel()
