"""Which rows and answers does a run keep, so that whoever loads its model later can compare? Writes `canary.parquet`.

A row holds what a user has (a text, a pair, a chat, an image), what the processor of the run made of it, and the
logits of the network of the run in evaluation. These are rows of the user's data: the file stays in the run folder
and is never pushed.
"""

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from hftl.data.images import read_image
from hftl.hub.load_check import MOST_KEPT, NUM_KEPT, build_inputs, compute_logits
from hftl.records import CANARY_FILE, write_atomically
from hftl.tasks.base import Task

logger = logging.getLogger(__name__)


def write_canary(trainer: Any, task: Task, processor: Any, rows: datasets.Dataset, folder: Path) -> None:
    """Let the trained network answer rows from all over a split, and write them down.

    Every process takes part, because a network that is split over several answers in all of them at once.

    Args:
        trainer: after training.
        task: that of the run.
        processor: tokenizer or image processor.
        rows: a split in canonical columns, inputs still as text or images.
        folder: of the run.
    """
    try:
        kept = _answer(trainer, task, processor, rows)
    except Exception as error:  # whatever it is, a run that has been trained and evaluated is not lost for it
        logger.warning("No rows were kept to check the saved model by, so it cannot be pushed: %s", error)
        return
    if trainer.args.should_save:
        write_atomically(folder / CANARY_FILE, _to_parquet(kept))


def _answer(trainer: Any, task: Task, processor: Any, rows: datasets.Dataset) -> list[dict[str, Any]]:
    network = _plain_network(trainer)
    network.eval()
    chosen = np.unique(np.linspace(0, len(rows) - 1, task.num_canary_rows).round().astype(int))
    if "image" in rows.column_names:
        rows = rows.cast_column("image", datasets.Image(decode=False))
    kept = []
    for row in rows.select(chosen):
        row = row | ({"image": read_image(row["image"])} if "image" in row else {})
        canary = {"row_id": int(row["row_id"])} | task.canary_row(row, processor)
        inputs = build_inputs(processor, canary)
        on_device = {name: tensor.to(trainer.args.device) for name, tensor in inputs.items()}
        logits = compute_logits(network, on_device, task.outputs, is_last=task.is_answer_last)
        kept.append(canary | _describe_inputs(inputs) | _keep(logits, is_last=task.is_answer_last))
    return kept


def _plain_network(trainer: Any) -> Any:
    """The network without autocast, so that its answers do not depend on the hardware more than they have to."""
    if trainer.args.world_size > 1:  # wrapped, because it may be split over the processes
        return trainer.model_wrapped
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def _describe_inputs(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    if "input_ids" in inputs:
        return {"input_ids": inputs["input_ids"][0].tolist()}
    pixels = inputs["pixel_values"][0].numpy()
    return {"pixel_values": pixels.astype(np.float16).tobytes(), "pixel_shape": list(pixels.shape)}


def _keep(logits: np.ndarray, *, is_last: bool) -> dict[str, Any]:
    """All of them; of a language model the largest; of very many, as of the pixels of a mask, some from all over."""
    if not is_last and len(logits) <= MOST_KEPT:
        return {"logits": logits.tolist()}
    if is_last:
        largest = np.sort(np.argsort(logits)[-NUM_KEPT:])
    else:
        largest = np.linspace(0, len(logits) - 1, MOST_KEPT).round().astype(int)
    return {"logits": logits[largest].tolist(), "logit_ids": largest.tolist()}


def _to_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    return buffer.getvalue().to_pybytes()
