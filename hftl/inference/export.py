"""A trained classifier as an ONNX file that gives the same answers, or none at all; and in 8 bits, at what loss.

The file is asked about real rows under onnxruntime, in batches of several sizes, before it gets its name.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn

from hftl.compare.stats import crossed_interval
from hftl.data.labels import MULTI, REGRESSION, SINGLE
from hftl.errors import UserError
from hftl.examples import prepare_examples
from hftl.inference.evaluation import prepare_rows
from hftl.inference.predictor import Predictor
from hftl.inference.run_rows import load_run_rows
from hftl.merge import TOLERANCE
from hftl.metrics import SCORES, compute_predictions
from hftl.records import write_json

NUM_ROWS = 1000  # that are asked, at most
BATCHES = (1, 3, 8, 32)  # rows a batch, in turn: the file must take any number
MODEL_FILE, INT8_FILE = "model.onnx", "model_int8.onnx"
METRICS = {SINGLE: "accuracy", REGRESSION: "mse"}  # which rows add up to, so that a loss has an interval


@dataclass(frozen=True)
class Difference:
    """How the answers of a file differ from those of the network.

    Attributes:
        max_difference: of a logit.
        logit_spread: standard deviation of the logits, the measure for it.
        agreement: share of rows with the same predicted class; None for regression.
        num_rows: that both were asked.
        num_bytes: of the file.
        metric: that the rows add up to; None where they have no fair labels.
        loss: change of that metric, and its 95 % interval over new rows.
    """

    max_difference: float
    logit_spread: float
    agreement: float | None
    num_rows: int
    num_bytes: int
    metric: str | None = None
    loss: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        same = "" if self.agreement is None else f", the same prediction for {self.agreement:.2%}"
        text = (
            f"{self.num_bytes / 1e6:.1f} MB; {self.num_rows} rows: the largest difference of a logit is "
            f"{self.max_difference:.2g} (the logits spread by {self.logit_spread:.2g}){same}"
        )
        if self.loss is None:
            return text
        change, low, high = self.loss
        return f"{text}; {self.metric} changes by {change:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"


def export_onnx(
    predictor: Predictor, out: Path, *, quantize: str = "none", data: str | None = None, tolerance: float = TOLERANCE
) -> dict[str, Difference]:
    """Write `model.onnx`, the configuration and the processor into `out`; with int8 `model_int8.onnx` as well.

    Args:
        predictor: the network; an adapter is folded into it.
        out: a folder that does not exist yet, or is empty.
        quantize: `none` or `int8`: dynamic quantization of the products of matrices.
        data: rows with labels to ask; default: the test rows of the run, or rows that it was trained with.
        tolerance: largest difference of a logit of `model.onnx`, in standard deviations of the logits.

    Raises:
        UserError: a package is missing, the network writes texts, there are no rows, or the answers differ by more.
    """
    _check(predictor, out)
    rows, is_fair = _choose_rows(predictor, data)
    examples = rows.select(range(min(NUM_ROWS, len(rows)))).to_list()
    predictor.network.to("cpu")
    predictor.device = torch.device("cpu")
    predictor.merge(examples[:32])
    expected = np.stack(predictor.run_batches(examples, lambda batch: predictor.network(**_inputs(batch)).logits))
    staging = out.with_name(f"_tmp-{out.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _write_onnx(predictor, examples, staging / MODEL_FILE)
        labels = np.asarray([row["labels"] for row in examples]) if is_fair else None
        report = {MODEL_FILE: _compare(predictor, staging / MODEL_FILE, examples, expected, labels)}
        found = report[MODEL_FILE]
        if not found.max_difference <= tolerance * found.logit_spread:
            raise UserError(
                f"The exported network is another one, so nothing was written. {found}. Allowed: {tolerance:g} of the "
                "spread (--tolerance)."
            )
        if quantize == "int8":
            _quantize(staging)
            report[INT8_FILE] = _compare(predictor, staging / INT8_FILE, examples, expected, labels)
        predictor.network.config.save_pretrained(staging)
        predictor.processor.save_pretrained(staging)
        write_json(staging / "export.json", {name: asdict(difference) for name, difference in report.items()})
        if out.exists():
            out.rmdir()
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _check(predictor: Predictor, out: Path) -> None:
    if predictor.task.modality == "language":
        raise UserError(f"{predictor.source.name} writes texts; hftl export is for text and image classifiers.")
    if not predictor.task.fits_head:
        name, kind = predictor.source.name, predictor.task.name
        raise UserError(f"{name} is a model for {kind}; hftl export is for text and image classifiers.")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f'hftl export needs the package {error.name}: pip install "hftl[onnx]"') from error
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already. Name a new folder.")


def _choose_rows(predictor: Predictor, data: str | None) -> tuple[datasets.Dataset, bool]:
    """Prepared rows, and whether a score on them is fair: the network was not trained with them."""
    source = predictor.source
    if data is not None:
        return prepare_rows(predictor, data), True
    if source.record is None:
        raise UserError(f"{source.name} has no run whose rows could be asked. Give some with --data.")
    examples = load_run_rows(source, "Name rows to ask with --data.")
    split = "test" if "test" in source.record.metrics and "test" in examples.splits else "validation"
    rows = prepare_examples(examples, source.task, predictor.processor, source.data)[split]
    return rows, split == "test"


def _inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


class _Logits(nn.Module):
    """A network that takes its inputs by position and gives its logits alone, as the exporter wants it."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.network(**dict(zip(self.names, tensors, strict=True))).logits


def _write_onnx(predictor: Predictor, rows: list[dict[str, Any]], path: Path) -> None:
    batch = _inputs(predictor.build_batch(rows[:2] if len(rows) > 1 else rows * 2))  # a batch of one would stay one
    axes = tuple({0: "batch"} | ({1: "length"} if tensor.ndim == 2 else {}) for tensor in batch.values())
    with _quiet():
        torch.onnx.export(
            _Logits(predictor.network, list(batch)).eval(),
            tuple(batch.values()),
            path,
            input_names=list(batch),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
        )


def _quantize(folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            folder / MODEL_FILE,
            folder / INT8_FILE,
            op_types_to_quantize=["MatMul", "Gemm"],  # convolutions would be slower and less exact
            weight_type=QuantType.QInt8,
            per_channel=True,  # one scale for all channels doubled the largest difference of a logit of MiniLM
            extra_options={"DefaultTensorType": 1},  # float: the graphs of torch leave some types unsaid
        )


def _compare(
    predictor: Predictor, path: Path, rows: list[dict[str, Any]], expected: np.ndarray, labels: np.ndarray | None
) -> Difference:
    logits, kind = np.concatenate(list(_ask_file(predictor, path, rows))), predictor.source.labels.problem_type
    predictions = [compute_predictions(values, kind) for values in (expected, logits)]
    agreement = None
    if kind != REGRESSION:
        agreement = float(np.mean([np.array_equal(a, b) for a, b in zip(*predictions, strict=True)]))
    loss, metric = None, METRICS.get(kind)
    if labels is not None and metric is not None and kind != MULTI and len(labels) > 1:
        before, after = (SCORES[metric].by_row({"label": labels, "prediction": found}) for found in predictions)
        interval = crossed_interval((after - before)[None, :], unit=1.0 if kind == SINGLE else 0.0)
        loss = (interval.mid, interval.low, interval.high)
    difference, spread = float(np.abs(logits - expected).max()), float(expected.std())
    return Difference(
        difference, spread, agreement, len(rows), path.stat().st_size, metric if loss is not None else None, loss
    )


def _ask_file(predictor: Predictor, path: Path, rows: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """Logits [B, C] of each batch, under onnxruntime; batches of several sizes, each as long as its longest row."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    start, turn = 0, 0
    while start < len(rows):
        size = BATCHES[turn % len(BATCHES)]
        batch = _inputs(predictor.build_batch(rows[start : start + size]))
        yield session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})[0]
        start, turn = start + size, turn + 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of torchvision, axes and preparations, in logs and on the standard output."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
