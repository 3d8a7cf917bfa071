"""Is a network with its adapter folded into the weights still the same one? Merges, and measures before it says so.

Must not know how the adapter was trained: everything is read from the run folder.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from hftl.config import Arguments, parse_args
from hftl.data.labels import MULTI, REGRESSION
from hftl.errors import UserError
from hftl.examples import prepare_examples
from hftl.head_start import build_batches
from hftl.inference.run_rows import load_run_rows
from hftl.inference.source import check_base, find_source
from hftl.models.adapters import find_adapter
from hftl.models.length import load_processor
from hftl.models.load import check_adapter_weights, load_config, load_pretrained
from hftl.records import RunRecord, write_atomically
from hftl.tasks.processors import explained_loading

NUM_ROWS = 256  # of the validation part, at most
NUM_LOGITS = 2**26  # and fewer where each token has one for every word there is: 256 MB
TOLERANCE = 1e-3  # of a logit, in units of the spread of the logits; float32 merges differ by about 1e-6

ADVICE = "The merged network is asked about them: put the data of the run back, or train again."


@dataclass(frozen=True)
class MergeReport:
    """How a merged network, read back from disk, differs from the adapter over its base.

    Attributes:
        max_difference: of a logit.
        logit_spread: standard deviation of the logits, the measure for it.
        agreement: share of rows (tokens, pixels) with the same predicted class; None for regression.
        num_answers: compared, to real rows: one a row, or one a token.
        quantization_gap: of an adapter trained on quantized weights: the same largest difference, to the network as
            it was trained.
        quantized_agreement: and the share of rows with the same predicted class.
    """

    max_difference: float
    logit_spread: float
    agreement: float | None
    num_answers: int
    quantization_gap: float | None = None
    quantized_agreement: float | None = None

    def __str__(self) -> str:
        same = "" if self.agreement is None else f", the same prediction for {self.agreement:.2%}"
        text = (
            f"{self.num_answers:,} answers to real rows: the largest difference of a logit is "
            f"{self.max_difference:.2g} (the logits spread by {self.logit_spread:.2g}){same}"
        )
        if self.quantization_gap is None:
            return text
        same = "" if self.quantized_agreement is None else f", the same prediction for {self.quantized_agreement:.2%}"
        return f"{text}; to the quantized network that was trained it is {self.quantization_gap:.2g}{same}"


def merge_run(folder: Path, out: Path, *, tolerance: float = TOLERANCE) -> MergeReport:
    """Fold the adapter of a run into the weights and leave a plain checkpoint in `out`.

    The checkpoint is read back from disk and asked about validation rows of the run before it gets its name.

    Args:
        folder: of a run in mode peft.
        out: a folder that does not exist yet, or is empty.
        tolerance: largest difference of a logit, in standard deviations of the logits.

    Raises:
        UserError: there is nothing to merge, the method cannot be merged, or the result differs by more; `out` is
            then left as it was.
    """
    _check_run(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already. Name a new folder.")
    source = find_source(str(folder))
    check_base(source)
    args = replace(parse_args([str(folder / "config.yaml")]), model=source.model)
    task, labels = source.task, source.labels
    processor = load_processor(args.model, task, args.data, place=str(folder))
    examples = load_run_rows(source, ADVICE)
    rows = prepare_examples(examples, task, processor, args.data)["validation"]
    batches = _build_batches(rows, task.build_collator(processor, args.data, "none"), args)
    config = load_config(args.model, task, processor, labels)
    quantized = None
    if args.model.quantization != "none":  # rounded weights cannot take up an adapter: merge into the full ones
        quantized = _compute_logits(_load_adapted(folder, args, task, config), batches)
        args = replace(args, model=replace(args.model, quantization="none"))
    adapted = _load_adapted(folder, args, task, config)
    expected = _compute_logits(adapted, batches)
    merged = fold_adapter(adapted)
    staging = out.with_name(f"_tmp-{out.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        merged.save_pretrained(staging)
        processor.save_pretrained(staging)
        plain = getattr(transformers, task.auto_model).from_pretrained(staging, dtype=torch.float32)
        logits = _compute_logits(plain.to(args.training.device), batches)
        report = _compare(expected, logits, labels.problem_type)
        if quantized is not None:
            gap = _compare(quantized, logits, labels.problem_type)
            report = replace(report, quantization_gap=gap.max_difference, quantized_agreement=gap.agreement)
        if not report.max_difference <= tolerance * report.logit_spread:
            raise UserError(
                f"The merged network is another one, so nothing was written. {report}. Allowed: "
                f"{tolerance:g} of the spread (--tolerance). Load the adapter over its base instead."
            )
        content = {"run": folder.name, "tolerance": tolerance, **asdict(report)}
        write_atomically(staging / "merge.json", json.dumps(content, indent=1).encode())
        if out.exists():
            out.rmdir()
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _check_run(folder: Path) -> None:
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is not a run folder: it has no run.json.")
    record = RunRecord.read(folder)
    if record.mode != "peft" or not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds a whole network (mode {record.mode}): there is nothing to merge.")
    check_adapter_weights(str(folder.absolute()))
    adapter = find_adapter(record.adapter or "")
    if not adapter.is_mergeable:
        raise UserError(
            f"{adapter.title} puts virtual tokens in front of the text: it cannot become a part of the weights. "
            "Load the adapter over its base instead."
        )


def _load_adapted(folder: Path, args: Arguments, task: Any, config: Any) -> nn.Module:
    from peft import PeftModel

    base = load_pretrained(args.model, task, config).network
    with explained_loading(str(folder.absolute())):
        return PeftModel.from_pretrained(base, folder).to(args.training.device)


def fold_adapter(adapted: nn.Module) -> nn.Module:
    """The network with its adapter in its weights; not checked."""
    from peft.utils import ModulesToSaveWrapper

    # peft 0.21 stumbles over heads of several layers in every method but LoRA, so they are put in place first.
    body = adapted.get_base_model()
    wrappers = [(name, m) for name, m in body.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    for name, wrapper in wrappers:
        parent, _, leaf = name.rpartition(".")
        setattr(body.get_submodule(parent), leaf, wrapper.modules_to_save["default"])
    return adapted.merge_and_unload(safe_merge=True)


def _build_batches(rows: Any, collator: Any, args: Arguments) -> list[dict[str, torch.Tensor]]:
    chosen = rows.select(range(min(NUM_ROWS, len(rows))))
    batches = build_batches(chosen, args.training.per_device_eval_batch_size, collator, "Rows to compare on")
    return [{n: t.to(args.training.device) for n, t in batch.items() if n != "labels"} for batch in batches]


@torch.inference_mode()
def _compute_logits(network: nn.Module, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Logits float32 [N, C]: of rows, or of the tokens, pixels or boxes of as many rows as `NUM_LOGITS` allows."""
    kept: list[torch.Tensor] = []
    for batch in batches:
        kept.append(_list_logits(network.eval()(**batch), batch).float().cpu())
        if sum(logits.numel() for logits in kept) > NUM_LOGITS:
            break
    return torch.cat(kept)


def _list_logits(outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[N, C] of what a network answers to a batch; padded tokens, whose answers nobody reads, are left out."""
    if "start_logits" in outputs:
        logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
    else:
        logits = outputs["logits"]
    mask = batch.get("attention_mask")
    if logits.dim() == 3 and mask is not None and mask.shape == logits.shape[:2]:
        return logits[mask.bool()]
    if logits.dim() == 4:  # [B, C, H, W]
        logits = logits.movedim(1, -1)
    return logits.flatten(0, -2)


def _compare(expected: torch.Tensor, logits: torch.Tensor, problem_type: str) -> MergeReport:
    agreement = None
    if problem_type != REGRESSION:
        chosen = [v >= 0 if problem_type == MULTI else v.argmax(-1, keepdim=True) for v in (expected, logits)]
        agreement = (chosen[0] == chosen[1]).all(-1).double().mean().item()
    difference, spread = float((expected - logits).abs().max()), float(expected.std())
    return MergeReport(difference, spread, agreement, len(expected))
