"""Which library multiplies matrices in float32 on a CPU, where no gradient is wanted? Must not know who asks what."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hftl.runtime.cpu import has_instructions, is_made_by

# Multiplications of a product, below which calling oneDNN takes longer than it gains; see docs/performance.md.
MIN_PRODUCTS = 2**21


@contextmanager
def linear_by_onednn(device: torch.device) -> Iterator[None]:
    """Compute linear layers in float32 by oneDNN while inside, where it is faster than MKL and no gradient is wanted.

    Nothing where `device`, on which the network is, is no CPU.

    torch gives products of float32 to MKL, which leaves half of an AMD processor with AVX-512 idle. Both add up in
    float32; results differ in the last bits, as they do between any two machines.
    """
    if device.type != "cpu" or not is_onednn_faster():
        yield
        return
    with _LinearByOneDnn():
        yield


@functools.cache
def is_onednn_faster() -> bool:
    """Whether torch has both libraries here, and the processor is one whose wide registers MKL does not use."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    is_there = has_both and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return is_there and is_made_by("AuthenticAMD") and has_instructions("avx512f")


class _LinearByOneDnn(TorchFunctionMode):
    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is functional.linear and not kwargs and _gains(*args):
            input, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return function(*args, **(kwargs or {}))


def _gains(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    tensors = [input, weight] if bias is None else [input, weight, bias]
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(type(t) in _PLAIN and t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and weight.is_contiguous()
        and input.numel() * weight.shape[0] >= MIN_PRODUCTS
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)
