"""How is it drawn on a CPU which values are dropped? Must not know what trains the network."""

import torch
from torch import nn

from hftl.runtime.cpu import is_made_by

LEVELS = 2**16  # a value is dropped by 16 random bits
MAX_RATE = 0.99  # above it the steps of a rate are too coarse


class SixteenBitDropout(nn.Dropout):
    """`nn.Dropout` in a quarter of the time on a CPU, where torch spends most of it on drawing.

    One number of 64 bits decides on four values. torch draws a float64 for each, on one core, unless Intel made the
    processor (`bernoulli_scalar_kernel` of torch 2.13). The rate is the nearest multiple of 2 ** -16, and what is kept
    is scaled for just that rate. As in torch all comes from the global random state, so that activations that are
    computed again for their gradients drop the same values.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """A tensor of any shape, with values dropped while training."""
        if not self.training or not 0 < self.p <= MAX_RATE or input.device.type != "cpu":
            return super().forward(input)
        return input * draw_mask(input, self.p)


def draw_mask(values: torch.Tensor, rate: float) -> torch.Tensor:
    """What `values` are multiplied by, of their shape and type: 0 at that rate, or what keeps their mean."""
    num_values, num_dropped = values.numel(), round(rate * LEVELS)
    bits = torch.empty(-(-num_values // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    is_kept = bits[:num_values] >= num_dropped - LEVELS // 2
    return is_kept.view(values.shape).to(values.dtype).mul_(LEVELS / (LEVELS - num_dropped))


def draw_faster(network: nn.Module) -> None:
    """Replace the network's dropout, in place; nothing of it is saved. What calls dropout as a function is left.

    Not on a processor by Intel, where torch draws on all cores.
    """
    if is_made_by("GenuineIntel"):
        return
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p and not child.inplace:
                setattr(parent, name, SixteenBitDropout(child.p).train(child.training))
