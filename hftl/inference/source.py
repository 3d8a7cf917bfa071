"""What does a name stand for: a run folder, a checkpoint, an adapter, a bundled or a Hub model? And how is it loaded?

Everything is read from configuration files, and of a run from its record; weights are loaded in one place,
`load_network`. Must not know what the network is loaded for.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from hftl.assets import resolve_model
from hftl.config import DataArguments, ModelArguments, parse_args
from hftl.data.labels import LabelInfo
from hftl.errors import UserError
from hftl.models.length import load_processor
from hftl.models.load import check_adapter_weights, load_config, load_pretrained, name_base
from hftl.models.weights import check_weights
from hftl.records import RECORD_FILE, RunRecord
from hftl.tasks import TASKS, build_task
from hftl.tasks.base import Task
from hftl.tasks.processors import explained_loading


@dataclass(frozen=True)
class ModelSource:
    """Where a trained network lies and what it was trained for.

    Attributes:
        name: as the user gave it.
        task: that it answers.
        labels: what its outputs mean.
        model: how the network, or the one under the adapter, is loaded.
        data: the columns and lengths that it was trained with; the defaults where nobody knows.
        adapter: folder or Hub id, or None for a whole network.
        adapter_revision: of a Hub id.
        record: of its run, if it has one here.
        columns: of the inputs, by the names that they had in training; a table has to have them.
    """

    name: str
    task: Task
    labels: LabelInfo
    model: ModelArguments
    data: DataArguments
    adapter: str | None = None
    adapter_revision: str = "main"
    record: RunRecord | None = field(default=None, repr=False)
    columns: tuple[str, ...] = ()

    @property
    def num_inputs(self) -> int | None:
        """Columns that a row had in training, such as 2 for pairs of texts; None where nobody wrote it down."""
        return len(self.record.data.get("inputs", ())) or None if self.record else None


@dataclass(frozen=True)
class LoadedSource:
    """A network that can be asked, and its tokenizer or image processor."""

    source: ModelSource
    network: nn.Module
    processor: Any


def find_source(name: str, revision: str = "main") -> ModelSource:
    """Find out what `name` is; no weights are read.

    Args:
        name: run folder, checkpoint or adapter folder, Hub id, or bundled:NAME.
        revision: of a Hub model.

    Raises:
        UserError: there is no such model, it has no head for any task, or its run left none.
    """
    run = _find_run(Path(name))
    record = RunRecord.read(run) if run and (run / RECORD_FILE).is_file() else None
    settings = parse_args([str(run / "config.yaml")]) if run else None
    if record is not None and not record.model.get("num_parameters"):
        raise UserError(f"{name} is the baseline {record.mode}: its run left scores and no network to ask.")
    data = settings.data if settings else None
    columns = tuple(record.data.get("columns", ())) if record else ()
    with explained_loading(name):
        path = resolve_model(name)
        file = find_adapter_config_file(path, revision=revision)
        if file is None:
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
            task = build_task(data.task) if data else _find_task(config, name)
            model = ModelArguments(model_name_or_path=name, model_revision=revision)
            return ModelSource(
                name, task, task.read_labels(config), model, data or _defaults(task), record=record, columns=columns
            )
        adapter = json.loads(Path(file).read_text(encoding="utf-8"))
        base = adapter.get("base_model_name_or_path")
        if settings:
            model = name_base(settings.model, base, adapter.get("revision"))
        else:
            pinned = adapter.get("revision") or "main"  # the commit of the base that the adapter was tuned on
            model = ModelArguments(model_name_or_path=base, model_revision=pinned, mode="peft")
        config = _adapter_config(path, run, model, revision)
    task = build_task(data.task) if data else _find_adapter_task(config, adapter, name)
    labels = _recorded_labels(record) or task.read_labels(config)
    data = data or _defaults(task)
    return ModelSource(
        name, task, labels, model, data, adapter=path, adapter_revision=revision, record=record, columns=columns
    )


def load_network(source: ModelSource) -> LoadedSource:
    """Load weights and processor; an adapter is put over its base, and not merged.

    Raises:
        UserError: they cannot be loaded, the checkpoint lacks weights, such as those of the head, or an adapter was
            trained over another base.
    """
    task, model = source.task, source.model
    if source.adapter is not None:
        check_adapter_weights(source.adapter, source.adapter_revision)
    check_base(source)
    processor = _load_processor(source)
    if torch.cuda.is_available() and not task.has_new_head and source.record is None:
        model = replace(model, dtype="bfloat16")  # as such checkpoints are published; float32 would be twice as much
    with _without_report():
        loaded = load_pretrained(model, task, load_config(model, task, processor, source.labels))
    network = loaded.network
    if source.adapter is not None:
        network = _put_adapter(network, source)
    elif loaded.new_parameters:
        raise UserError(
            f"{source.name} has no weights for {', '.join(sorted(loaded.new_parameters)[:3])}: it was not trained for "
            f"{task.name} yet. Train it with `hftl train` and name the run folder."
        )
    return LoadedSource(source, network.eval(), processor)


def check_base(source: ModelSource) -> None:
    """Refuse an adapter whose base is not the one that it was trained over.

    Raises:
        UserError: the weights in its local folder are others now.
    """
    if source.adapter is not None and source.record is not None:
        check_weights(source.name, source.model.model_name_or_path, source.record.model.get("weights"))


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' table of weights that are missing: an adapter brings them, else it is an error of ours."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _find_run(path: Path) -> Path | None:
    """The run folder that `path` is, or is a checkpoint of."""
    return next((folder for folder in (path, path.parent) if _belongs_to(folder, path)), None)


def _belongs_to(folder: Path, path: Path) -> bool:
    is_run = (folder / "config.yaml").is_file() and path.is_dir()
    return is_run and (folder == path or path.name.startswith("checkpoint-"))


def _defaults(task: Task) -> DataArguments:
    return DataArguments(task=task.name)


def _find_task(config: Any, name: str) -> Task:
    """By the class that the weights were saved from."""
    for task in TASKS.values():
        if set(_class_names(task, config)) & set(config.architectures or ()):
            return task()
    saved = ", ".join(config.architectures or ("nothing that is known",))
    raise UserError(
        f"{name} holds {saved}, which answers none of the tasks {', '.join(TASKS)}. "
        "Train it for one with `hftl train` and name the run folder."
    )


def _find_adapter_task(config: Any, adapter: dict[str, Any], name: str) -> Task:
    """By the task type that peft wrote, and whether the base can have such a head."""
    for task in TASKS.values():
        if task.peft_task_type == adapter.get("task_type") and _class_names(task, config):
            return task()
    raise UserError(f"{name} is an adapter for the task type {adapter.get('task_type')!r}, which hftl does not know.")


def _class_names(task: type[Task], config: Any) -> list[str]:
    """The classes that the task's Auto class makes of such a configuration."""
    known = getattr(transformers, task.auto_model)._model_mapping
    if type(config) not in known:
        return []
    found = known[type(config)]
    return [cls.__name__ for cls in (found if isinstance(found, (list, tuple)) else [found])]


def _adapter_config(path: str, run: Path | None, model: ModelArguments, revision: str) -> Any:
    """With the label names: beside the adapter, else in its run folder, else the base's own."""
    for place in (path, str(run) if run else path):
        try:
            return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
        except (OSError, ValueError):  # an adapter alone, which is all that peft saves
            continue
    if not model.model_name_or_path:
        raise UserError(f"{path} is an adapter that does not say which network it is for (base_model_name_or_path).")
    base = resolve_model(model.model_name_or_path)
    return AutoConfig.from_pretrained(base, revision=model.model_revision, trust_remote_code=False)


def _recorded_labels(record: RunRecord | None) -> LabelInfo | None:
    return LabelInfo(record.data["problem_type"], tuple(record.data["label_names"])) if record else None


def _load_processor(source: ModelSource) -> Any:
    """The one that was saved beside the weights; peft alone saves none, then that of the run or of the base."""
    task = source.task
    if source.adapter is not None:
        run = _find_run(Path(source.adapter))
        for place in dict.fromkeys((source.adapter, str(run) if run else source.adapter)):
            with contextlib.suppress(UserError):
                return load_processor(source.model, task, source.data, place, source.adapter_revision)
    return load_processor(source.model, task, source.data)


def _put_adapter(network: nn.Module, source: ModelSource) -> nn.Module:
    try:
        with explained_loading(source.adapter):
            return PeftModel.from_pretrained(network, source.adapter, revision=source.adapter_revision)
    except RuntimeError as error:  # torch's, on sizes
        base, count = source.model.model_name_or_path, source.labels.num_labels
        raise UserError(
            f"The adapter {source.name} does not fit {base} with {count} labels: "
            f"{str(error).splitlines()[-1].strip()}. A config.json beside the adapter would name its labels."
        ) from error
