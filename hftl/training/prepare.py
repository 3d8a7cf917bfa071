"""What is there before the first step: rows as model inputs, and the network with what it starts from.

Each stage gives a typed result, and the next one takes it. Must not know: how training goes, or what is saved of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import torch
import transformers
from torch import nn

from hftl.config import Arguments
from hftl.cost.ledger import Ledger
from hftl.hub.push import Publication, take_publication
from hftl.models import length
from hftl.models.adapters import adapter_of
from hftl.models.dropout import draw_faster
from hftl.models.embeddings import check_tokens, warn_of_still_rows
from hftl.models.head import head_modules
from hftl.models.load import LoadedModel, correct_momentum, load_config
from hftl.models.modes import Mode, find_mode
from hftl.models.quantization import is_quantized
from hftl.models.reading import explained_reading
from hftl.run_record import RunRecord
from hftl.runtime.malloc import keep_freed_memory
from hftl.tasks import build_task
from hftl.tasks.base import Task
from hftl.tasks.processors import count_tokens
from hftl.training.adapter_init import initialize_adapter
from hftl.training.class_weights import weigh_classes
from hftl.training.continued_pretraining import check_pretraining, continue_pretraining
from hftl.training.head_init import initialize_head
from hftl.training.resume_check import check_adapter_of_checkpoint, describe_identity, read_head
from hftl.training.run_folder import find_checkpoint
from hftl.training.settings import check_arguments, check_label_settings, check_model, check_training, set_defaults
from hftl.training_data import Examples, audit_lengths, load_examples, prepare_examples


@dataclass(frozen=True)
class RunPlan:
    """What a run is, before anything is read.

    Attributes:
        args: of the run.
        mode: how the network is loaded, changed and trained.
        task: that is learnt.
        publication: where it is pushed, or None.
    """

    args: Arguments
    mode: Mode
    task: Task
    publication: Publication | None


@dataclass(frozen=True)
class PreparedData:
    """The rows of a run.

    Attributes:
        args: of the run; after `--pretrain_file` they name the checkpoint that it left.
        examples: rows in canonical columns, cut and audited.
        processor: tokenizer or image processor.
        rows: model inputs by split.
        described: what the record says of them.
        pretrained: what `--pretrain_file` made and cost; empty without it.
    """

    args: Arguments
    examples: Examples
    processor: Any
    rows: dict[str, datasets.Dataset]
    described: dict[str, Any]
    pretrained: dict[str, Any]


@dataclass(frozen=True)
class LoadedNetwork:
    """The network as the mode loads it, with the defaults of the run filled in for it.

    Attributes:
        loaded: it, and which parts of it are new.
        heads: its head modules, by name.
        collator: rows -> a batch of this network.
        checkpoint: folder that the run goes on from, or None.
        identity: by which a resumed run is told to be the same.
    """

    loaded: LoadedModel
    heads: list[str]
    collator: Callable
    checkpoint: str | None
    identity: dict[str, Any]


@dataclass(frozen=True)
class TrainableNetwork:
    """The network wrapped or frozen for the mode.

    Attributes:
        network: what is trained.
        collator: as this network can take its rows.
        head: how its head started.
        coverage: how much of it is adapted, or None.
        start_flops: of what it starts from, before training.
    """

    network: nn.Module
    collator: Callable
    head: dict[str, Any]
    coverage: dict[str, Any] | None
    start_flops: int


def start_run(args: Arguments, ledger: Ledger) -> RunPlan:
    """Look whether the settings fit together, and seed what draws.

    Raises:
        UserError: they do not; nothing was read.
    """
    with ledger.bucket("startup"):
        mode, task = find_mode(args.model.mode), build_task(args.data.task)
        check_arguments(args)
        check_pretraining(args)
        publication = take_publication(args)
        keep_freed_memory()
        transformers.set_seed(args.training.seed)
    return RunPlan(args, mode, task, publication)


def prepare_data(plan: RunPlan, ledger: Ledger, run: Callable[..., RunRecord]) -> PreparedData:
    """Load, check and cut the rows, continue pretraining where that is asked for, and make model inputs.

    Args:
        plan: of the run.
        ledger: that is charged.
        run: what makes a run of a pretraining.

    Raises:
        UserError: the data, or a setting for them, cannot be used.
    """
    args, task = plan.args, plan.task
    with ledger.bucket("startup"), args.training.main_process_first():
        check_model(args, task)
        examples = load_examples(args.data, task, args.training.seed)
        check_label_settings(args, examples.labels.problem_type)
        args, pretrained = pretrain(args, examples, ledger, run)
        processor = length.load_processor(args.model, task, args.data)
        processor = task.fit_processor(processor, examples.splits["train"], args.data)
        rows = prepare_examples(examples, task, processor, args.data)
        described = task.describe_rows(rows, processor, args.data)
        audit_lengths(examples, described, args.data)
        described |= weigh_classes(args.data.class_weights, task, rows["train"], examples.labels)
    return PreparedData(args, examples, processor, rows, described, pretrained)


def pretrain(
    args: Arguments, examples: Examples, ledger: Ledger, run: Callable[..., RunRecord]
) -> tuple[Arguments, dict[str, Any]]:
    """The checkpoint after `--pretrain_file`, and its cost, charged whenever it was spent, once a run."""
    with ledger.bucket("other"):
        args, pretrained = continue_pretraining(args, examples.splits, run)
    seconds = pretrained.get("train_seconds", 0.0)
    charged = 0.0 if find_checkpoint(args.training) else seconds  # which holds the seconds of the run so far
    spent = charged if pretrained.get("is_new") else pretrained.get("waited_seconds", 0.0)
    ledger.add({"train_seconds": charged, "other_seconds": -spent})
    return args, pretrained


def load_network(plan: RunPlan, data: PreparedData, ledger: Ledger) -> LoadedNetwork:
    """Load the network and fill in what the user left open.

    Raises:
        UserError: it cannot be loaded, or cannot be trained as the settings say.
    """
    args, mode, task, num_rows = data.args, plan.mode, plan.task, len(data.rows["train"])
    with ledger.bucket("startup"):
        loaded = mode.load(args.model, task, load_config(args.model, task, data.processor, data.examples.labels))
        task.adapt_network(loaded.network)
        check_tokens(loaded.network, count_tokens(data.processor))
        if args.training.world_size == 1 and not is_quantized(loaded.network):  # quantized ones are there already
            loaded.network.to(args.training.device)
        heads = head_modules(loaded.network, loaded.new_parameters, has_new_head=task.has_new_head)
        set_defaults(args, mode, loaded.network, task, num_rows)
        check_training(args, loaded.network, task, num_rows)
        augmentation = mode.augmentation if args.data.augmentation == "auto" else args.data.augmentation
        collator = task.build_collator(data.processor, args.data, augmentation)
        checkpoint, identity = find_checkpoint(args.training), describe_identity(args, data.examples, loaded)
    return LoadedNetwork(loaded, heads, collator, checkpoint, identity)


def start_head(plan: RunPlan, data: PreparedData, found: LoadedNetwork, ledger: Ledger) -> dict[str, Any]:
    """Let the head start as the mode or `--head_init` says, and describe that; a resumed run reads how it was."""
    args, network = data.args, found.loaded.network
    with ledger.bucket("train"), args.training.main_process_first():
        head = read_head(found.checkpoint)
        if found.checkpoint is None:
            wanted = plan.mode.choose_head_init(plan.task, args.model.head_init)
            is_final = not plan.mode.is_trained
            with explained_reading(network):
                head = initialize_head(network, args, wanted, data.rows, found.collator, is_final=is_final)
    return head


def adapt_network(
    plan: RunPlan, data: PreparedData, found: LoadedNetwork, head: dict[str, Any], ledger: Ledger
) -> TrainableNetwork:
    """Freeze or wrap the network for its mode, and let an adapter start from the data where that is asked for.

    Raises:
        UserError: the mode cannot be had of this network.
    """
    args, train, original = data.args, data.rows["train"], found.loaded.network
    with ledger.bucket("startup"):
        coverage = plan.mode.cover(original, args.model, found.heads, sample_inputs(args, train, found.collator))
        network = _adapt(plan, data, found)
        with ledger.bucket("train"):
            adapter_flops = initialize_adapter(network, args, train, found.collator)
        check_adapter_of_checkpoint(args, network)
    start_flops = head.get("flops", 0) + adapter_flops + data.pretrained.get("train_flops", 0)
    return TrainableNetwork(network, plan.task.adapt_collator(found.collator, network), head, coverage, start_flops)


def _adapt(plan: RunPlan, data: PreparedData, found: LoadedNetwork) -> nn.Module:
    """The network with the weights that are trained, and dropout that a CPU draws fast."""
    args, loaded = data.args, found.loaded
    network = plan.mode.adapt(loaded.network, args.model, found.heads, plan.task.peft_task_type, loaded.new_tokens)
    correct_momentum(network)
    warn_of_still_rows(network, loaded.new_tokens)
    if args.training.device.type == "cpu" and not args.training.torch_compile:
        draw_faster(network)
    return network


def sample_inputs(args: Arguments, rows: datasets.Dataset, collator: Callable) -> dict[str, torch.Tensor]:
    """Two rows as the network reads them."""
    batch = collator(rows.__getitems__(list(range(min(2, len(rows))))))
    return {name: tensor.to(args.training.device) for name, tensor in batch.items() if name != "labels"}


def name_origin(args: Arguments, pretrained: dict[str, Any]) -> dict[str, str]:
    """The checkpoint that the user named, for a model card; an adapter needs what was made of it here."""
    return {"name": pretrained["from"]} if pretrained and adapter_of(args.model) is None else {}
