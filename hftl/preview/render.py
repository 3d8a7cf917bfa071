"""How is an estimate read in a terminal? Lines of text, widest first; it must not know how numbers were made."""

from hftl.preview.estimate import Arm, Estimate

TERMS = ("weights", "gradients", "optimizer", "activations", "logits", "evaluation")
HEADER = ("mode", "trained", *TERMS, "peak", "fits", "most rows", "longest", "TFLOP/step", "epoch", "rent")


def render(found: Estimate) -> list[str]:
    """A table with a line for each mode, and what it holds for."""
    rows = [HEADER, *(_render_arm(arm, found) for arm in found.arms)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    unit = "pixels" if found.arms and found.arms[0].longest is None else "tokens"
    lines = [
        f"{found.network}: {found.shape.rows} rows of {found.shape.length} {unit} a step, products in "
        f"{found.precision}, on {found.place} with {found.capacity / 2**30:.1f} GiB for tensors; GiB:",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
        "The peak is less than the sum of its terms: activations are freed while gradients are made.",
    ]
    if any(arm.seconds for arm in found.arms):
        lines.append(
            f"An epoch of {found.num_rows:,} rows without padding, at the share of the card's peak that was measured "
            "on an H100 (22 % for texts, 27 % for images, 28 % for language models): an assumption on other cards."
        )
    return lines + [f"Not possible, {name}: {reason}" for name, reason in found.left_out.items()]


def render_probe(found: Estimate, seconds: float, memory: int) -> list[str]:
    """Real steps beside the prediction of the same mode."""
    arm = next(arm for arm in found.arms if arm.name == found.chosen)
    epoch, ratio = seconds * found.num_rows / found.shape.rows, memory / arm.step.peak
    return [
        f"Real steps of {arm.name} on this machine: {seconds:.3g} s each, {_duration(epoch)} for "
        f"{found.num_rows:,} rows; memory {memory / 2**30:.3g} GiB, {ratio:.2f} times the peak above, which is for "
        f"rows of {found.shape.length}."
    ]


def _render_arm(arm: Arm, found: Estimate) -> tuple[str, ...]:
    step = arm.step
    return (
        arm.name,
        f"{step.num_trained / 1e6:,.2f} M ({100 * step.num_trained / step.num_parameters:.3g} %)",
        *(_gib(getattr(step, term)) for term in TERMS),
        _gib(step.peak),
        "yes" if step.peak <= found.capacity else "no",
        f"{arm.largest_rows:,}",
        "" if arm.longest is None else f"{arm.longest:,}",
        f"{step.flops / 1e12:.3g}",
        "" if arm.seconds is None else _duration(arm.seconds),
        "" if arm.money is None else f"{arm.money:.2g} {found.currency}",
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.3f}" if size < 10 * 2**30 else f"{size / 2**30:.1f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
