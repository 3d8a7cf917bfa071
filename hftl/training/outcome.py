"""What a run leaves: its scores, and the only list of the files that are written at its end."""

import logging
from pathlib import Path

import numpy as np
import transformers

from hftl.errors import TrainingDiverged, UserError
from hftl.hub.canary import write_canary
from hftl.hub.files import record_files
from hftl.models.reading import explained_reading
from hftl.run_record import RunRecord, write_predictions
from hftl.training.prepare import PreparedData, RunPlan
from hftl.training.run_folder import save_artifacts
from hftl.training.trainer import FineTuningTrainer

logger = logging.getLogger(__name__)


def score_splits(plan: RunPlan, data: PreparedData, trainer: FineTuningTrainer, record: RunRecord) -> np.ndarray:
    """Score validation and, once, test; what was kept of the last of them, [N, K]."""
    for split in list_scored(data):
        kept = trainer.predict_rows(data.rows[split])
        check_answers(kept, split, trainer.args)
        record.metrics[split] = plan.task.compute_report(kept, data.rows[split], data.examples.labels)
    return kept


def check_answers(kept: np.ndarray, split: str, training: transformers.TrainingArguments) -> None:
    """Refuse to save a network without a number to answer with: the loss before its last step looked fine.

    Args:
        kept: what it answered, float32 [N, K].
        split: the rows that were asked.
        training: settings of the run.

    Raises:
        TrainingDiverged: there is no row with finite answers.
    """
    if len(kept) and not np.isfinite(kept).all(axis=1).any():
        raise TrainingDiverged(
            f"After training no answer to the {len(kept):,} {split} rows is a finite number, so the network was not "
            f"saved. Lower --learning_rate ({training.learning_rate:g}), or add warm-up with --warmup_steps 0.1."
        )


def list_scored(data: PreparedData) -> list[str]:
    """The splits that a run is scored on; the last one is what it is judged by."""
    return [name for name in ("validation", "test") if name in data.rows]


def save_run(
    plan: RunPlan, data: PreparedData, trainer: FineTuningTrainer, record: RunRecord, folder: Path, kept: np.ndarray
) -> None:
    """Write the model or adapter with its processor, a few answers for the push gate, and the predictions.

    `config.yaml` lies there since the start, and `run.json` is written last, when all else is known.
    """
    split, task = list_scored(data)[-1], plan.task
    with trainer.ledger.bucket("save"):
        save_artifacts(trainer, data.processor, folder, record.model["revision"])
        write_canary(trainer, task, data.processor, data.examples.splits[split], folder)
        if trainer.args.should_save:
            write_predictions(folder, task.describe_predictions(kept, data.rows[split], data.examples.labels))
            record.files = record_files(folder)


def add_samples(plan: RunPlan, data: PreparedData, trainer: FineTuningTrainer, record: RunRecord) -> None:
    """A few answers of a network that writes, among the scores; in one process."""
    split = list_scored(data)[-1]
    with trainer.ledger.bucket("evaluation"):
        if trainer.args.world_size > 1:
            return
        try:
            with explained_reading(trainer.model):
                texts = plan.task.sample(trainer.model, data.processor, data.examples.splits[split])
        except UserError as error:  # what has been trained counts where it cannot write
            logger.warning("No samples: %s", error)
            return
        if texts:
            record.metrics[split]["samples"] = texts
