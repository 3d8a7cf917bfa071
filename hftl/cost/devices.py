"""How many operations a second can a card do at most, and how much fits into its memory? From the makers' data sheets.

Dense figures: those with sparsity, which advertisements quote, are twice as high.
"""

import re

from hftl.cost.energy import find_by_device
from hftl.errors import unknown_name

# Products in 16 bits (bfloat16, or float16 on cards without it) summed in 32, operations a second. NVIDIA's data
# sheets: H100 and H200 SXM, A100, L40S, L4, T4, V100 SXM; Ada and Ampere GA102 architecture papers for 4090 and 3090.
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
    "3090": 71e12,
    "T4": 65e12,
    "V100": 125e12,
}
# GiB, by the same data sheets; a name with a number behind it is the card of that size.
CARD_GIB = {
    "h200": 141,
    "h100": 80,
    "a100": 80,
    "a100-40": 40,
    "l40s": 48,
    "l4": 24,
    "a10g": 24,
    "4090": 24,
    "3090": 24,
    "t4": 16,
    "v100": 16,
    "v100-32": 32,
}
# What the driver, the context of a process and the allocator's blocks take of it: 0.8 GiB and a hundredth or so.
RESERVED_BYTES = 2**30


def find_peak_flops(device: str) -> float | None:
    """Peak of a device as torch names it, operations a second; None where it is not known, as for a CPU."""
    return find_by_device(PEAK_FLOPS, device)


def find_capacity(card: str) -> int:
    """Bytes of a card that tensors can have: a name, or a size such as 24GB.

    Raises:
        UserError: there is no such card.
    """
    name = card.lower().removeprefix("rtx").strip(" -")
    if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?(gb|gib)", name):
        return round(float(match[1]) * 2**30) - RESERVED_BYTES
    if name not in CARD_GIB:
        raise unknown_name("card in --gpu:", card, CARD_GIB, "Or give a size, such as 24GB.")
    return CARD_GIB[name] * 2**30 - RESERVED_BYTES
