"""transformers' Trainer, right where the stock one is silently wrong, through its documented hooks
where there are some.

- The loss is a sum over the labels of an optimizer step divided by their number, for any accumulation and any number
  of processes. Stock heads that take `**kwargs` but ignore `num_items_in_batch` scale it by both
  (huggingface/transformers#47688).
- A checkpoint counts once it is whole and on disk (`hftl.training.checkpoints`), is read back whole, or not at all,
  and going on from it changes nothing (`hftl.training.progress`).
- A loss or gradient that is not finite stops the run instead of being logged as 0.
- Rows come in an order made from (seed, epoch); predictions keep the order of the data.
- Time, tokens and FLOPs are counted as they are spent.
"""

import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import convert_to_fp32, gather, release_memory
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput

from hftl.cost.flops import count_flops, count_units
from hftl.cost.ledger import Ledger
from hftl.data.labels import IGNORED
from hftl.data.sampling import EpochSampler, SeededRows, StepBatchSampler, sort_by_length
from hftl.errors import TrainingDiverged, UserError
from hftl.models.linear import linear_by_onednn
from hftl.models.reading import explained_reading
from hftl.runtime.files import redact
from hftl.runtime.resources import is_out_of_memory
from hftl.tasks.base import FILL, Task, stack_kept
from hftl.training.checkpoints import clean, commit, find_damage, rotate, staging_folder
from hftl.training.precision import computing_in
from hftl.training.progress import STATE_FILE, Progress, has_ended, read_state
from hftl.training.spikes import WarnOfSpikes

logger = logging.getLogger(__name__)


class SummedLoss:
    """`compute_loss_func` of Trainer: the sum over labels divided by the labels of the whole optimizer step.

    Args:
        sum_loss: outputs, labels -> the loss summed over every label that is not `IGNORED`.
    """

    def __init__(self, sum_loss: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        self.sum_loss = sum_loss
        self.is_finite: torch.Tensor | None = None
        self.parts: list[torch.Tensor] = []  # of the current step, one of each micro-batch
        self.evaluated: list[torch.Tensor] = []  # of the current evaluation, sum and labels of each batch

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        total = self.sum_loss(convert_to_fp32(outputs), labels)  # of products in fewer bits
        loss = total / count
        if torch.is_grad_enabled():
            self.parts.append(loss.detach())
            finite = torch.isfinite(loss.detach())
            self.is_finite = finite if self.is_finite is None else self.is_finite & finite
        else:
            self.evaluated.append(torch.stack([total, count.to(total.dtype)]))
        return loss


class StopWhenNotFinite(TrainerCallback):
    """End the run when a loss or gradient was NaN or infinite, before such weights are logged as fine or saved.

    On a CPU every step is checked. On an accelerator the check would wait for the device, so it is made when
    something is logged, evaluated or saved anyway. Weights that are kept, the last ones and those of a checkpoint, are
    looked at themselves: no later loss would show what that step made of them. All processes stop together.
    """

    def __init__(self, loss: SummedLoss) -> None:
        self.loss = loss

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        is_kept = control.should_save or control.should_training_stop
        is_due = is_kept or control.should_log or control.should_evaluate
        if self.loss.is_finite is None or (args.device.type != "cpu" and not is_due):
            return
        what = "The loss or its gradient is"
        is_fine = bool(gather(self.loss.is_finite).all())
        if is_fine and is_kept and model is not None:
            what = "Weights after the update are"
            is_fine = bool(gather(self.loss.is_finite & are_finite(model).to(self.loss.is_finite)).all())
        if not is_fine:
            raise TrainingDiverged(
                f"{what} not finite at step {state.global_step} of {state.max_steps}. "
                "Nothing was saved since. Lower --learning_rate, or add warm-up with --warmup_steps 0.1."
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What is saved or evaluated once an epoch becomes due here, after the last step's check."""
        self.on_step_end(args, state, control, **kwargs)


def are_finite(network: torch.nn.Module) -> torch.Tensor:
    """Whether each weight that is trained is a finite number, as a bool tensor []."""
    trained = [weights for weights in network.parameters() if weights.requires_grad and weights.numel()]
    return torch.stack([torch.isfinite(weights.detach()).all() for weights in trained]).all()


@contextmanager
def _own_names(network: torch.nn.Module) -> Iterator[None]:
    """Let `save_pretrained` write the weights under the names that they have in memory; any transformers 5 reads both.

    By default it writes ViT, Swin and others under the names of the first release, and Trainer resumes (or takes the
    best model) by the names in memory: what it does not find keeps its value. huggingface/transformers#48805, in 5.23.
    """
    if not isinstance(network, PreTrainedModel):
        yield
        return
    network.save_pretrained = partial(network.save_pretrained, save_original_format=False)
    try:
        yield
    finally:
        network.__dict__.pop("save_pretrained", None)


class Meter:
    """What training consumed: examples, tokens and floating-point operations, without waiting for the device."""

    def __init__(self) -> None:
        self.num_examples: torch.Tensor | int = 0
        self.num_tokens_padded = 0
        self.num_tokens: torch.Tensor | int = 0
        self.flops_per_unit = math.nan
        self.start_flops = 0  # of what the head and the adapter start from, before training
        self.data_wait_seconds = 0.0
        self.num_saves = 0

    def time_waits(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time until each is there counts as waiting for data."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.data_wait_seconds += time.perf_counter() - asked
            yield batch

    def add(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count one micro-batch."""
        is_packed = "position_ids" in inputs  # rows one after the other, each counted from 0
        self.num_examples = self.num_examples + (
            (inputs["position_ids"] == 0).sum() if is_packed else len(inputs["labels"])
        )
        if "input_ids" in inputs:
            count = count_units(inputs)
            self.num_tokens_padded += count
            self.num_tokens = self.num_tokens + (count if is_packed else inputs["attention_mask"].sum())
            if "decoder_input_ids" in inputs:  # which has a token for each label
                self.num_tokens = self.num_tokens + (inputs["labels"] != IGNORED).sum()

    def state(self, num_processes: int) -> dict[str, Any]:
        """What a checkpoint keeps, as plain numbers over all processes; the FLOPs of a unit are counted once a run."""
        return {
            "num_examples": int(self.num_examples) * num_processes,
            "num_tokens": int(self.num_tokens) * num_processes,
            "num_tokens_padded": self.num_tokens_padded * num_processes,
            "flops_per_unit": self.flops_per_unit if math.isfinite(self.flops_per_unit) else None,
            "start_flops": self.start_flops,
            "data_wait_seconds": self.data_wait_seconds,
            "num_saves": self.num_saves,
        }

    def restore(self, state: dict[str, Any], num_processes: int) -> None:
        """Count on from what `state` returned."""
        for name in ("num_examples", "num_tokens", "num_tokens_padded"):
            setattr(self, name, state[name] // num_processes)
        self.flops_per_unit = math.nan if state["flops_per_unit"] is None else state["flops_per_unit"]
        self.start_flops = state["start_flops"]
        self.data_wait_seconds = state.get("data_wait_seconds", 0.0)  # checkpoints of older versions have neither
        self.num_saves = state.get("num_saves", 0)

    def summary(self, num_processes: int) -> dict[str, Any]:
        """The `cost` fields of a run record, over all processes (each sees an equal share)."""
        examples, real = int(self.num_examples), int(self.num_tokens)
        units = self.num_tokens_padded or examples
        flops = self.flops_per_unit * units * num_processes if units else 0
        return {
            "num_examples_seen": examples * num_processes,
            "num_tokens_seen": real * num_processes if self.num_tokens_padded else None,
            "padding_fraction": 1 - real / self.num_tokens_padded if self.num_tokens_padded else None,
            "train_flops": int(flops) + self.start_flops if math.isfinite(flops) else None,
            "data_wait_seconds": self.data_wait_seconds,
            "num_saves": self.num_saves,
        }


class FineTuningTrainer(Trainer):
    """Trainer with our loss, order, evaluation and bookkeeping.

    Args:
        task: whose loss is minimised, and which says what evaluation keeps.
        problem_type: of the `LabelInfo`.
        head_names: prefixes of the parameters that `head_learning_rate` applies to.
        head_learning_rate: None for the rate of the rest.
        autocast: what products are computed in while training on a CPU; None leaves that to `args`.
        ledger: where time is charged.
        kwargs: of `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        task: Task,
        problem_type: str,
        head_names: list[str],
        head_learning_rate: float | None,
        ledger: Ledger,
        autocast: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        self.ledger = ledger
        self.autocast = autocast
        self.task = task
        self.meter = Meter()
        self.head_names = head_names
        self.head_learning_rate = head_learning_rate
        self.manifest: dict[str, Any] = {}  # what a checkpoint says about its run, besides its files
        self.resumed: TrainerState | None = None
        self._staging: Path | None = None
        args = kwargs["args"]
        # Checkpoints are deleted by us: the stock trainer goes by their time, and at the end deletes the newest.
        self.checkpoint_limit, args.save_total_limit = args.save_total_limit, None
        args.restore_callback_states_from_checkpoint = False  # it builds callbacks anew; `Progress` restores them
        if args.device.type == "cuda" and args.dataloader_pin_memory:  # the step before is not waited for
            args.accelerator_config.non_blocking = True
        args.label_names = ["labels"]  # the stock names of a question-answering network are its own
        smoothing = args.label_smoothing_factor
        loss = SummedLoss(partial(task.sum_loss, problem_type=problem_type, smoothing=smoothing))
        self.use_cache = getattr(kwargs["model"].config, "use_cache", None)  # which Trainer changes
        with warnings.catch_warnings():  # of several labels a row the stock loss has no smoothing; this one has
            warnings.filterwarnings("ignore", "Label smoothing is not compatible with multi-label", UserWarning)
            super().__init__(compute_loss_func=loss, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss above is all there is: heads get no num_items_in_batch
        self.loss = loss
        self.progress = Progress(self)
        self.add_callback(StopWhenNotFinite(loss))
        self.add_callback(WarnOfSpikes(loss.parts))
        self.add_callback(self.progress)

    def get_train_dataloader(self) -> DataLoader:
        """Rows grouped by length (text) or shuffled, in an order made from (seed, epoch)."""
        rows, args = self.train_dataset, self.args
        batch_size, seed = self._train_batch_size, args.seed if args.data_seed is None else args.data_seed
        by_length = args.train_sampling_strategy == "group_by_length" and "length" in rows.column_names
        sampler = EpochSampler(
            len(rows),
            seed,
            step_size=batch_size * args.gradient_accumulation_steps * args.world_size,
            get_epoch=lambda: int(self.state.epoch or 0),  # None before the first step
            lengths=rows["length"] if by_length else None,
            is_shuffled=args.train_sampling_strategy != "sequential",
        )
        batches = StepBatchSampler(
            sampler,
            batch_size,
            accumulation_steps=args.gradient_accumulation_steps,
            num_processes=args.world_size,
            drop_last=args.dataloader_drop_last,
        )
        keeps = args.dataloader_persistent_workers and args.dataloader_num_workers > 0
        return self._loader(SeededRows(rows, seed), batch_sampler=batches, persistent_workers=keeps)

    def get_eval_dataloader(self, eval_dataset: datasets.Dataset | None = None) -> DataLoader:
        """Rows in the order given, whatever the training order is."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(rows, batch_size=self.args.eval_batch_size)

    def get_test_dataloader(self, test_dataset: datasets.Dataset) -> DataLoader:
        """The same for `predict`."""
        return self.get_eval_dataloader(test_dataset)

    def _loader(self, rows: Any, **batching: Any) -> DataLoader:
        args = self.args
        context = getattr(args, "dataloader_multiprocessing_context", None)  # which transformers 5.17 does not have
        loader = DataLoader(
            rows,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=context if args.dataloader_num_workers else None,
            **batching,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The stock optimizer, with the head in parameter groups of its own when it has its own rate."""
        optimizer = super().create_optimizer(model)
        if self.head_learning_rate is not None:
            heads = {
                id(parameter)
                for name, parameter in self.model.named_parameters()
                if any(f".{head}." in f".{name}" for head in self.head_names)
            }
            for group in list(optimizer.param_groups):
                mine = [p for p in group["params"] if id(p) in heads]
                group["params"] = [p for p in group["params"] if id(p) not in heads]
                if mine:
                    optimizer.add_param_group({**group, "params": mine, "lr": self.head_learning_rate})
        return optimizer

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """The stock micro-batches of a step, with the time that the model waits for them."""
        return super().get_batch_samples(self.meter.time_waits(epoch_iterator), *args, **kwargs)

    def compute_loss_context_manager(self) -> AbstractContextManager:
        """The stock one; on a CPU that gains by it, training computes products in fewer bits."""
        if self.autocast is None or not self.model.training:
            return super().compute_loss_context_manager()
        return computing_in(self.args.device.type, self.autocast)

    def training_step(self, model: torch.nn.Module, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch; the first one is also counted in FLOPs."""
        self.meter.add(inputs)
        if math.isfinite(self.meter.flops_per_unit) or self.args.torch_compile:
            return super().training_step(model, inputs, num_items_in_batch)
        units, losses, step = count_units(inputs), [], super().training_step
        with explained_reading(self.model):
            flops = count_flops(lambda: losses.append(step(model, inputs, num_items_in_batch)))
        self.meter.flops_per_unit = flops / units
        return losses[0]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of a batch as counted on the first one; the stock 6 N per token holds for full training only."""
        flops = self.meter.flops_per_unit
        return int(flops * count_units(inputs)) if math.isfinite(flops) and "labels" in inputs else 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The stock evaluation, charged to evaluation, in batches that fit, and with a word where no best can be."""
        with self.ledger.bucket("evaluation"):
            metrics = self._in_smaller_batches(partial(super().evaluate, *args, **kwargs))
        name = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        if math.isnan(metrics.get(name, 0.0)):
            logger.warning("%s is not a number at step %s: it cannot be the best.", name, self.state.global_step)
        return metrics

    def _in_smaller_batches(self, evaluate: Callable[[], Any]) -> Any:
        """Try again with half the batch while memory does not suffice; a row's result does not depend on it.

        Not with several processes, of which one may have memory left and wait for the others.
        """
        args = self.args
        while True:
            try:
                return evaluate()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or args.world_size > 1 or args.per_device_eval_batch_size == 1:
                    raise
            args.per_device_eval_batch_size //= 2
            logger.warning("Evaluation ran out of memory: again with batches of %s.", args.per_device_eval_batch_size)
            release_memory()

    def _faster_linear(self) -> AbstractContextManager:
        is_compiled = self.args.torch_compile  # then the compiler chooses
        return nullcontext() if is_compiled else linear_by_onednn(self.args.device)

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple:
        """The stock step, of which no more is kept than the task keeps: a class for each pixel or token of a whole
        split would fill the memory, as labels too, which the metrics take from the rows."""
        with self._faster_linear():
            loss, logits, labels = super().prediction_step(*args, **kwargs)
        if logits is not None and isinstance(labels, torch.Tensor):
            logits, labels = self.task.reduce(logits, labels), labels.flatten(1)[:, :1] if labels.dim() > 1 else labels
        return loss, logits, labels

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The stock loop, in which the loss is the mean over labels, not over rows of the means of their batches.

        Several processes repeat rows at the end, which the stock mean leaves out and a sum would count twice: there it
        stays, but for tasks with a score of their own for it.
        """
        self.loss.evaluated.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.loss.evaluated and self.args.world_size == 1:
            total, count = torch.stack(self.loss.evaluated).sum(0).tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = total / count if count else math.nan
        for name in [name for name in output.metrics if name.endswith("_token_loss")]:
            output.metrics[name.replace("_token_loss", "_loss")] = output.metrics[name]
        return output

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """The stock training, which knows what it goes on from before it begins."""
        if resume_from_checkpoint:
            self.resumed = read_state(resume_from_checkpoint)
        return super().train(resume_from_checkpoint or None, **kwargs)

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple:
        """The stock numbers, but no epoch for a run that had ended: the stock loop would train one more step."""
        num_epochs, *others, max_steps = super().set_initial_training_values(*args, **kwargs)
        has_no_step = self.resumed is not None and has_ended(self.resumed, max_steps)
        return (0 if has_no_step else num_epochs, *others, max_steps)

    # Not documented hooks, for want of one: no callback is called before a save or after a load, none gets the norm.
    def _get_output_dir(self, trial: Any) -> str:
        """The staging folder while a checkpoint is written."""
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """The stock checkpoint, charged to saving, under names that it can be resumed from, and then committed."""
        folder, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        staging = staging_folder(folder, self.state.global_step)
        self.meter.num_saves += 1
        with self.ledger.bucket("save"), _own_names(self.accelerator.unwrap_model(self.model)):
            self.progress.pending_loss = float(gather(self._tr_loss.detach().reshape(1)).mean())
            if self.args.should_save:
                clean(folder)
            self.accelerator.wait_for_everyone()
            self._staging = staging
            try:
                super()._save_checkpoint(*args, **kwargs)
                self._name_best(folder)
                self.accelerator.wait_for_everyone()  # the files of every process are there
                if self.args.should_save:
                    self.state.save_to_json(str(staging / name / STATE_FILE))
                    commit(staging / name, folder / name, {"step": self.state.global_step, **self.manifest})
                    rotate(folder, self.checkpoint_limit, self.state.best_global_step)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            finally:
                self._staging = None
            self.accelerator.wait_for_everyone()

    def _name_best(self, folder: Path) -> None:
        """The best checkpoint by the name that it will have; the stock method looked for it in the staging folder."""
        step = self.state.best_global_step
        if step and (step == self.state.global_step or (folder / f"checkpoint-{step}").is_dir()):
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{step}")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The stock files, with the arguments as JSON: the stock file of them is a pickle, which may hold a token."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            (folder / "training_args.json").write_text(redact(self.args.to_json_string()), encoding="utf-8")

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """The stock norm. One that is not finite makes the weights so: it stops the run before they are saved.

        In float16 it is expected now and then; the scaler leaves such a step out.
        """
        norm = super()._get_grad_norm(*args, **kwargs)
        if self.accelerator.scaler is None and self.loss.is_finite is not None:
            self.loss.is_finite = self.loss.is_finite & torch.isfinite(torch.as_tensor(norm)).to(self.loss.is_finite)
        return norm

    def _load_best_model(self) -> None:
        """The stock load, of a checkpoint that still is what was written; the stock one only logs that it is gone."""
        best = Path(self.state.best_model_checkpoint)
        is_ours = best.parent.absolute() == Path(self.args.output_dir).absolute()  # or of a stock run gone on with
        if is_ours and (damage := find_damage(best)):
            raise UserError(
                f"{best}, the best checkpoint, does not count any more: {damage}. Training is over; for its last "
                "weights run the same command with --resume_from_checkpoint true --load_best_model_at_end false "
                "--allow_change true."
            )
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint without all weights is an error; the stock trainer logs a line and goes on with other ones."""
        missing = sorted(set(load_result.missing_keys) - set(self.model.all_tied_weights_keys))
        if missing:
            raise UserError(
                f"The checkpoint to go on from lacks {len(missing)} weights of the network, such as {missing[0]}. "
                "Resume from one that this version of hftl wrote for the same network."
            )

    def fit(self, checkpoint: str | None, *, is_trained: bool) -> None:
        """Train, from a checkpoint or from the start, where the mode has a training loop."""
        if is_trained:
            with self.ledger.bucket("train"):
                self.train(resume_from_checkpoint=checkpoint)

    def list_losses(self) -> list[dict[str, Any]]:
        """What was logged of training and validation, with the step of each."""
        return [entry for entry in self.state.log_history if "eval_loss" in entry or "loss" in entry]

    def predict_rows(self, rows: datasets.Dataset) -> np.ndarray:
        """What the task keeps of each row, float32 [N, K] in their order; computed from long to short."""
        ordered, order = sort_by_length(rows)
        compute_metrics, self.compute_metrics = self.compute_metrics, None  # which expects the rows of evaluation
        try:
            with self.ledger.bucket("evaluation"):
                predictions = self._in_smaller_batches(lambda: self._answer(ordered))
        finally:
            self.compute_metrics = compute_metrics
        kept = np.empty_like(predictions, dtype=np.float32)
        kept[order] = predictions
        return kept

    def _answer(self, rows: datasets.Dataset) -> np.ndarray:
        """What the task keeps of each row, and behind it what it writes, where it has scores of that."""
        reduced, written = self.predict(rows).predictions, []
        if not any(score.is_written for score in self.task.scores.values()):
            return reduced
        network = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        for batch in tqdm(self.get_eval_dataloader(rows), desc="Writing", disable=self.args.disable_tqdm):
            with torch.no_grad(), self._faster_linear():
                tokens = self.task.write(network, batch)
            tokens = self.accelerator.pad_across_processes(tokens, dim=1, pad_index=FILL)
            written += list(self.accelerator.gather_for_metrics(tokens).cpu().numpy())
        return np.concatenate([reduced, stack_kept(written).astype(reduced.dtype)], axis=1)
