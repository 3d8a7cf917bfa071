"""What was asked for: argument dataclasses, and the one typed path by which YAML and flags fill them.

Defaults < YAML file < flags. YAML is turned into command-line words in front of the real ones, so that both are
checked by the same parser. After `parse_args` nobody reads `sys.argv`.
"""

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from hftl.config.training_flags import GONE, SHORT
from hftl.config.yaml_file import as_flag, read_yaml
from hftl.errors import UserError, unknown_name
from hftl.runtime.files import redact, write_atomically

# Where a run is written, restarted, computed and watched is not part of what it is; a token is never written anywhere.
NOT_RECORDED = {"output_dir", "resume_from_checkpoint", "allow_change", "hub_token", "use_cpu", "disable_tqdm"}
NOT_RECORDED |= {"push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy"}  # nor published


def _option(default: Any, text: str, choices: Sequence[str] = ()) -> Any:
    metadata = {"help": text} | ({"choices": list(choices)} if choices else {})
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataArguments:
    """Which rows are used, and which of their columns."""

    task: str = _option(
        "text-classification",
        "text-classification, image-classification, token-classification, semantic-segmentation, seq2seq, "
        "object-detection, question-answering, masked-lm or causal-lm.",
    )
    dataset: str | None = _option(None, "Hub id, folder, file or bundled:NAME.")
    dataset_config: str | None = _option(None, "Configuration name of a Hub data set.")
    dataset_revision: str | None = _option(None, "Revision (commit, tag or branch) of a Hub data set.")
    train_file: str | None = _option(None, "Training file: csv, tsv, json, jsonl or parquet.")
    validation_file: str | None = _option(None, "Validation file; without it a part of train is held out.")
    test_file: str | None = _option(None, "Test file, read once, after training.")
    text_columns: list[str] | None = _option(
        None,
        "One or two text columns; of a language model: the text, prompts and then the completion, or the chat.",
    )
    image_column: str | None = _option(None, "Column with images or with image paths.")
    # One name alone is held as a text.
    label_column: list[str] | None = _option(
        None, "Column with the labels, or with the masks; of labels that have a column of 0 and 1 each, all of them."
    )
    problem_type: str | None = _option(
        None,
        "Decided from the labels when not given.",
        ("single_label_classification", "multi_label_classification", "regression"),
    )
    label_delimiter: str = _option(",", "Separates the labels of one row in a multi-label text column.")
    validation_fraction: float = _option(0.2, "Share of train held out when there is no validation split.")
    only_labels: list[str] | None = _option(None, "Use the rows of these classes only.")
    num_train_examples: int | None = _option(None, "Train on a class-stratified subset of this size.")
    num_train_examples_per_class: int | None = _option(None, "Train on this many examples of each class.")
    num_validation_examples: int | None = _option(None, "Size of the validation subset.")
    num_test_examples: int | None = _option(None, "Size of the test subset; the same rows for every seed.")
    evaluate_test: bool = _option(
        True, "Score the test set after training; false for trials, whose settings are still to be chosen."
    )
    validation_seed: int | None = _option(
        None, "Draws the validation subset; default: the same rows for every --seed."
    )
    on_bad_rows: str = _option("error", "Empty texts and unreadable images: stop, or drop them.", ("error", "skip"))
    group_column: str | None = _option(
        None, "Column whose values (a patient, an author) should be in one split each; validation is held out by them."
    )
    audit: list[str] | None = _option(
        None,
        "What is done about a finding of the audit: FINDING=error, warn, drop (rows of train) or note, such as "
        "duplicates_across_splits=drop.",
    )
    max_length: int | None = _option(None, "Longest text in tokens; default: the model's limit, 512 at most.")
    image_size: int | None = _option(None, "Height and width in pixels; default: the checkpoint's own.")
    augmentation: str = _option(
        "auto",
        "Crop and flip while training an image model: auto is strong for scratch and light otherwise.",
        ("auto", "none", "light", "strong"),
    )

    class_weights: str = _option(
        "none",
        "What a class counts in the loss: none, balanced (the more the rarer it is in train), or a number for each as "
        'a JSON object such as {"spam": 5, "ham": 1}. Scaled to a mean of 1 over the labels of train.',
    )
    class_names: list[str] | None = _option(
        None,
        "semantic-segmentation: the classes by number, from 0, or NAME=NUMBER (such as background=0 object=255) or "
        "NAME=#rrggbb; default: the numbers in the masks of train.",
    )
    reduce_labels: bool = _option(
        False, "semantic-segmentation: 0 in a mask is no class (it becomes 255, which is ignored), and 1 the first."
    )
    completion_only: bool = _option(
        True, "causal-lm: learn the completions, or the assistant's turns, and not the prompts."
    )
    packing: bool = _option(
        False,
        "causal-lm: train on rows one after the other, without padding, where the network keeps them apart.",
    )
    tokenizer_vocab_size: int | None = _option(
        None, "causal-lm, mode scratch: train a tokenizer of this size on the train rows."
    )
    source_column: str | None = _option(None, "seq2seq: column that is read.")
    target_column: str | None = _option(None, "seq2seq: column that is to be written.")
    source_prefix: str | None = _option(None, "seq2seq: text in front of each input, such as 'summarize: '.")
    max_new_tokens: int = _option(64, "seq2seq: most tokens written for a row in the evaluation after training.")
    num_beams: int = _option(1, "seq2seq: beams while writing; 1 takes the most probable token.")
    show_example: bool = _option(False, "causal-lm: print one training row with the part that is learnt marked.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "label_column", _unwrap(self.label_column))
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"--validation_fraction is {self.validation_fraction}; give a share between 0 and 1.")
        for name in ("num_train_examples", "num_train_examples_per_class", "num_validation_examples"):
            _check_positive(name, getattr(self, name))
        for name in (
            "num_test_examples",
            "max_length",
            "image_size",
            "tokenizer_vocab_size",
            "max_new_tokens",
            "num_beams",
        ):
            _check_positive(name, getattr(self, name))


@dataclass(frozen=True)
class ModelArguments:
    """Which network is trained, and how much of it."""

    mode: str | None = _option(
        None, "full, peft, scratch, probe or zero-shot; or a baseline: majority, prior, tfidf, knn."
    )
    model_name_or_path: str | None = _option(None, "Hub id, folder or bundled:NAME.")
    model_revision: str = _option("main", "Revision (commit, tag or branch) of a Hub checkpoint.")
    config_overrides: str | None = _option(
        None, "Scratch only: changes to the network, such as num_hidden_layers=2,hidden_size=128."
    )
    pretrain_file: str | None = _option(
        None,
        "Before training on texts: go on pretraining the checkpoint (scratch: random weights) on the texts of this "
        "file, or of the train rows of bundled:NAME, without labels (masked-lm).",
    )
    pretrain_steps: int = _option(500, "Steps of it, of 32 texts.")
    dtype: str = _option(
        "float32", "Type of the frozen weights; what is trained stays float32.", ("float32", "bfloat16")
    )
    quantization: str = _option(
        "none", "Hold the frozen weights of --mode peft in 8 or 4 bits; needs bitsandbytes.", ("none", "int8", "nf4")
    )
    head_init: str = _option(
        "auto",
        "Start the head from logistic regression on frozen features, or at random.",
        ("auto", "probe", "random"),
    )
    head_learning_rate: float | None = _option(None, "Learning rate of the head; default: that of the rest.")
    early_stopping_patience: int | None = _option(
        None,
        "Stop after so many evaluations without a better one, and keep the best; needs --eval_strategy, "
        "--save_strategy of the same kind and --load_best_model_at_end.",
    )
    auto_batch: bool = _option(
        False,
        "Find by real steps how many rows fit into memory at once, and accumulate the rest: the batch that counts, "
        "and so the result, stays.",
    )
    allow_change: bool = _option(
        False, "Go on from a checkpoint of other data, settings or processes; the result is then neither run's."
    )
    freeze_layers: int = _option(
        0, "Mode full: keep the embeddings and so many of the lowest layers or stages as they are."
    )
    adapter: str = _option("lora", "PEFT method; `hftl adapters` lists them.")
    adapter_config: str | None = _option(
        None, "More settings of the method's peft configuration, as a JSON object; they win over the other flags."
    )
    lora_r: int = _option(16, "Rank of LoRA, and of the other methods that have one.")
    lora_alpha: int = _option(16, "LoRA scale: the update is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = _option(0.0, "Dropout in front of the LoRA matrices.")
    target_modules: list[str] | None = _option(
        None,
        "Modules to adapt: ends of names, regular expressions for whole names, or all-linear, attention, mlp, conv; "
        "default: chosen from the network.",
    )
    num_virtual_tokens: int = _option(20, "Length of what prefix, prompt and p-tuning put in front of a text.")

    def __post_init__(self) -> None:
        _check_positive("lora_r", self.lora_r)
        _check_positive("lora_alpha", self.lora_alpha)
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout is {self.lora_dropout}; give a share from 0 to below 1.")
        if self.head_learning_rate is not None and not 0 < self.head_learning_rate < math.inf:
            raise UserError(f"--head_learning_rate is {self.head_learning_rate}; give a number above 0.")
        _check_positive("pretrain_steps", self.pretrain_steps)
        _check_positive("num_virtual_tokens", self.num_virtual_tokens)
        if isinstance(self.adapter_config, str):
            raise UserError(f'--adapter_config is {self.adapter_config!r}; give a JSON object such as {{"r": 4}}.')
        if self.freeze_layers < 0:
            raise UserError(f"--freeze_layers is {self.freeze_layers}; give 0 or more.")
        _check_positive("early_stopping_patience", self.early_stopping_patience)


def _unwrap(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"--{name} is {value}; give 1 or more.")


@dataclass(frozen=True)
class Arguments:
    """All settings of one run. `training` is transformers' own, unmodified.

    Attributes:
        given: name -> value of what the user set.
        filled: name -> value of what `set_defaults` set.
    """

    data: DataArguments
    model: ModelArguments
    training: TrainingArguments
    given: Mapping[str, Any]
    filled: dict[str, Any] = field(default_factory=dict)

    def set_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Fill the training arguments that the user left open."""
        for name, value in defaults.items():
            if name not in self.given:
                setattr(self.training, name, value)
                self.filled[name] = value

    def resolved(self) -> dict[str, Any]:
        """What the user and `set_defaults` set: with the built-in defaults, enough to run again.

        Not read back from `training`, which derives some of its fields from others and cannot be parsed again.
        """
        filled = {name: value for name, value in self.filled.items() if name not in PER_PROCESS}
        settings = {**filled, **self.given}
        return {k: v for k, v in sorted(settings.items()) if v is not None and k not in NOT_RECORDED}


# Defaults that another number of processes, or another machine, has otherwise.
PER_PROCESS = {"per_device_train_batch_size", "dataloader_num_workers", "dataloader_persistent_workers"}
# Two ways to say how long: a flag replaces the other one of the file, which Trainer would obey silently.
DURATION = {"max_steps", "num_train_epochs"}
# New name -> old one. transformers 5.23 warns at the old ones, which end in version 6; 5.17 has no others.
OLD_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
RENAMED = {old: new for new, old in OLD_NAMES.items() if new in TrainingArguments.__dataclass_fields__}
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
ARGUMENT_CLASSES = (DataArguments, ModelArguments, TrainingArguments)


def flag_names() -> dict[str, str]:
    """Every flag as it can be typed -> the name of its field."""
    names = {}
    for item in (f for cls in ARGUMENT_CLASSES for f in dataclasses.fields(cls) if f.init):
        for spelling in {item.name, item.name.replace("_", "-")}:
            names[f"--{spelling}"] = item.name
            names[f"--no_{spelling}"] = names[f"--no-{spelling}"] = item.name
    return names


class _Parser(HfArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(message)


def parse_args(
    argv: Sequence[str] | None = None,
    *,
    default_config: str | Path | None = None,
    mode: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Arguments:
    """Parse `[CONFIG.yaml] [--flag value ...]`.

    Args:
        argv: the words; default: the command line of this process.
        default_config: used when neither a YAML file nor data are named.
        mode: the mode that a recipe stands for; a configuration that asks for another one is an error.
        settings: flags that a recipe sets where neither the configuration nor the words do.

    Raises:
        UserError: an unknown key or flag, a value of the wrong type, two configuration files.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    flags = flag_names()
    config, words = _split_config(argv)
    names_data = any(flags.get(word.split("=")[0]) in {"dataset", "train_file"} for word in words)
    if config is None and not names_data and not {"-h", "--help"} & set(words):
        config = default_config
    typed = {flags.get(word.split("=")[0]) for word in words}
    preset = [word for name, value in (settings or {}).items() for word in (f"--{name}", value)]
    yaml_words = _yaml_words(Path(config), set(flags.values()), typed) if config else []
    words = [_rename(word, flags) for word in preset + yaml_words + _join_negative(words)]
    given = {flags[word.split("=")[0]] for word in words if word.split("=")[0] in flags}
    parser = _Parser(ARGUMENT_CLASSES, allow_abbrev=False, prog=_program_name())
    namespace, unknown = parser.parse_known_args(words)
    _refuse_unknown(unknown, flags)
    values = vars(namespace)
    values |= _hardware_settings(given, mode or values["mode"])
    return _build_arguments(values, given, mode)


def _build_arguments(values: dict[str, Any], given: set[str], mode: str | None) -> Arguments:
    if values.get("hub_token"):
        raise UserError("--hub_token would end in logs and files. Set the environment variable HF_TOKEN instead.")
    if mode is not None and values["mode"] not in (None, mode):
        raise UserError(
            f"This recipe trains mode {mode!r}, but the configuration says {values['mode']!r}. "
            f"Use `hftl train --mode {values['mode']}`."
        )
    values["mode"] = mode or values["mode"]
    values["label_column"] = _unwrap(values["label_column"])
    values |= {name: _parse_json(name, values[name]) for name in given if name.endswith(("_kwargs", "_config"))}
    parts = []
    for cls in ARGUMENT_CLASSES:
        names = {item.name for item in dataclasses.fields(cls) if item.init}
        try:
            parts.append(cls(**{name: values[name] for name in names}))
        # TrainingArguments checks combinations and optional packages, each with its own message.
        except (ValueError, TypeError, ImportError, OSError, ArithmeticError) as error:
            raise UserError(str(error)) from error
    return Arguments(*parts, given={name: _plain(values[name]) for name in given | {"mode"}})


def _plain(value: Any) -> Any:
    """The value as YAML can hold it: `--debug` is a list of enum members."""
    return [getattr(item, "value", item) for item in value] if isinstance(value, list) else value


def _parse_json(name: str, value: Any) -> Any:
    """The dictionary that a `--*_kwargs` or `--*_config` holds; the latter may be a name or a file as well."""
    if not isinstance(value, str) or not (value.startswith("{") or name.endswith("_kwargs")):
        return value
    try:
        content = json.loads(value)
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f'--{name} is {value!r}; give a JSON object such as {{"key": 1}}.')
    return content


def _hardware_settings(given: set[str], mode: str | None) -> dict[str, bool]:
    """What follows from the machine. It counts as not given, so that `config.yaml` runs on another one.

    `use_cpu` for several processes without an accelerator: accelerate 1.15 would let each train by itself, all into
    the same folder; and for `--bf16`, which `TrainingArguments` refuses on a CPU otherwise. `bf16` on a GPU that
    computes in bfloat16: weights stay float32, products are made by autocast. It is set
    here because `TrainingArguments` (transformers 5.17 to 5.23) reads it once, in `__post_init__`, into the
    `mixed_precision` that Trainer hands to accelerate. Not for a probe, which is fitted in float32 on features whose
    differences may be small beside their mean: of those, 8 bits of fraction keep little. On a CPU
    `hftl.training.precision` decides, which knows the network.
    """
    is_split = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if (is_split or "bf16" in given) and not torch.accelerator.is_available():
        return {"use_cpu": True}
    is_chosen = given & {"bf16", "fp16", "use_cpu"} or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
    if is_chosen or mode == "probe" or not torch.cuda.is_available():
        return {}
    return {"bf16": True} if torch.cuda.is_bf16_supported(including_emulation=False) else {}


def _join_negative(words: list[str]) -> list[str]:
    """`--flag -1e-5` as `--flag=-1e-5`: argparse takes a negative number with an exponent for a flag."""
    joined: list[str] = []
    for word in words:
        if NEGATIVE.fullmatch(word) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _rename(word: str, flags: Mapping[str, str]) -> str:
    """A flag that has another name now, by that one."""
    flag, equals, value = word.partition("=")
    name = flags.get(flag)
    return f"--{RENAMED[name]}{equals}{value}" if name in RENAMED and not flag.startswith("--no") else word


def _program_name() -> str:
    name = os.path.basename(sys.argv[0])
    return "hftl train" if name in {"hftl", "__main__.py"} else name


def _split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    if not argv or argv[0].startswith("-"):
        return None, argv
    if not argv[0].endswith((".yaml", ".yml")):
        if Path(argv[0]).exists():
            flag = "dataset" if Path(argv[0]).is_dir() else "train_file"
            advice = f"If it is the data, give --{flag} {argv[0]}."
            raise UserError(f"{argv[0]!r} is neither a flag nor a .yaml file. {advice}")
        raise UserError(f"{argv[0]!r} is neither a flag nor a .yaml file. Flags start with --.")
    return argv[0], argv[1:]


def _refuse_unknown(unknown: list[str], flags: dict[str, str]) -> None:
    for word in unknown:
        if word.startswith("--"):
            if (name := word.split("=")[0][2:].replace("-", "_")) in GONE:
                raise UserError(f"Unknown flag '--{name}', of transformers 4. {GONE[name]}")
            if name in SHORT:
                raise UserError(f"Unknown flag '--{name}'. Give --{SHORT[name]}.")
            known = {flag for flag in flags if not flag.startswith("--no") and "-" not in flag[2:]}
            raise unknown_name("flag", word.split("=")[0].replace("-", "_").replace("__", "--", 1), known)
        if word.endswith((".yaml", ".yml")):
            raise UserError(f"{word!r} is out of place: one configuration file, and it comes first.")
    if unknown:
        raise UserError(f"Unexpected words on the command line: {' '.join(unknown)}. A list follows its flag.")


def _yaml_words(path: Path, known: set[str], typed: set[str | None]) -> list[str]:
    words = []
    replaced = DURATION if typed & DURATION else set()
    for key, value in read_yaml(path).items():
        if key not in known:
            raise unknown_name(f"key in {path}:", str(key), known)
        if value is not None and key not in replaced:
            words += as_flag(key, value)
    return words


def write_config(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Write `config.yaml`, from which the run can be repeated, and return its content."""
    settings = arguments.resolved()
    text = "# Run again with: hftl train THIS_FILE\n" + yaml.safe_dump(settings, sort_keys=True, allow_unicode=True)
    if arguments.training.should_save:
        write_atomically(folder / "config.yaml", redact(text).encode())
    return settings
