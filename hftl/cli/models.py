"""The verbs for a trained model: predict, evaluate, demo, export, merge, push."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from hftl.cli.words import Parser, configure_logging, prepare_libraries, print_lines, quiet_libraries
from hftl.errors import UserError

# Flags of `hftl train` that say how rows are read.
MODEL_DATA_FLAGS = ("text_columns", "image_column", "max_length", "dataset_config", "dataset_revision")


def predict(argv: list[str]) -> None:
    """`hftl predict MODEL INPUT`: what a trained network says of rows without labels, in their order."""
    parser = _model_parser("predict", predict)
    parser.add_argument(
        "input", help="csv, tsv, json(l), parquet, txt (a row a line), images, data set[:SPLIT], or - for lines"
    )
    parser.add_argument("--output_file", help=".jsonl, .csv or .parquet; default: a table, or JSON lines in a pipe")
    parser.add_argument("--keep_formulas", action="store_true", help="csv: no ' before texts that start with = + - @")
    parser.add_argument("--top_k", type=int, default=1, help="classes named for each row")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability of a label, where several may hold")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="of what a language model writes")
    parser.add_argument("--on_bad_rows", choices=("error", "skip"), default="error", help="skip: an empty answer")
    options = parser.parse_args(argv)
    prepare_libraries()
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
        options.keep_formulas,
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
    parser.add_argument("--label_column", nargs="+", help="default: as in training")
    parser.add_argument("--on_bad_rows", choices=("error", "skip"), help="default: as in training")
    parser.add_argument("--output_file", type=Path, help="all of it as JSON")
    options = parser.parse_args(argv)
    prepare_libraries()
    from hftl.inference.evaluation import evaluate as evaluate_rows
    from hftl.inference.predictor import load
    from hftl.records import write_json

    changes = {name: getattr(options, name) for name in (*MODEL_DATA_FLAGS, "label_column", "on_bad_rows")}
    batch_size = _batch_size(options.batch_size)
    predictor = load(options.model, revision=options.model_revision, batch_size=batch_size, **changes)
    evaluation = evaluate_rows(predictor, options.data)
    print_lines(evaluation.lines())
    if options.output_file:
        write_json(options.output_file, evaluation.as_dict())
        print(f"saved in {options.output_file}")


def demo(argv: list[str]) -> None:
    """`hftl demo MODEL [MODEL2]`: a page, on this machine alone, to try one model or two side by side."""
    parser = Parser(prog="hftl demo", description=demo.__doc__, allow_abbrev=False)
    parser.add_argument("model", help="run folder, checkpoint or adapter folder, Hub id, or bundled:NAME")
    parser.add_argument("model2", nargs="?", help="another that reads the same kind of input")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parser.parse_args(argv)
    prepare_libraries()
    from hftl.inference.demo import Demo
    from hftl.inference.predictor import load

    page = Demo([load(model) for model in (options.model, options.model2) if model], port=options.port)
    print(f"{page.url} (Ctrl-C stops it)", flush=True)
    page.wait()


def export(argv: list[str]) -> None:
    """`hftl export MODEL OUT`: a text or image classifier as ONNX, measured against the network on real rows."""
    parser = Parser(prog="hftl export", description=export.__doc__, allow_abbrev=False)
    parser.add_argument("model", help="run folder, checkpoint or adapter folder, Hub id, or bundled:NAME")
    parser.add_argument("out", type=Path, help="new folder for model.onnx, configuration and processor")
    parser.add_argument("--format", choices=("onnx",), default="onnx")
    parser.add_argument("--quantize", choices=("none", "int8"), default="none", help="int8: model_int8.onnx as well")
    parser.add_argument("--data", help="rows with labels to ask; default: the test rows of the run")
    parser.add_argument("--tolerance", type=float, help="largest change of a logit, in units of the logits' spread")
    parser.add_argument("--model_revision", default="main", help="revision of a Hub model")
    options = parser.parse_args(argv)
    prepare_libraries()
    from hftl.inference.export import TOLERANCE, export_onnx
    from hftl.inference.predictor import load

    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    predictor = load(options.model, revision=options.model_revision)
    report = export_onnx(predictor, options.out, quantize=options.quantize, data=options.data, tolerance=tolerance)
    print_lines(f"{name}: {difference}" for name, difference in report.items())
    print(f"saved in {options.out}")


def merge(argv: list[str]) -> None:
    """`hftl merge RUN OUT`: a plain checkpoint from an adapter, measured against it."""
    parser = Parser(prog="hftl merge", description=merge.__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder of --mode peft")
    parser.add_argument("out", type=Path, help="new folder for the checkpoint")
    parser.add_argument("--tolerance", type=float, help="largest change of a logit, in units of the logits' spread")
    options = parser.parse_args(argv)
    configure_logging()
    from hftl.merge import TOLERANCE, merge_run

    quiet_libraries()
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    print(merge_run(options.run, options.out, tolerance=tolerance))
    print(f"saved in {options.out}")


def push(argv: list[str]) -> None:
    """`hftl push RUN --repo_id ORG/NAME`: publish a run, or with --report alone a comparison."""
    options = _parse_push(argv)
    configure_logging()
    from hftl.hub.push import Publication, push_run, resume_push
    from hftl.hub.space import push_report

    quiet_libraries()
    if options.resume:
        address = resume_push(options.run, print)
    elif options.run is None:
        flags = {"public": options.public, "dry_run": options.dry_run, "share_rows": options.share_rows}
        address = push_report(options.report, options.repo_id, say=print, **flags)
    else:
        if options.share_rows:
            print("--share_rows changes nothing: what a push of a run sends quotes no rows in any case")
        names = ("repo_id", "public", "revision", "create_pr", "merge", "include_base", "subfolder")
        report = str(options.report.absolute()) if options.report else None
        publication = Publication(**{name: getattr(options, name) for name in names}, report=report)
        address = push_run(options.run, publication, dry_run=options.dry_run, say=print)
    if address:
        print(f"pushed to {address}")


def _model_parser(verb: str, function: Callable) -> Parser:
    """What every verb takes that asks a trained network."""
    parser = Parser(prog=f"hftl {verb}", description=function.__doc__, allow_abbrev=False)
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


def _parse_push(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="hftl push", description=push.__doc__, allow_abbrev=False)
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
    parser.add_argument("--share_rows", action="store_true", help="of --report: show errors, which may quote rows")
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
