"""The command line: `hftl VERB ...`. Heavy modules are imported inside the verb that needs them."""

import argparse
import json
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hftl import __version__
from hftl.collector import importing
from hftl.errors import (
    Interrupted,
    OutOfResources,
    PublishError,
    ResumeDiffers,
    TrainingDiverged,
    UserError,
    unknown_name,
)

USAGE = f"""hftl {__version__}: fine-tune, adapt or train from scratch, and compare honestly.

usage: hftl VERB [CONFIG.yaml] [--flag value ...]

verbs:
  train    --mode full|peft|scratch|probe: train one model, evaluate it, leave a run folder; the baselines
           majority|prior|tfidf|knn are run in the same way
  compare  [EXPERIMENT.yaml]: run every arm on a ladder of label numbers and say which wins; without a file, an example
  report   FOLDER: write the report of a comparison again from what its folder holds
  verify-resume [CONFIG.yaml]: kill a short run of these settings, resume it, and compare it with one left alone
  estimate [CONFIG.yaml]: memory, operations, seconds and money of every mode, and what fits (--gpu h100)
  audit    find duplicates, leaks, contradicting labels and more in the data of a run; takes the data flags of train
  adapters list the methods of --mode peft
  predict  MODEL INPUT: answer rows of a file, a folder, a data set or the standard input
  evaluate MODEL DATA: the metrics of a trained model on data with labels, with intervals, beside those of its run
  demo     MODEL [MODEL2]: a page on this machine to try a model by hand, or two beside each other
  export   MODEL OUT: a text or image classifier as ONNX, checked against it on real rows; --quantize int8
  push     RUN --repo_id ORG/NAME: publish a run, after a fresh process has loaded it and found the same answers
  merge    RUN OUT: fold the adapter of a run into the weights, check that the answers stay, leave a plain checkpoint

examples:
  hftl train --mode peft
  hftl train --mode full --train_file train.csv --test_file test.csv --model_name_or_path bundled:minilm-l6
  hftl train --mode peft --accelerate_config accelerate_configs/multi_gpu.yaml my.yaml
  hftl compare
  hftl compare my-experiment.yaml --dry-run

`hftl train --help` lists every flag; every transformers.TrainingArguments flag works by its own name.
`hftl compare --help` lists those of a comparison."""

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hftl.records import RunRecord

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    0 ok, 1 a resumed run differs, 2 bad input, 3 diverged, 4 out of memory or disk, 5 not published,
    75 stopped and resumable.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # compiled code of the Hub, which `kernels` would fetch and run
    verb, *rest = words
    if verb not in VERBS:
        return guarded(_raise_unknown_verb, verb)
    return guarded(VERBS[verb], rest)


def _raise_unknown_verb(verb: str) -> None:
    raise unknown_name("verb", verb, VERBS)


def guarded(function: Callable, *args: object) -> int:
    """Call `function`; a user's mistake becomes one message and an exit code instead of a traceback."""
    try:
        function(*args)
    except (UserError, TrainingDiverged, OutOfResources, PublishError, Interrupted, ResumeDiffers) as error:
        if not isinstance(error, Interrupted) or os.environ.get("RANK", "0") == "0":  # which comes to all alike
            from hftl.records import redact

            print(redact(f"hftl: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hftl: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def train(argv: list[str]) -> None:
    """`hftl train`: the recipes' work, with the mode as a flag."""
    argv, accelerate_config = _take_flag(argv, "--accelerate_config")
    if accelerate_config is not None:
        _launch(accelerate_config, argv)
    run_recipe(argv=argv)


def _take_flag(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in (flag, flag.replace("_", "-")):
            if equals:
                return argv[:index] + argv[index + 1 :], value
            if index + 1 == len(argv):
                raise UserError(f"{flag} needs a file.")
            return argv[:index] + argv[index + 2 :], argv[index + 1]
    return argv, None


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
    started = _process_start()
    os.environ.setdefault("GOMP_SPINCOUNT", "0")  # before torch: spinning threads are up to 13x slower on a busy CPU
    _configure_logging()
    with importing():
        from hftl.config import parse_args

    args = parse_args(argv, default_config=default_config("wordnet.yaml"), mode=mode, settings=settings)
    with importing():
        import hftl.run  # noqa: F401 - which the next import would do later, within the run
        from hftl.api import train_parsed

    _quiet_libraries()
    try:
        record = train_parsed(args, started=started, ends_on_signal=True)
    except Interrupted as error:
        raise Interrupted(f"{error} {_advise_to_go_on(argv, mode, args.training)}") from None
    if args.training.process_index == 0:
        print(_summarize(record, args.training.output_dir))


def _advise_to_go_on(argv: Sequence[str] | None, mode: str | None, training: "TrainingArguments") -> str:
    words = list(sys.argv[1:] if argv is None else argv)
    for flag in ("--output_dir", "--resume_from_checkpoint"):
        words, _ = _take_flag(words, flag)
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


def _summarize_speed(cost: dict) -> list[str]:
    if not cost.get("num_examples_seen") or not cost.get("examples_per_second"):  # a baseline, or a probe
        return []
    parts = [f"{cost['examples_per_second']:,.0f} examples/s"]
    if cost["tokens_per_second"]:
        parts.append(f"{cost['tokens_per_second']:,.0f} tokens/s without padding ({cost['padding_fraction']:.0%})")
    if cost["mfu"]:
        parts.append(f"MFU {cost['mfu']:.0%}")
    return [", ".join([*parts, f"waiting for data {cost['data_wait_share']:.0%} of all time"])]


def compare(argv: list[str]) -> None:
    """`hftl compare`: run what is missing of an experiment and write its report."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    options = _parse_compare(argv)
    _configure_logging()
    with importing():
        from hftl.compare import study

    _quiet_libraries()
    file = Path(options.file or default_config("compare-wordnet-quick.yaml"))
    folder = Path(options.output_dir or Path("runs") / file.stem)
    names = ("jobs", "engine", "keep_models", "accelerate_config")
    command = shlex.join(["hftl", "compare", *argv])
    campaign = study.open_study(
        study.StudyOptions(file, folder, command=command, **{name: getattr(options, name) for name in names})
    )
    if options.status:
        _print_lines(study.describe_status(campaign))
        return
    if options.dry_run:
        _print_lines(study.predict_study(campaign).lines())
        return
    print(
        f"{campaign.experiment.name}: {study.describe_data(campaign.facts)}; {campaign.num_workers} cells side by side"
    )
    try:
        study.run_study(campaign, command)
    finally:  # a campaign that is cut short has a report too, which says what is missing
        if (folder / "results.json").is_file():
            _print_verdict(folder)


def report(argv: list[str]) -> None:
    """`hftl report`: the report again, from `results.json`."""
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print("usage: hftl report FOLDER\n\nFOLDER: what `hftl compare --output_dir FOLDER` wrote.")
        if len(argv) != 1:
            raise UserError("Give one folder of a comparison.")
        return
    _print_verdict(Path(argv[0]))


def verify_resume(argv: list[str]) -> None:
    """`hftl verify-resume`: a short run of these settings, killed, resumed and compared with one left alone."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    if {"-h", "--help"} & set(argv):
        print("usage: hftl verify-resume [CONFIG.yaml] [--flag value ...]: the words of `hftl train`")
        return
    argv, accelerate_config = _take_flag(argv, "--accelerate_config")
    for flag in ("--output_dir", "--resume_from_checkpoint"):
        if _take_flag(argv, flag)[1] is not None:
            raise UserError(f"{flag} is not for verify-resume: it trains in a temporary folder.")
    _configure_logging()
    _quiet_libraries()
    from hftl.resuming.verify import verify_resume

    if not argv or argv[0].startswith("-"):
        names_data = any(word.startswith(("--dataset", "--train_file")) for word in argv)
        argv = argv if names_data else [str(default_config("wordnet.yaml")), *argv]
    print(verify_resume(argv, accelerate_config))


def estimate(argv: list[str]) -> None:
    """`hftl estimate`: what each mode would take of memory, time and money; exit code 2 if it cannot fit."""
    if {"-h", "--help"} & set(argv) or not argv:
        print("usage: hftl estimate [CONFIG.yaml] [--flag value ...] [--gpu h100] [--probe] [--output_file FILE.json]")
        print("The words of `hftl train`; of the model nothing but its configuration is read. docs/cost.md says more.")
        return
    argv, gpu = _take_flag(argv, "--gpu")
    argv, output = _take_flag(argv, "--output_file")
    is_probed, argv = "--probe" in argv, [word for word in argv if word != "--probe"]
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    from hftl.config import parse_args

    args = parse_args(argv)
    from hftl.estimation.estimate import as_dict, check_chosen
    from hftl.estimation.estimate import estimate as estimate_modes
    from hftl.estimation.render import render, render_probe

    _quiet_libraries()
    if is_probed and args.model.mode is None:
        raise UserError("--probe makes steps of one mode: give --mode.")
    found = estimate_modes(args, gpu)
    _print_lines(render(found))
    content = as_dict(found)
    if is_probed:
        from hftl.estimation.probe import probe

        measured = probe(argv, args)
        content["probe"] = {"seconds": measured.seconds, "memory": measured.memory}
        _print_lines(render_probe(found, measured.seconds, measured.memory))
    if output is not None:
        Path(output).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"saved in {output}")
    check_chosen(found)


def audit(argv: list[str]) -> None:
    """`hftl audit`: what is wrong with the data of a run; exit code 2 if it would be refused."""
    argv, output = _take_flag(argv, "--output_file")
    if not argv:
        raise UserError("Name the data as for `hftl train`: a .yaml file, --dataset or --train_file.")
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # what is found is in the report
    from hftl.config import parse_args

    args = parse_args(argv)
    from hftl.audit import audit_data, refuse_errors, render_audit, write_audit

    _quiet_libraries()
    report = audit_data(args)
    _print_lines(render_audit(report))
    if output is not None:
        write_audit(report, Path(output))
        print(f"saved in {output}")
    refuse_errors(report)


def adapters(argv: list[str]) -> None:
    """`hftl adapters`: the methods of --mode peft, what each changes, its rate and where it comes from."""
    if argv:
        print("usage: hftl adapters")
        if argv[0] not in ("-h", "--help"):
            raise UserError("`hftl adapters` takes no words.")
        return
    from hftl.models.adapters import describe_adapters

    table = describe_adapters()
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def merge(argv: list[str]) -> None:
    """`hftl merge RUN OUT`: a plain checkpoint from an adapter, measured against it."""
    parser = _Parser(prog="hftl merge", description=merge.__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder of --mode peft")
    parser.add_argument("out", type=Path, help="new folder for the checkpoint")
    parser.add_argument("--tolerance", type=float, help="largest change of a logit, in units of the logits' spread")
    options = parser.parse_args(argv)
    _configure_logging()
    from hftl.merge import TOLERANCE, merge_run

    _quiet_libraries()
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    print(merge_run(options.run, options.out, tolerance=tolerance))
    print(f"saved in {options.out}")


def predict(argv: list[str]) -> None:
    """`hftl predict MODEL INPUT`: what a trained network says of rows without labels, in their order."""
    parser = _model_parser("predict", predict)
    parser.add_argument(
        "input", help="csv, tsv, json(l), parquet, txt (a row a line), images, data set[:SPLIT], or - for lines"
    )
    parser.add_argument("--output_file", help=".jsonl, .csv or .parquet; default: a table, or JSON lines in a pipe")
    parser.add_argument("--top_k", type=int, default=1, help="classes named for each row")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability of a label, where several may hold")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="of what a language model writes")
    parser.add_argument("--on_bad_rows", choices=("error", "skip"), default="error", help="skip: an empty answer")
    options = parser.parse_args(argv)
    _prepare_libraries()
    from hftl.inference.predict import PredictRequest
    from hftl.inference.predict import predict as predict_rows
    from hftl.tasks.base import AnswerOptions

    request = PredictRequest(
        options.model,
        options.input,
        options.output_file,
        AnswerOptions(options.top_k, options.threshold, options.max_new_tokens),
        options.on_bad_rows,
        _batch_size(options.batch_size),
        options.model_revision,
        {name: getattr(options, name) for name in MODEL_DATA_FLAGS},
    )
    try:
        print(predict_rows(request, lines=sys.stdin, stream=sys.stdout), file=sys.stderr)
    except BrokenPipeError:  # `| head` has what it wants; Python would complain once more when it closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def evaluate(argv: list[str]) -> None:
    """`hftl evaluate MODEL DATA`: the metrics of a trained network on data with labels, beside those of its run."""
    parser = _model_parser("evaluate", evaluate)
    parser.add_argument(
        "data", help="file, folder, Hub id or bundled:NAME, with :SPLIT; default: test or the only one"
    )
    parser.add_argument("--label_column", help="default: as in training")
    parser.add_argument("--output_file", type=Path, help="all of it as JSON")
    options = parser.parse_args(argv)
    _prepare_libraries()
    from hftl.inference.evaluation import evaluate as evaluate_rows
    from hftl.inference.predictor import load
    from hftl.records import write_json

    changes = {name: getattr(options, name) for name in (*MODEL_DATA_FLAGS, "label_column")}
    batch_size = _batch_size(options.batch_size)
    predictor = load(options.model, revision=options.model_revision, batch_size=batch_size, **changes)
    evaluation = evaluate_rows(predictor, options.data)
    _print_lines(evaluation.lines())
    if options.output_file:
        write_json(options.output_file, evaluation.as_dict())
        print(f"saved in {options.output_file}")


def demo(argv: list[str]) -> None:
    """`hftl demo MODEL [MODEL2]`: a page, on this machine alone, to try one model or two side by side."""
    parser = _Parser(prog="hftl demo", description=demo.__doc__, allow_abbrev=False)
    parser.add_argument("model", help="run folder, checkpoint or adapter folder, Hub id, or bundled:NAME")
    parser.add_argument("model2", nargs="?", help="another that reads the same kind of input")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parser.parse_args(argv)
    _prepare_libraries()
    from hftl.inference.demo import Demo
    from hftl.inference.predictor import load

    page = Demo([load(model) for model in (options.model, options.model2) if model], port=options.port)
    print(f"{page.url} (Ctrl-C stops it)", flush=True)
    page.wait()


def export(argv: list[str]) -> None:
    """`hftl export MODEL OUT`: a text or image classifier as ONNX, measured against the network on real rows."""
    parser = _Parser(prog="hftl export", description=export.__doc__, allow_abbrev=False)
    parser.add_argument("model", help="run folder, checkpoint or adapter folder, Hub id, or bundled:NAME")
    parser.add_argument("out", type=Path, help="new folder for model.onnx, configuration and processor")
    parser.add_argument("--format", choices=("onnx",), default="onnx")
    parser.add_argument("--quantize", choices=("none", "int8"), default="none", help="int8: model_int8.onnx as well")
    parser.add_argument("--data", help="rows with labels to ask; default: the test rows of the run")
    parser.add_argument("--tolerance", type=float, help="largest change of a logit, in units of the logits' spread")
    parser.add_argument("--model_revision", default="main", help="revision of a Hub model")
    options = parser.parse_args(argv)
    _prepare_libraries()
    from hftl.inference.export import TOLERANCE, export_onnx
    from hftl.inference.predictor import load

    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    predictor = load(options.model, revision=options.model_revision)
    report = export_onnx(predictor, options.out, quantize=options.quantize, data=options.data, tolerance=tolerance)
    _print_lines(f"{name}: {difference}" for name, difference in report.items())
    print(f"saved in {options.out}")


# Flags of `hftl train` that say how rows are read.
MODEL_DATA_FLAGS = ("text_columns", "image_column", "max_length", "dataset_config", "dataset_revision")


def _model_parser(verb: str, function: Callable) -> "_Parser":
    """What every verb takes that asks a trained network."""
    parser = _Parser(prog=f"hftl {verb}", description=function.__doc__, allow_abbrev=False)
    parser.add_argument("model", help="run folder, checkpoint or adapter folder, Hub id, or bundled:NAME")
    parser.add_argument("--model_revision", default="main", help="revision of a Hub model")
    parser.add_argument("--batch_size", default="auto", help="rows a pass; default: auto")
    parser.add_argument("--text_columns", nargs="+", help="default: as in training")
    parser.add_argument("--image_column", help="default: as in training")
    parser.add_argument("--max_length", type=int, help="longest text in tokens; default: as in training")
    parser.add_argument("--dataset_config", help="configuration name of a Hub data set")
    parser.add_argument("--dataset_revision", help="revision of a Hub data set")
    return parser


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit():
        raise UserError(f"--batch_size is {text!r}; give a number of rows, or auto.")
    return int(text)


def _prepare_libraries() -> None:
    """For verbs that compute: threads that do not spin, logs of ours alone."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    _configure_logging()
    _quiet_libraries()


def push(argv: list[str]) -> None:
    """`hftl push RUN --repo_id ORG/NAME`: publish a run, or with --report alone a comparison."""
    options = _parse_push(argv)
    _configure_logging()
    from hftl.hub.push import Publication, push_run, resume_push
    from hftl.hub.space import push_report

    _quiet_libraries()
    if options.resume:
        address = resume_push(options.run, print)
    elif options.run is None:
        flags = {"public": options.public, "dry_run": options.dry_run}
        address = push_report(options.report, options.repo_id, say=print, **flags)
    else:
        names = ("repo_id", "public", "revision", "create_pr", "merge", "include_base", "subfolder")
        report = str(options.report.absolute()) if options.report else None
        publication = Publication(**{name: getattr(options, name) for name in names}, report=report)
        address = push_run(options.run, publication, dry_run=options.dry_run, say=print)
    if address:
        print(f"pushed to {address}")


def _parse_push(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="hftl push", description=push.__doc__, allow_abbrev=False)
    parser.add_argument("run", nargs="?", type=Path, help="run folder")
    parser.add_argument("--repo_id", help="ORG/NAME; made, private, if it is not there")
    parser.add_argument("--public", action="store_true", help="let everybody see it")
    parser.add_argument("--revision", default="main", help="branch; made, without other files, if it is not there")
    parser.add_argument("--create_pr", action="store_true", help="propose the files in a pull request")
    parser.add_argument("--merge", action="store_true", help="fold the adapter into the weights first")
    parser.add_argument("--include_base", action="store_true", help="send a base that only you have to ORG/NAME-base")
    parser.add_argument("--subfolder", default="", help="of the repository, for several runs in one")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="list files and card, touch no network")
    parser.add_argument("--resume", action="store_true", help="go on with a push of this run that did not end")
    parser.add_argument("--report", type=Path, help="folder of hftl compare: as a Space, or for the card of RUN")
    if (word := next((word for word in argv if word.startswith(("--token", "--hub_token"))), None)) is not None:
        name = word.partition("=")[0]
        raise UserError(f"{name} would end in lists of processes. Set HF_TOKEN, or log in with `hf auth login`.")
    options = parser.parse_args(argv)
    if options.run is None and (options.report is None or options.resume):
        raise UserError("Give the folder of a run, or --report with the folder of a comparison.")
    if options.repo_id is None and not options.resume:
        raise UserError("Give --repo_id ORG/NAME: your user name or organization, then the name.")
    return options


def _print_verdict(folder: Path) -> None:
    import json

    from hftl.report.html import write_report

    page = write_report(folder)
    verdict = json.loads((folder / "results.json").read_text(encoding="utf-8"))["verdict"]
    print("\n".join(["", verdict["headline"], *(f"  {line}" for line in verdict["lines"])]))
    if verdict["next_experiment"]:
        print(f"  Next: {verdict['next_experiment']}")
    print(f"report: {page}")


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _parse_compare(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="hftl compare", description=compare.__doc__, allow_abbrev=False)
    parser.add_argument("file", nargs="?", help="experiment file (.yaml); default: an example on bundled text")
    parser.add_argument("--output_dir", help="campaign folder; default: runs/NAME; the same folder goes on")
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="time a few steps of each arm, predict all"
    )
    parser.add_argument("--status", action="store_true", help="say how far the campaign is, run nothing")
    parser.add_argument("--jobs", type=int, help="cells side by side; default: one on each accelerator or core")
    parser.add_argument("--engine", default="local", help="local, or ray for a cluster with a shared folder")
    parser.add_argument("--keep_models", action="store_true", help="keep the weights of every cell")
    parser.add_argument("--accelerate_config", help="start each cell by `accelerate launch` with this file")
    return parser.parse_args(argv)


class _Parser(argparse.ArgumentParser):
    """Mistakes are errors like all others; an unknown flag gets the nearest one named."""

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2]
        if unknown.startswith("--"):
            raise unknown_name("flag", unknown.split()[0].split("=")[0], self._option_string_actions)
        raise UserError(message)


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


def default_config(name: str) -> Path:
    """A shipped configuration, in the wheel or in a checkout."""
    inside = Path(__file__).parent / "recipes" / "configs" / name
    return inside if inside.is_file() else Path(__file__).parent.parent / "recipes" / "configs" / name


def _process_start() -> float:
    import psutil

    return min(time.time(), psutil.Process().create_time())


def _configure_logging() -> None:
    """Our own messages in full; of the libraries, errors only, and progress bars where somebody watches."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("hftl").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of kernels that only 4-bit weights would use
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def _quiet_libraries() -> None:
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "compare": compare,
    "report": report,
    "verify-resume": verify_resume,
    "estimate": estimate,
    "audit": audit,
    "adapters": adapters,
    "predict": predict,
    "evaluate": evaluate,
    "demo": demo,
    "export": export,
    "merge": merge,
    "push": push,
}
