"""Rows in, answers out, in their order: a window of rows is read, answered and written before the next is read."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm.auto import tqdm

from hftl.data.stream import Stream, open_stream
from hftl.errors import UserError
from hftl.inference.outputs import check_output, open_output
from hftl.inference.predictor import Predictor, change_data, find_source, load_network
from hftl.runtime.resources import explained_resources
from hftl.tasks.base import AnswerOptions


@dataclass(frozen=True)
class PredictRequest:
    """What `hftl predict` was asked.

    Attributes:
        model: as `hftl.inference.source.find_source` takes it.
        source: rows, as `hftl.data.stream.open_stream` takes them.
        output_file: .jsonl, .csv or .parquet; None for the standard output.
        options: what the answers look like.
        on_bad_rows: `error` or `skip`.
        keep_formulas: leave texts of a CSV file that a spreadsheet would compute.
        batch_size: None: chosen.
        revision: of a Hub model.
        data: columns and lengths that differ from those of training.
    """

    model: str
    source: str
    output_file: str | None = None
    options: AnswerOptions = AnswerOptions()
    on_bad_rows: str = "error"
    batch_size: int | None = None
    revision: str = "main"
    data: dict[str, Any] = field(default_factory=dict)
    keep_formulas: bool = False


@dataclass(frozen=True)
class PredictReport:
    """How many rows were answered, and in how many seconds; loading is not counted."""

    num_rows: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.num_rows:,} rows in {self.seconds:.1f} s: {self.num_rows / max(self.seconds, 1e-9):,.1f} a second"
        )


@explained_resources()
def predict(request: PredictRequest, *, lines: Iterable[str], stream: TextIO) -> PredictReport:
    """Answer every row of a source.

    Args:
        request: what is asked.
        lines: of the standard input, for the source `-`.
        stream: the standard output.

    Raises:
        UserError: a model, a source or a row is wrong; an output file is then not written.
    """
    check_output(request.output_file, request.source)
    source = change_data(find_source(request.model, request.revision), request.data)
    reads_words = "tags" in source.task.targets
    rows = open_stream(request.source, source.data, source.task.modality, lines, reads_words=reads_words)
    predictor = Predictor(load_network(source), batch_size=request.batch_size)
    names = predictor.choose_columns(rows.features, is_table=rows.is_table)
    started, count = time.perf_counter(), 0
    with (
        open_output(request.output_file, stream, keep_formulas=request.keep_formulas) as write,
        tqdm(total=rows.num_rows, desc="Predicting", unit="row", disable=None) as bar,
    ):
        for window, named in _read_windows(rows, list(names), predictor.window_size):
            columns = {names[name]: values for name, values in window.items()}
            answers = predictor.answer(
                columns, request.options, on_bad_rows=request.on_bad_rows, first=count, folder=rows.folder
            )
            write({**answers, **named})
            num_rows = len(answers["row_id"])
            count += num_rows
            bar.update(num_rows)
    if not count:
        raise UserError(f"{request.source} has no rows.")
    return PredictReport(count, time.perf_counter() - started)


def _read_windows(rows: Stream, names: list[str], size: int) -> Iterator[tuple[dict[str, list], dict[str, list]]]:
    """The input columns of each window, and the column that says where its rows come from."""
    extra = [rows.named_by] if rows.named_by else []
    for window in rows.read([*names, *extra], size):
        yield {name: window[name] for name in names}, {name: window[name] for name in extra}
