"""What can a card do? Its memory and the peak of its matrix units, from the makers' data sheets.

Dense figures: those with sparsity, which advertisements quote, are twice as high.
"""

import re
from dataclasses import dataclass

from hftl.cost.energy import find_by_device
from hftl.errors import UserError, unknown_name

# What CUDA itself, its libraries' workspaces and gaps between blocks take: peak_reserved - peak_allocated was 0.76 GB
# on an H100 (benchmarks/results/qlora-70b.json), and a context takes 0.3 to 0.7 GB.
RESERVED_BYTES = 1_500_000_000


@dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        device: words of its name, as in the keys of the price table.
        memory_bytes: as a driver reports it, rounded down.
        peak_flops: dense products in 16 bits (bfloat16, or float16 on cards without it), operations a second; None
            where only the memory is known.
    """

    device: str
    memory_bytes: int
    peak_flops: float | None

    @property
    def usable_bytes(self) -> int:
        """What tensors can have."""
        return max(0, self.memory_bytes - RESERVED_BYTES)


# NVIDIA's data sheets: H100 and H200 SXM, A100, L40S, L4, T4, V100 SXM; Ada and Ampere GA102 architecture papers for
# 4090 and 3090 (products in 16 bits summed in 32).
CARDS = {
    "h100": Card("H100", 80 * 2**30, 989e12),
    "h200": Card("H200", 140 * 2**30, 989e12),
    "a100-80": Card("A100", 80 * 2**30, 312e12),
    "a100-40": Card("A100", 40 * 2**30, 312e12),
    "l40s": Card("L40S", 45 * 2**30, 362e12),
    "l4": Card("L4", 22 * 2**30, 121e12),
    "4090": Card("4090", 24 * 2**30, 165e12),
    "3090": Card("3090", 24 * 2**30, 71e12),
    "t4": Card("T4", 15 * 2**30, 65e12),
    "v100": Card("V100", 16 * 2**30, 125e12),
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*GB", re.IGNORECASE)


def find_card(name: str) -> Card:
    """The card of that name, or one of so many GB (10^9 bytes) of which nothing else is known.

    Raises:
        UserError: neither a known name nor a size.
    """
    if name.lower() in CARDS:
        return CARDS[name.lower()]
    if (size := _SIZE.fullmatch(name.strip())) is None:
        raise unknown_name("card", name, CARDS, "A size such as 24GB does as well.")
    if (num_bytes := int(float(size[1]) * 1e9)) <= RESERVED_BYTES:
        raise UserError(f"--gpu {name}: CUDA itself takes {RESERVED_BYTES / 1e9:.1f} GB. Give a larger card.")
    return Card(name, num_bytes, None)


def find_peak_flops(device: str) -> float | None:
    """Peak of a device as torch names it, operations a second; None where it is not known, as for a CPU."""
    return find_by_device({card.device: card.peak_flops for card in CARDS.values() if card.peak_flops}, device)
