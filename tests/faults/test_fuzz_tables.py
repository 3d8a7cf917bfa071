"""Tables in every dialect: what was meant is read by train, audit, predict and evaluate alike, or there is a reason.

Rows are made first and written afterwards, so that what a right reading is does not depend on a reader.
"""

import gzip
import io
import json
import re
import tempfile
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tests.faults.readings import VERBS, Reader, Refused, fuzz, own_caches, same

WORDS = ("cat", "dog", "rain", "snow", "the", "very", "of", "run")
MARKS = (
    *('"', '""', "'", ",", ", ", ";", "|", "\t", "\\", "#", "=1+1", "-", "//", "<b>", "%", "`", "{}", "[]", "[1, 2]"),
    *("NA", "N/A", "null", "None", "nan", "NULL", "True", "007", "1.50", "1e5", "-1", "2020-01-01", "0x1F"),
    *("é", "e\u0301", "ü", "漢字", "😀", "\u00a0", "\u2028", "\x85", "\u200b", "\x0b", "\x1c", "ß", "’"),
)
BREAKS = ("\n", "\r\n", "\n\n", "\r")
NUMBERED = tuple(str(number) for number in range(100, 140))


@st.composite
def texts(draw, has_breaks):
    """Mostly words; marks anywhere, at the start and the end above all."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(MARKS))
    parts = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
    for _ in range(draw(st.integers(0, 2))):
        mark = draw(st.sampled_from(MARKS + (BREAKS if has_breaks else ())))
        parts.insert(draw(st.integers(0, len(parts))), mark)
    return draw(st.sampled_from((" ", " ", ""))).join(parts)


ONE_HOT = ("cat", "dog", "bird")
LABEL_KINDS = {
    "words": ("cat", "dog", "big bird", "ice-cream"),
    "nulls": ("NA", "None", "null", "nan"),
    "odd": ("é", "no, thanks", 'the "old"', "a;b"),
    "spelled": ("Caf\u00e9", "tea ", "Cafe\u0301", " tea", "tea"),
    "padded": ("01", "02", "10"),
    "digits": ("1", "2", "10"),
    "integers": (0, 1, 2, 7),
    "bools": (True, False),
    "wholes": (0.0, 1.0, 2.0),
    "values": (0.5, 1.25, -3.0, 2.0),
    "columns": (("cat", "dog"), ("cat",), ("dog", "bird"), ("cat", "dog", "bird")),
    "lists": (("cat", "dog"), ("cat",), ("dog", "bird"), ("cat", "dog", "bird")),
}


def clean(name: str) -> str:
    """A label without what nobody can see."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def agrees(found: Any, meant: Any) -> bool:
    """Whether a label that was read is the one that was meant."""
    if isinstance(meant, tuple):
        return found == frozenset(map(clean, meant))
    if isinstance(meant, bool):
        return str(found).casefold() in (str(meant).casefold(), str(int(meant)))
    if isinstance(meant, (int, float)):
        try:
            return float(found) == float(meant)
        except (TypeError, ValueError):
            return False
    return found == clean(meant)


@dataclass
class File:
    """How a split is written, and why it may be refused.

    Attributes:
        kind: csv, tsv, json, jsonl, parquet.
        style: what the dialect is, for messages.
    """

    kind: str
    style: dict[str, Any]
    excuses: list[str] = field(default_factory=list)

    @property
    def ending(self) -> str:
        return f".{self.kind}{'.gz' if self.style.get('gz') else ''}"


@dataclass
class Table:
    """Rows of all splits, the names of their columns, and a file for each split."""

    rows: dict[str, list[tuple[str, Any]]]
    text: str
    label: str
    extras: dict[str, list[str]]
    files: dict[str, File]
    flags: list[str]
    label_kind: str
    excuses: list[str]
    is_folder: bool = False

    def write(self, folder: Path, split: str, *, with_labels: bool = True) -> Path:
        file = self.files[split]
        path = folder / f"{split}{'' if with_labels else '-unlabelled'}{file.ending}"
        columns: dict[str, list] = {self.text: [text for text, _ in self.rows[split]]}
        if with_labels and self.label_kind == "columns":
            columns |= {name: [int(name in label) for _, label in self.rows[split]] for name in ONE_HOT}
        elif with_labels:
            columns[self.label] = [label for _, label in self.rows[split]]
        for name in self.extras[split]:
            columns[name] = [f"{name} {place}" if place % 3 else "" for place in range(len(self.rows[split]))]
        order = sorted(columns, key=lambda name: (hash_of(name, file.style["order"]), name))
        columns = {name: columns[name] for name in order}
        data = WRITERS[file.kind](columns, file.style)
        path.write_bytes(gzip.compress(data) if file.style.get("gz") else data)
        return path


def hash_of(name: str, order: int) -> int:
    return sum(map(ord, name)) * (2 * order + 1) % 7


def write_delimited(columns: dict[str, list], style: dict[str, Any]) -> bytes:
    names = [style["header"].format(name) for name in columns]
    rows = [[as_cell(value, style) for value in row] for row in zip(*columns.values(), strict=True)]
    if style["index"]:
        names, rows = ["", *names], [[str(place), *row] for place, row in enumerate(rows)]
    out = io.StringIO(newline="")
    if style["sep_line"]:
        out.write(f"sep={style['separator']}{style['end']}")
    if style["quoting"] == "none":
        for row in [names, *rows]:
            out.write(style["separator"].join(row) + style["end"])
    else:
        out.writelines(style["separator"].join(quote(c, style) for c in row) + style["end"] for row in [names, *rows])
    text = out.getvalue() + style["tail"] * style["end"]
    return text.encode(style["encoding"])


def quote(cell: str, style: dict[str, Any]) -> str:
    """RFC 4180; or with backslashes in front of quotation marks, within others or in place of them."""
    if style["quoting"] == "escaped":
        return re.sub(rf'(["\n\r{re.escape(style["separator"])}])', r"\\\1", cell)
    if style["quoting"] != "all" and not any(mark in cell for mark in (style["separator"], '"', "\n", "\r")):
        return cell
    return '"' + cell.replace('"', '\\"' if style["quoting"] == "backslash" else '""') + '"'


def as_cell(value: Any, style: dict[str, Any]) -> str:
    if isinstance(value, tuple):
        return style["list"](list(value))
    return str(value)


def write_json(columns: dict[str, list], style: dict[str, Any]) -> bytes:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if style["drops_empty"]:
        rows = [{name: value for name, value in row.items() if value != ""} for row in rows]
    content: Any = rows if style["wrap"] is None else {style["wrap"]: rows}
    content = columns if style["wrap"] == "columns" else content
    return json.dumps(content, indent=style["indent"], ensure_ascii=style["ascii"]).encode(style["encoding"])


def write_jsonl(columns: dict[str, list], style: dict[str, Any]) -> bytes:
    rows = json.loads(write_json(columns, style | {"indent": None, "encoding": "utf-8"}))
    lines = [json.dumps(row, ensure_ascii=style["ascii"]) for row in rows]
    return (style["end"].join(lines) + style["tail"] * style["end"]).encode(style["encoding"])


def write_parquet(columns: dict[str, list], style: dict[str, Any]) -> bytes:
    arrays = {}
    for name, values in columns.items():
        values = [list(value) if isinstance(value, tuple) else value for value in values]
        array = pa.array(values)
        if pa.types.is_string(array.type) and style["strings"] == "large":
            array = array.cast(pa.large_string())
        if pa.types.is_string(array.type) and style["strings"] == "dictionary":
            array = array.dictionary_encode()
        if pa.types.is_integer(array.type):
            array = array.cast(style["integers"])
        if pa.types.is_floating(array.type):
            array = array.cast(style["decimals"])
        arrays[name] = array
    out = io.BytesIO()
    pq.write_table(pa.table(arrays), out, row_group_size=style["group"])
    return out.getvalue()


WRITERS = {
    "csv": write_delimited,
    "tsv": write_delimited,
    "json": write_json,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@st.composite
def files(draw, rows):
    kind = draw(st.sampled_from(("csv", "csv", "csv", "tsv", "tsv", "json", "jsonl", "parquet")))
    style: dict[str, Any] = {"order": draw(st.integers(0, 6)), "gz": kind != "parquet" and draw(chance(8))}
    if kind == "parquet":
        style["strings"] = draw(st.sampled_from(("plain", "plain", "large", "dictionary")))
        style["integers"] = draw(st.sampled_from((pa.int64(), pa.int8(), pa.uint16())))
        style["decimals"] = draw(st.sampled_from((pa.float64(), pa.float32())))
        style["group"] = draw(st.sampled_from((1, 4, 100)))
        return File(kind, style)
    style["encoding"] = draw(st.sampled_from(("utf-8",) * 16 + ("utf-8-sig", "utf-8-sig", "utf-16", "cp1252")))
    style["end"] = draw(st.sampled_from(("\n", "\n", "\r\n")))
    style["tail"] = draw(st.sampled_from((0, 0, 0, 1, 3)))
    file = File(kind, style)
    if kind in ("json", "jsonl"):
        style["indent"] = draw(st.sampled_from((None, 1)))
        style["ascii"] = draw(st.booleans())
        style["drops_empty"] = draw(st.booleans())
        style["wrap"] = draw(st.sampled_from((None,) * 9 + ("data", "train", "columns"))) if kind == "json" else None
        if style["wrap"]:
            file.excuses.append("rows inside of an object")
        return excuse_encoding(file, rows)
    usual = "\t" if kind == "tsv" else ","
    style["separator"] = draw(st.sampled_from((usual,) * 4 + (";", "|", "\t")))
    style["quoting"] = draw(st.sampled_from(("minimal",) * 4 + ("all", "none", "none", "backslash", "escaped")))
    style["sep_line"] = draw(chance(10))
    style["header"] = draw(st.sampled_from(("{}",) * 8 + (" {}", "{} ", "\u00a0{}")))
    style["index"] = draw(chance(6))
    style["list"] = draw(st.sampled_from((json.dumps, str)))
    if style["header"] != "{}":
        file.excuses.append("blanks around the names of columns")
    excuse_quotes(file, rows, usual)
    return excuse_encoding(file, rows)


def chance(one_in: int):
    return st.integers(0, one_in - 1).map(lambda drawn: drawn == one_in - 1)


def excuse_quotes(file: File, rows: list[tuple[str, Any]], usual: str) -> None:
    """What cannot be told from another file may be refused, and never be read as that other file."""
    style = file.style
    cells = [text for text, _ in rows] + [as_cell(label, style) for _, label in rows]
    separator, quoting = style["separator"], style["quoting"]
    if any(separator in cell and ("\n" in cell or "\r" in cell) for cell in cells):
        file.excuses.append("lines of a text that each look like a row")
    if quoting == "none" and any(mark in cell for cell in cells for mark in (separator, '"', "\n", "\r")):
        file.excuses.append("texts that would need quotes have none")
    if quoting == "backslash" and any('"' in cell or "\\" in cell for cell in cells):
        file.excuses.append("quotes marked by a backslash")
    if quoting == "escaped" and any(mark in cell for cell in cells for mark in (separator, '"', "\n", "\r", "\\")):
        file.excuses.append("backslashes in place of quotes")
    if separator != usual:
        others = [mark for mark in ",;|\t" if mark != separator]
        if any(mark in cell for cell in cells for mark in others):
            file.excuses.append("another separator occurs within texts")
    if any(cell.startswith(" ") and cell.lstrip().startswith('"') for cell in cells):
        file.excuses.append("a blank in front of a quotation mark")


def excuse_encoding(file: File, rows: list[tuple[str, Any]]) -> File:
    encoding = file.style["encoding"]
    if encoding == "cp1252" and file.kind in ("json", "jsonl") and file.style["ascii"]:
        return file
    text = "".join(text for text, _ in rows) + "".join(str(label) for _, label in rows) + file.style.get("header", "")
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        file.style["encoding"] = "utf-8"
        return file
    if encoding == "utf-16" or (encoding == "cp1252" and not text.isascii()):
        file.excuses.append(f"it is in {encoding}")
    return file


def is_ambiguous(table: Table) -> bool:
    """Files that mean something else to everybody: their author lost what was meant."""
    for split, file in table.files.items():
        cells = [text for text, _ in table.rows[split]] + [str(label) for _, label in table.rows[split]]
        quoting = file.style.get("quoting")
        if quoting == "none" and any(cell[:1] == '"' and cell[-1:] == '"' and len(cell) > 1 for cell in cells):
            return True
        if quoting == "none" and any("\n" in cell or "\r" in cell for cell in cells):
            return True
        if quoting in ("backslash", "escaped") and any("\\" in cell for cell in cells):
            return True
        if quoting == "escaped" and file.style["separator"] == "\t" and any('"' in cell for cell in cells):
            return True
    return False


@st.composite
def tables(draw):
    label_kind = draw(st.sampled_from(("words",) * 6 + tuple(LABEL_KINDS)))
    pool = LABEL_KINDS[label_kind]
    has_breaks, has_quotes = draw(chance(4)), draw(chance(3))
    splits = draw(st.sampled_from((("train",), ("train", "test"), ("train", "validation", "test"))))
    text, label = draw(
        st.sampled_from((("text", "label"), ("sentence", "label"), ("Text", "Label"), ("body", "kind")))
    )
    rows, seen = {}, set()
    for split in splits:
        number = draw(st.integers(4, 8))
        found = []
        for place in range(number):
            value = draw(texts(has_breaks))
            value = f'"{value}' if has_quotes and draw(chance(3)) else value
            while value in seen or not value.split():
                value = f"{value}{draw(st.sampled_from(NUMBERED))}{len(seen)}"
            seen.add(value)
            found.append((value, pool[place % 2] if place < 4 else draw(st.sampled_from(pool))))
        rows[split] = found
    known = {agree_key(value) for _, value in rows["train"]}
    for split in splits[1:]:
        rows[split] = [(t, v if agree_key(v) in known else pool[0]) for t, v in rows[split]]
    files_of = {split: draw(files(rows[split])) for split in splits}
    shared = draw(st.sampled_from(((), ("id",), ("id", "note"))))
    extras = {split: list(shared) for split in splits}
    flags = []
    if text == "body" or shared or draw(chance(3)):
        flags += ["--text_columns", text, "--label_column", label]
    if len(splits) > 1 and draw(chance(4)):
        extras[draw(st.sampled_from(splits))].append("seen")
        flags = ["--text_columns", text, "--label_column", label]
    if label_kind == "columns":
        flags = ["--text_columns", text, "--label_column", *ONE_HOT]
    table = Table(rows, text, label, extras, files_of, flags, label_kind, [], draw(chance(6)))
    excuse_labels(table)
    return table


def agree_key(value: Any) -> Any:
    if isinstance(value, tuple):
        return value
    return clean(value) if isinstance(value, str) else value


def excuse_labels(table: Table) -> None:
    kinds = {file.kind for file in table.files.values()}
    if table.label_kind == "values":
        table.flags += ["--problem_type", "regression"]
    if table.label_kind == "lists" and table.flags and "tsv" in kinds:
        table.flags += ["--problem_type", "multi_label_classification"]
    if table.label_kind in ("bools", "wholes", "lists") and len(kinds) > 1:
        table.excuses.append("labels of different types in different files")
    names = [agree_key(label) for rows in table.rows.values() for _, label in rows]
    if len(set(names)) < 2:
        table.excuses.append("one class")
    if not table.flags and any(all(is_number(text) for text, _ in rows) for rows in table.rows.values()):
        table.excuses.append("texts that are numbers")
    if table.label_kind == "wholes":
        table.excuses.append("classes written as decimals")
    if table.label_kind == "columns" and {name for _, label in table.rows["train"] for name in label} < set(ONE_HOT):
        table.excuses.append("a label that no row of train has")


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check(table: Table, verbs: tuple[str, ...] = VERBS, trains_in: Path | None = None) -> str:
    """The property: each verb reads what was meant, or says in one sentence why not and has a reason."""
    if is_ambiguous(table):
        return "ambiguous"
    with tempfile.TemporaryDirectory() as place, own_caches(Path(place) / "caches"):
        folder = Path(place)
        paths = {split: table.write(folder, split) for split in table.rows}
        words = [word for split, path in paths.items() for word in (f"--{split}_file", path)]
        words = ["--dataset", folder] if table.is_folder else words
        excuses = table.excuses + [excuse for file in table.files.values() for excuse in file.excuses]
        reader = Reader([*words, *table.flags])
        try:
            found = reader.train()
        except Refused as refusal:
            assert excuses, refusal
            return f"refused: {refusal}"
        for split, rows in table.rows.items():
            assert_read(found[split], rows, "train")
        if "audit" in verbs:
            assert sum(reader.audit()["num_rows"].values()) == sum(map(len, table.rows.values()))
        split, path = list(paths.items())[-1]
        meant = [text for text, _ in table.rows[split]]
        sources = [path, f"{folder}:{split}"][: 1 + (table.is_folder and len(paths) > 1)]
        for source in sources:
            if "evaluate" in verbs:
                assert_read(reader.evaluate(source), table.rows[split], "evaluate")
            if "predict" in verbs:
                assert reader.predict(source) == meant
        if "predict" in verbs:
            predict_unlabelled(reader, table, folder, split)
        if trains_in is not None:
            number = sum(map(len, table.rows.values()))
            reader.train_for_real(CHECKPOINT[-1], trains_in, number, (path, path, len(meant)))
    return "read"


def predict_unlabelled(reader: Reader, table: Table, folder: Path, split: str) -> None:
    """The same rows without their labels."""
    try:
        found = reader.predict(table.write(folder, split, with_labels=False))
    except Refused as refusal:
        assert table.files[split].excuses, refusal
        return
    assert found == [text for text, _ in table.rows[split]]


def assert_read(found: list[tuple[Any, Any]], meant: list[tuple[str, Any]], who: str) -> None:
    assert same([text for text, _ in found], [text for text, _ in meant]), who
    for (text, label), (_, wanted) in zip(found, meant, strict=True):
        assert agrees(label, wanted), (who, text, label, wanted)


@pytest.fixture(scope="module", autouse=True)
def checkpoint(tmp_path_factory):
    """The network that all trained examples share."""
    CHECKPOINT.append(write_checkpoint(tmp_path_factory.mktemp("bert")))


CHECKPOINT: list[Path] = []
write_checkpoint = tiny.write_tiny_bert


@fuzz(122)
@given(tables(), st.sampled_from(VERBS))
def test_a_table_is_read_as_it_was_meant_or_refused(table, verb):
    check(table, (verb,))


@fuzz(4)
@given(tables().filter(lambda table: not table.excuses and not any(file.excuses for file in table.files.values())))
def test_tables_are_trained_on_and_answered(tmp_path_factory, table):
    check(table, (), tmp_path_factory.mktemp("run"))


@pytest.mark.exhaustive
@fuzz(2000, always_the_same=False)
@given(tables())
def test_many_tables_are_read_as_they_were_meant_or_refused(table):
    check(table)
