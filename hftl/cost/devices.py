"""How many operations a second can a card do at most? Its matrix units, from the maker's data sheet.

Dense figures: those with sparsity, which advertisements quote, are twice as high.
"""

from hftl.cost.energy import find_by_device

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


def find_peak_flops(device: str) -> float | None:
    """Peak of a device as torch names it, operations a second; None where it is not known, as for a CPU."""
    return find_by_device(PEAK_FLOPS, device)
