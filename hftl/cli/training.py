"""The verbs that train one model: train (and the recipes), verify-resume."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hftl.cli.words import configure_logging, default_config, find_process_start, quiet_libraries, take_flag
from hftl.errors import Interrupted, UserError
from hftl.runtime.cpu import limit_spinning
from hftl.runtime.gc_pause import importing

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hftl.run_record import RunRecord


def train(argv: list[str]) -> None:
    """`hftl train`: the recipes' work, with the mode as a flag."""
    argv, accelerate_config = take_flag(argv, "--accelerate_config")
    if accelerate_config is not None:
        _launch(accelerate_config, argv)
    run_recipe(argv=argv)


def _launch(config: str, argv: list[str]) -> None:
    """Replace this process by `accelerate launch` running the same command on the hardware of `config`."""
    if not Path(config).is_file():
        raise UserError(f"There is no accelerate configuration {config!r}. See accelerate_configs/.")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        config,
        "-m",
        "hftl",
        "train",
        *argv,
    ]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def run_recipe(
    argv: Sequence[str] | None = None, *, mode: str | None = None, settings: Mapping[str, str] | None = None
) -> None:
    """Parse, run, report: what `hftl train` and every recipe of a single run do.

    Args:
        argv: the words; default: the command line.
        mode: the mode that a recipe stands for.
        settings: flags that a recipe sets where neither the command line nor its YAML file does.
    """
    started = find_process_start()
    limit_spinning()
    configure_logging()
    with importing():
        from hftl.config import parse_args

    args = parse_args(argv, default_config=default_config("wordnet.yaml"), mode=mode, settings=settings)
    with importing():
        import hftl.training.run  # noqa: F401 - which the next import would do later, within the run
        from hftl.api import train_parsed

    quiet_libraries()
    try:
        record = train_parsed(args, started=started, ends_on_signal=True)
    except Interrupted as error:
        raise Interrupted(f"{error} {_advise_to_go_on(argv, mode, args.training)}") from None
    if args.training.process_index == 0:
        print(_summarize(record, args.training.output_dir))


def _advise_to_go_on(argv: Sequence[str] | None, mode: str | None, training: "TrainingArguments") -> str:
    words = list(sys.argv[1:] if argv is None else argv)
    for flag in ("--output_dir", "--resume_from_checkpoint"):
        words, _ = take_flag(words, flag)
    words += ["--output_dir", training.output_dir, "--resume_from_checkpoint", "true"]
    if training.world_size > 1:
        return f"Go on with the same launch and: {shlex.join(words)}"
    return "Go on with: " + shlex.join([*(["hftl", "train"] if mode is None else ["python", sys.argv[0]]), *words])


def _summarize(record: "RunRecord", folder: str) -> str:
    split = "test" if "test" in record.metrics else "validation"
    scores = {name: value for name, value in record.metrics[split].items() if isinstance(value, float)}
    cost = record.cost
    lines = [
        f"{record.task}, mode {record.mode}, {record.data['num_train_examples']:,} training examples",
        *_summarize_parameters(record.model),
        f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()),
        f"{cost['wall_seconds']:.0f} s in all: start-up {cost['startup_seconds']:.0f}, "
        f"training {cost['train_seconds']:.0f}, evaluation {cost['evaluation_seconds']:.0f}, "
        f"saving {cost['save_seconds']:.0f}",
        *_summarize_speed(cost),
        f"saved in {folder}",
        *([cost["diagnosis"]] if cost.get("diagnosis") else []),
    ]
    return "\n".join(lines)


def _summarize_parameters(model: dict) -> list[str]:
    total, trained = model["num_parameters"], model["num_trainable_parameters"]
    if not total or trained is None:  # a baseline without a network
        return []
    lines = [f"trained {trained:,} of {total:,} parameters ({trained / total:.2%})"]
    if (coverage := model.get("coverage")) and coverage["num_modules"]:
        lines.append(
            f"adapted {coverage['num_modules']} modules ({', '.join(coverage['modules'])}): "
            f"{coverage['share_of_parameters']:.0%} of the parameters, {coverage['share_of_flops']:.0%} of the FLOPs"
        )
    return lines


def _summarize_speed(cost: dict) -> list[str]:
    if not cost.get("num_examples_seen") or not cost.get("examples_per_second"):  # a baseline, or a probe
        return []
    parts = [f"{cost['examples_per_second']:,.0f} examples/s"]
    if cost["tokens_per_second"]:
        parts.append(f"{cost['tokens_per_second']:,.0f} tokens/s without padding ({cost['padding_fraction']:.0%})")
    if cost["mfu"]:
        parts.append(f"MFU {cost['mfu']:.0%}")
    return [", ".join([*parts, f"waiting for data {cost['data_wait_share']:.0%} of all time"])]


def verify_resume(argv: list[str]) -> None:
    """`hftl verify-resume`: a short run of these settings, killed, resumed and compared with one left alone."""
    limit_spinning()
    if {"-h", "--help"} & set(argv):
        print("usage: hftl verify-resume [CONFIG.yaml] [--flag value ...]: the words of `hftl train`")
        return
    argv, accelerate_config = take_flag(argv, "--accelerate_config")
    for flag in ("--output_dir", "--resume_from_checkpoint"):
        if take_flag(argv, flag)[1] is not None:
            raise UserError(f"{flag} is not for verify-resume: it trains in a temporary folder.")
    configure_logging()
    quiet_libraries()
    from hftl.preview.verify_resume import verify_resume

    if not argv or argv[0].startswith("-"):
        names_data = any(word.startswith(("--dataset", "--train_file")) for word in argv)
        argv = argv if names_data else [str(default_config("wordnet.yaml")), *argv]
    print(verify_resume(argv, accelerate_config))
