"""How does the time to read a table grow with its size? It has to be linear, whatever the file holds.

    python -m benchmarks.reading         # about a minute on one core; writes benchmarks/results/reading.json

Seconds of CPU, the least of three, for files of 125 kB to 1 MB (rows, blank lines, blanks, quotation marks) and for
tables of 250 to 2,000 columns, as training reads them (`load_splits`) and as prediction does (`open_stream`). The
exponent is the slope of the logarithms: 1 is linear, 2 quadratic.
"""

import contextlib
import gc
import json
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import datasets
import numpy as np

from hftl.config import DataArguments
from hftl.data.load import load_splits
from hftl.data.stream import open_stream
from hftl.errors import UserError
from hftl.records import describe_environment

RESULT = Path(__file__).parent / "results" / "reading.json"
SIZES = (125_000, 250_000, 500_000, 1_000_000)
WIDTHS = (250, 500, 1000, 2000)
HEADER, ROW = "text,label\n", "some words of a text,animal\n"
# Name of the file and what it holds at a size in bytes.
CONTENTS: dict[str, tuple[str, Callable[[int], str]]] = {
    "rows": ("a.csv", lambda size: HEADER + ROW * (size // len(ROW))),
    "quoted rows": ("a.csv", lambda size: HEADER + '"a, ""b""\nc",x\n' * (size // 15)),
    "blank lines": ("a.csv", lambda size: HEADER + "\n" * size + ROW),
    "blank lines of JSON": ("a.jsonl", lambda size: "\n" * size + '{"text": "a"}\n'),
    "blanks of JSON": ("a.jsonl", lambda size: " " * size + '\n{"text": "a"}\n'),
    "a text that never ends": ("a.json", lambda size: '{"a": "' + "[" * 200 + '\\"' * (size // 2)),
    "quotation marks": ("a.tsv", lambda size: "text\tlabel\n" + '"a\tx\n' * (size // 5)),
}


def write_wide(folder: Path, width: int, ending: str) -> Path:
    """16 rows of so many columns."""
    rows = [{"text": f"text {k}", "label": "ab"[k % 2]} | {f"f{i}": k + i for i in range(width)} for k in range(16)]
    path = folder / f"wide.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [list(rows[0]), *(map(str, row.values()) for row in rows)]
        path.write_text("".join(",".join(line) + "\n" for line in lines))
    return path


def read_splits(path: Path) -> None:
    """As training does, with the table as two splits."""
    load_splits(DataArguments(train_file=str(path), test_file=str(path)))


def read_stream(path: Path) -> None:
    """As prediction does."""
    stream = open_stream(str(path), DataArguments(), "text")
    for _ in stream.read(list(stream.features)[:1], 1000):
        pass


def time_reading(read: Callable[[Path], None], path: Path, repeats: int = 3) -> float:
    """Seconds of CPU, the least of some; a file may be refused."""
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        with contextlib.suppress(UserError):
            read(path)
        seconds.append(time.process_time() - begun)
    return min(seconds)


def fit_exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of the logarithms; what takes less than a millisecond is as good as one."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(seconds, 1e-3)), 1)[0])


def measure(read: Callable[[Path], None], sizes: tuple[int, ...], write: Callable[[int], Path]) -> dict[str, object]:
    """Seconds at each size, and their exponent."""
    seconds = [time_reading(read, write(size)) for size in sizes]
    return {
        "seconds": dict(zip(map(str, sizes), [round(s, 4) for s in seconds], strict=True)),
        "exponent": round(fit_exponent(list(sizes), seconds), 2),
    }


def measure_all(folder: Path) -> dict[str, dict]:
    """Every kind of file, read both ways."""
    found: dict[str, dict] = {}
    for way, read in (("load_splits", read_splits), ("open_stream", read_stream)):
        for kind, (name, build) in CONTENTS.items():

            def write(size: int, path: Path = folder / name, build: Callable[[int], str] = build) -> Path:
                path.write_text(build(size))
                return path

            found[f"{way}, {kind}"] = measure(read, SIZES, write)
        for ending in ("csv", "jsonl"):
            found[f"{way}, columns of {ending}"] = measure(
                read, WIDTHS, lambda width, ending=ending: write_wide(folder, width, ending)
            )
    return found


def main() -> None:
    """Measure, print and write the results."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        read_splits(write_wide(Path(folder), 10, "csv"))  # what is loaded once
        gc.collect()
        gc.freeze()  # a collection of all that was imported takes 0.3 s, at whatever size it comes
        found = measure_all(Path(folder))
    for name, values in found.items():
        print(f"{name:45} {values['exponent']:5.2f}  {list(values['seconds'].values())}")
    content = {"date": date.today().isoformat(), "environment": describe_environment(), "measured": found}
    RESULT.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
