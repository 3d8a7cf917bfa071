"""What should fine-tuning a Llama-3-shaped network take, in bytes and in operations? On paper: imports no torch.

`qlora_70b.py` measures the same cases and `qlora_70b.py --plan` prints `describe_plan`. Bytes and FLOPs are exact
counts where the docstring names no estimate; GB are 10^9 bytes, as on the label of an 80 GB card.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

MEMORY_CAP_BYTES = 80_000_000_000  # an H100 has 85.5e9, of which CUDA itself takes some; an H200 has 150e9
LORA_R = 16  # hftl's default, on every linear layer of the body
NF4_BLOCK, SCALE_BLOCK = 64, 256  # weights a scale, scales a second-level scale: bitsandbytes, Dettmers et al. 2023
ADAM_BLOCK, ADAM_MIN_8BIT = 256, 4096  # 8-bit Adam of bitsandbytes: elements a scale; smaller tensors stay in 32 bits
LOSS_CHUNK = 512  # tokens whose logits exist at the same time
STEP, MAX_LENGTH = 256, 131_072  # of the search, in tokens; Llama 3.1, of the same shape, reads so many
PEAK_FLOPS = 989e12  # dense bfloat16 of an H100 or H200 in its SXM form, operations a second (NVIDIA's data sheets)


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; `learning_rate` is that of adapters, ten times that of all weights as in hftl."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    vocab: int
    learning_rate: float

    @property
    def kv(self) -> int:
        """Outputs of the key and of the value projection."""
        return self.hidden // self.num_heads * self.num_kv_heads

    def linears(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the linear layers of one block: q, k, v, o, gate, up, down."""
        d, f = self.hidden, self.intermediate
        return [(d, d), (self.kv, d), (self.kv, d), (d, d), (f, d), (f, d), (d, f)]

    @property
    def num_body(self) -> int:
        """Weights of the linear layers of all blocks."""
        return self.num_layers * sum(n * m for n, m in self.linears())

    @property
    def num_head(self) -> int:
        """Weights of the vocabulary head; the embeddings, which are not tied to it, have as many."""
        return self.vocab * self.hidden

    @property
    def num_norms(self) -> int:
        """Weights of the RMS norms."""
        return (2 * self.num_layers + 1) * self.hidden

    @property
    def num_parameters(self) -> int:
        """Of the network without adapters."""
        return self.num_body + 2 * self.num_head + self.num_norms

    @property
    def num_adapters(self) -> int:
        """Of LoRA on every linear layer of the body: r (inputs + outputs) each (Hu et al. 2022)."""
        return self.num_layers * sum(LORA_R * (n + m) for n, m in self.linears())


@dataclass(frozen=True)
class Case:
    """One way to train one shape: mode full, lora (over bfloat16) or qlora (over nf4); `optim` is Trainer's flag."""

    shape: str
    mode: str
    optim: str = "adamw_torch_fused"


# Sizes: the config.json of meta-llama/Meta-Llama-3-70B and -8B. Rates: QLoRA trained 7B to 13B with 2e-4, 33B and 65B
# with 1e-4 (Dettmers et al. 2023, appendix B.2).
SHAPES = {
    "70b": Shape(80, 8192, 28672, 64, 8, 128256, 1e-4),
    "8b": Shape(32, 4096, 14336, 32, 8, 128256, 2e-4),
    "tiny": Shape(2, 64, 192, 4, 2, 512, 5e-3),
}
# 8-bit AdamW not in its paged form: managed memory is outside of torch's allocator, so neither counted nor capped, and
# an H200 would not page where an H100 does. Adafactor is the smallest optimizer state that Trainer offers.
CASES = {
    "70b-qlora": Case("70b", "qlora"),
    "8b-full": Case("8b", "full", "adamw_8bit"),
    "8b-full-adafactor": Case("8b", "full", "adafactor"),
    "8b-lora": Case("8b", "lora"),
    "8b-qlora": Case("8b", "qlora"),
}


def count_flops_per_token(shape: Shape, mode: str) -> int:
    """4 for each frozen weight of a matrix product, 6 for each trained one; MAC = 2 operations.

    Forward 2, gradient of the inputs 2, gradient of the weights 2 if they are trained (Kaplan et al. 2020, section
    2.1). The head counts, the lookup of the embeddings does not. Neither do recomputation (so it is MFU, not HFU:
    Chowdhery et al. 2022, appendix B) and the products of attention: `count_attention_flops_per_token`.
    """
    weights = shape.num_body + shape.num_head
    return 6 * weights if mode == "full" else 4 * weights + 6 * shape.num_adapters


def count_attention_flops_per_token(shape: Shape, length: int) -> int:
    """Queries x keys and scores x values, forward 4 L d s and backward 8 L d s, halved because causal kernels skip."""
    return 12 * shape.num_layers * shape.hidden * length // 2


def count_nf4_bytes(num_weights: int) -> int:
    """One layer: 4 bits a weight, an 8-bit scale a block, a 32-bit scale for 256 of those, and two tables.

    That is 4.127 bits a weight. The tables: 16 values of nf4, 256 of the 8-bit scales, one offset, float32 each.
    """
    scales = math.ceil(num_weights / NF4_BLOCK)
    return math.ceil(num_weights / 2) + scales + 4 * math.ceil(scales / SCALE_BLOCK) + 4 * (16 + 256 + 1)


def count_weight_bytes(shape: Shape, mode: str) -> tuple[int, int]:
    """Bytes in nf4, and bytes of the rest: all in float32 for full, else in bfloat16."""
    if mode == "qlora":
        nf4 = shape.num_layers * sum(count_nf4_bytes(n * m) for n, m in shape.linears())
        return nf4, 2 * (shape.num_parameters - shape.num_body)
    return 0, (4 if mode == "full" else 2) * shape.num_parameters


def count_optimizer_bytes(shape: Shape, case: Case) -> int:
    """Two moments of what is trained: float32, or 8 bits and a float32 scale a block; Adafactor keeps sums."""
    if case.mode != "full":
        return 8 * shape.num_adapters
    matrices = shape.linears() * shape.num_layers + [(shape.vocab, shape.hidden)] * 2
    if case.optim == "adafactor":  # of each matrix the sums of rows and columns, of a vector all (Shazeer, Stern 2018)
        return 4 * (sum(n + m for n, m in matrices) + shape.num_norms)
    sizes = [n * m for n, m in matrices] + [shape.hidden] * (2 * shape.num_layers + 1)
    return sum(2 * (n + 4 * math.ceil(n / ADAM_BLOCK)) if n >= ADAM_MIN_8BIT else 8 * n for n in sizes)


def plan_memory(shape: Shape, case: Case, length: int) -> dict[str, int]:
    """Bytes of each part at batch 1 with every block checkpointed, and their sum.

    The last two are estimates: `checkpoints` is the input of every block, `working` is the larger of one block's
    forward and backward pass and of the logits of one chunk. Measured on the CPU with torch's allocator, in bytes a
    token: 37 hidden + 14 intermediate under an adapter, 29 and 12 without, and 12 a logit. Not every part is there at
    once (checkpoints go while gradients come), so the sum is an upper bound but for what CUDA and its allocator lose.
    """
    nf4, others = count_weight_bytes(shape, case.mode)
    is_full = case.mode == "full"
    trained = shape.num_parameters if is_full else shape.num_adapters
    sizes = [n * m for n, m in shape.linears()]
    copies = {"full": sum(sizes), "lora": 0, "qlora": max(sizes)}[case.mode]  # in bfloat16: cast, dequantized
    block = length * (29 * shape.hidden + 12 * shape.intermediate)
    if not is_full:
        block = length * (37 * shape.hidden + 14 * shape.intermediate)
    parts = {
        "nf4_weights": nf4,
        "other_weights": others,
        "adapters": 0 if is_full else 4 * trained,
        "gradients": 4 * trained,
        "optimizer": count_optimizer_bytes(shape, case),
        "checkpoints": length * shape.num_layers * shape.hidden * (4 if is_full else 2),
        "working": max(block + 2 * copies, 12 * min(length, LOSS_CHUNK) * shape.vocab),
    }
    return parts | {"total": sum(parts.values())}


def find_longest(
    fits: Callable[[int], bool | None], low: int, high: int | None = None, guess: int = 0
) -> tuple[int, int | None]:
    """Try the guess, go on by quarters of what fits, then bisect; lengths are multiples of 256.

    Args:
        fits: length -> whether it fits; None stops the search where it is.
        low: fits.
        high: does not fit; None: not known yet.
        guess: what is tried first, if it lies above `low`.

    Returns:
        The longest that fitted (0: none) and the shortest that did not (None: all did, up to `MAX_LENGTH`).
    """
    low, high = low // STEP * STEP, high and -(-high // STEP) * STEP
    length = guess // STEP * STEP
    while low < MAX_LENGTH and (high is None or high - low > STEP):
        if not low < length < (high or math.inf):
            length = (low + high) // 2 if high else min(low + max(low // 4, STEP), MAX_LENGTH)
            length = length // STEP * STEP
        answer = fits(length)
        if answer is None:
            break
        low, high = (length, high) if answer else (low, length)
    return low, high


def plan_longest(shape: Shape, case: Case) -> int:
    """Tokens of the longest sequence whose plan stays under the cap; 0 if none does."""
    return find_longest(lambda length: plan_memory(shape, case, length)["total"] <= MEMORY_CAP_BYTES, 0)[0]


def describe_plan(shapes: dict[str, Shape], length: int) -> str:
    """The table of every case, as Markdown; `shapes` is that of each case."""
    names = list(plan_memory(SHAPES["tiny"], Case("tiny", "lora"), 1))
    lines = [
        f"GB on one card at batch 1 and {length:,} tokens, blocks checkpointed; cap {MEMORY_CAP_BYTES / 1e9:.0f} GB.",
        f"| case | {' | '.join(name.replace('_', ' ') for name in names)} | fits | longest that fits |",
        "|---" * (len(names) + 3) + "|",
    ]
    for name, case in CASES.items():
        shape = shapes[name]
        parts = plan_memory(shape, case, length)
        digits = 2 if parts["total"] > 1e8 else 6
        cells = [f"{value / 1e9:.{digits}f}" for value in parts.values()]
        is_fitting = "yes" if parts["total"] <= MEMORY_CAP_BYTES else "no"
        lines.append(f"| {name} | {' | '.join(cells)} | {is_fitting} | {plan_longest(shape, case):,} |")
    return "\n".join(lines)


def estimate_seconds(shape: Shape, case: Case, length: int, num_steps: int) -> float:
    """Rather too long: 15 s, two billion weights drawn a second, steps with recomputation at a quarter of the peak."""
    flops = num_steps * length * 1.5 * count_flops_per_token(shape, case.mode)
    return 15 + shape.num_parameters / 2e9 + flops / (0.25 * PEAK_FLOPS)
