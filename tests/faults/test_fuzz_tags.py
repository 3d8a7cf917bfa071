"""Words with tags in every layout and scheme: the words, tags and entities that were meant, in every verb, or why not.

Sentences are made of words and entities first; the tags of a scheme and the lines of a file are written from them.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftl.metrics.spans import find_spans
from hftl.metrics.tag_schemes import read_scheme
from tests import tiny
from tests.faults.readings import VERBS, Reader, Refused, fuzz, own_caches

WORDS = (
    *("Paris", "is", "old", "the", "dog", "runs", "in", "Rome", "#Paris", "#", "##", "#tbt", "B-LOC", "O", "-", "1"),
    *('"', "''", "é", "e\u0301", "漢字", "U.S.", "co-op", "😀", "(", "\\", "NA", "null", "x/y", "a|b", "@user", "-X-"),
)
KINDS = ("LOC", "PER", "big-org")
# Name -> for the place of a word in an entity of a number of words its role.
SCHEMES = {
    "IOB2": lambda place, number: "B" if place == 0 else "I",
    "BIOES": lambda place, number: role_of(place, number, "BIES"),
    "BILOU": lambda place, number: role_of(place, number, "BILU"),
    "BMES": lambda place, number: role_of(place, number, "BMES"),
    "BMEW": lambda place, number: role_of(place, number, "BMEW"),
}
WRITINGS = {
    "prefix": lambda role, kind: f"{role}-{kind}",
    "small": lambda role, kind: f"{role}-{kind}".lower(),
    "underscore": lambda role, kind: f"{role}_{kind}",
    "suffix": lambda role, kind: f"{kind}-{role}",
    "bare": lambda role, kind: role,
}


def role_of(place: int, number: int, roles: str) -> str:
    if number == 1:
        return roles[3]
    return roles[0] if place == 0 else roles[2] if place == number - 1 else roles[1]


@dataclass
class Tagged:
    """Sentences of words, each word with its tag; and the entities that were meant, None for tags of single words."""

    splits: dict[str, list[list[tuple[str, str]]]]
    entities: dict[str, list[list[tuple[int, int]]]] | None
    kind: str
    style: dict[str, Any]
    excuses: list[str]

    def write(self, folder: Path, split: str, *, with_tags: bool = True) -> Path:
        path = folder / f"{split}{'' if with_tags else '-words'}.{self.kind}"
        rows = self.splits[split]
        if self.kind in ("conll", "txt", "conllu"):
            path.write_bytes(
                write_lines(rows, self.style, self.kind, with_tags=with_tags).encode(self.style["encoding"])
            )
            return path
        table = {"tokens": [[word for word, _ in row] for row in rows]}
        if with_tags:
            table[self.style["column"]] = [[tag for _, tag in row] for row in rows]
        if self.kind == "parquet":
            rows_of = datasets.Dataset.from_dict(table)
            if self.style["numbered"] and with_tags:
                names = sorted({tag for found in self.splits.values() for row in found for _, tag in row})
                feature = datasets.List(datasets.ClassLabel(names=names))
                rows_of = rows_of.cast_column(self.style["column"], feature)
            pq.write_table(rows_of.data.table, path)
            return path
        objects = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        text = json.dumps(objects) if self.kind == "json" else "\n".join(map(json.dumps, objects)) + "\n"
        path.write_text(text, encoding="utf-8")
        return path


def write_lines(rows: list, style: dict[str, Any], kind: str, *, with_tags: bool) -> str:
    lines = [style["first"]] if style["first"] else []
    for number, row in enumerate(rows):
        if style["comment"]:
            lines.append(style["comment"].format(number))
        for place, (word, tag) in enumerate(row, 1):
            lines.append(style["separator"].join(columns_of(place, word, tag, style, kind, with_tags=with_tags)))
        lines += [""] * style["gap"]
    return style["end"].join(lines) + style["end"]


def columns_of(place: int, word: str, tag: str, style: dict[str, Any], kind: str, *, with_tags: bool) -> list[str]:
    if kind == "conllu":
        return [str(place), word, "_", tag if with_tags else "_", "_", "_", "0", "_", "_", "_"]
    between = ["NN", "B-NP"][: style["between"]]
    return [word, *between, tag] if with_tags else [word]


@st.composite
def tags(draw):
    kind = draw(st.sampled_from(("conll", "conll", "conll", "txt", "conllu", "json", "jsonl", "parquet")))
    is_scheme = kind != "conllu" and draw(st.integers(0, 3)) > 0
    scheme, writing = draw(st.sampled_from(tuple(SCHEMES))), draw(st.sampled_from(tuple(WRITINGS)))
    outside = draw(st.sampled_from(("O", "O", "O", "OUT", "o")))
    names = draw(st.sampled_from((("split",), ("train", "test"))))
    splits, entities = {}, {}
    for split in ("train", *names[1:]):
        splits[split], entities[split] = [], []
        for number in range(draw(st.integers(4, 7))):
            if is_scheme:
                words, found = draw_entities(draw, SCHEMES[scheme], WRITINGS[writing], outside, is_rich=number == 0)
            else:
                drawn = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
                pos = ("NOUN", "VERB", "DET", "NN", "X")
                words, found = [(word, draw(st.sampled_from(pos))) for word in drawn], []
                words = [*words, ("dog", "NOUN"), ("runs", "VERB")] if number == 0 else words
            splits[split].append(words)
            entities[split].append(found)
    known = {tag for row in splits["train"] for _, tag in row}
    excuses = [] if all(tag in known for found in splits.values() for row in found for _, tag in row) else ["new tags"]
    style = {
        "separator": draw(st.sampled_from(("\t", "\t", " "))) if kind != "conllu" else "\t",
        "between": draw(st.integers(0, 2)),
        "end": draw(st.sampled_from(("\n", "\r\n"))),
        "gap": draw(st.sampled_from((1, 1, 1, 2, 3))),
        "encoding": draw(st.sampled_from(("utf-8", "utf-8-sig"))),
        "first": draw(st.sampled_from(("", "", "-DOCSTART- -X- O O\n"))) if kind != "conllu" else "",
        "comment": draw(st.sampled_from(("", "", "# sent_id = {}", "# newdoc", "#{}"))),
        "column": draw(st.sampled_from(("tags", "ner_tags", "labels"))),
        "numbered": draw(st.booleans()),
    }
    table = Tagged(splits, entities if is_scheme else None, kind, style, excuses)
    excuse_lines(table)
    return table


def draw_entities(draw, roles, write, outside, *, is_rich):
    """A sentence of single words and entities."""
    words, entities = [], []
    lengths = [1, 0, 2, 0, 3] if is_rich else draw(st.lists(st.sampled_from((0, 0, 1, 2, 3)), min_size=1, max_size=4))
    for place, length in enumerate(lengths):
        drawn = [draw(st.sampled_from(WORDS)) for _ in range(max(1, length))]
        kind = KINDS[place % 3] if is_rich else draw(st.sampled_from(KINDS))
        if length:
            entities.append((len(words), len(words) + length - 1))
        tags_of = [write(roles(at, length), kind) for at in range(length)] or [outside]
        words += zip(drawn, tags_of, strict=True)
    return words, entities


def excuse_lines(table: Tagged) -> None:
    """A comment that may be a word, or a word that may be a comment."""
    style = table.style
    if table.kind not in ("conll", "txt", "conllu"):
        return
    starts = any(word.startswith("#") for rows in table.splits.values() for row in rows for word, _ in row)
    width = 10 if table.kind == "conllu" else 2 + style["between"]
    if style["comment"] and len(style["comment"].split()) == width and style["separator"] == " ":
        table.excuses.append("comments have the columns of words")
    if starts and style["separator"] == " ":
        table.excuses.append("words that start with # have no tabs")
    if table.kind == "txt":
        table.excuses.append("a .txt may hold texts")
    if any(word == "-DOCSTART-" for rows in table.splits.values() for row in rows for word, _ in row):
        table.excuses.append("a word that begins documents")


def check(table: Tagged, verbs: tuple[str, ...] = VERBS, trains_in: Path | None = None) -> str:
    """The property: words and tags, sentence by sentence, in every verb; and the entities of the scheme."""
    with tempfile.TemporaryDirectory() as place, own_caches(Path(place) / "caches"):
        paths = {split: table.write(Path(place), split) for split in table.splits}
        flags = [word for split, path in paths.items() for word in (f"--{split}_file", path)]
        reader = Reader(
            flags,
            task="token-classification",
            read=lambda columns: columns["words"],
            label="tags",
            name=lambda row, labels: [labels.names[number] for number in row],
            decode=lambda kept, *_: {"labels": [None] * len(kept)},
        )
        try:
            found = reader.train()
        except Refused as refusal:
            assert table.excuses, refusal
            return f"refused: {refusal}"
        for split, rows in table.splits.items():
            assert_read(found[split], rows)
        if table.entities is not None:
            assert_entities(table, reader.labels)
        if "audit" in verbs:
            assert sum(reader.audit()["num_rows"].values()) == sum(map(len, table.splits.values()))
        split, path = list(paths.items())[-1]
        if "evaluate" in verbs:
            assert_read(reader.evaluate(path), table.splits[split])
        words = [[word for word, _ in row] for row in table.splits[split]]
        if "predict" in verbs:
            assert reader.predict(path) == words
        if "predict" in verbs and table.kind not in ("conllu", "txt") and not table.style["first"]:
            predict_words(reader, table, Path(place), split, words)
        if trains_in is not None:
            number = sum(map(len, table.splits.values()))
            reader.train_for_real(CHECKPOINT[-1], trains_in, number, (path, path, len(words)))
    return "read"


def predict_words(reader: Reader, table: Tagged, folder: Path, split: str, words: list[list[str]]) -> None:
    """Words alone, where no tags tell what a comment is."""
    try:
        found = reader.predict(table.write(folder, split, with_tags=False))
    except Refused as refusal:
        assert table.style["comment"] or table.excuses, refusal
        return
    if not table.style["comment"] and not any(word[0] == "#" for row in words for word in row):
        assert found == words


def assert_read(found: list[tuple[Any, Any]], meant: list[list[tuple[str, str]]]) -> None:
    assert len(found) == len(meant), (len(found), len(meant))
    for (words, marks), row in zip(found, meant, strict=True):
        assert list(zip(words, marks, strict=True)) == row


def assert_entities(table: Tagged, labels: Any) -> None:
    scheme = read_scheme(labels.names)
    if scheme is None:  # then scores are not called those of entities
        assert labels.problem_type == "word-classification"
        return
    for split, rows in table.splits.items():
        for row, meant in zip(rows, table.entities[split], strict=True):
            spans = [(first, last) for _, first, last in find_spans([tag for _, tag in row], scheme)]
            assert spans == meant, (scheme.name, row)


@pytest.fixture(scope="module", autouse=True)
def checkpoint(tmp_path_factory):
    """The network that all trained examples share."""
    CHECKPOINT.append(write_checkpoint(tmp_path_factory.mktemp("bert")))


CHECKPOINT: list[Path] = []
write_checkpoint = tiny.write_tiny_bert


@fuzz(60)
@given(tags(), st.sampled_from(VERBS))
def test_tagged_words_are_read_as_they_were_meant_or_refused(table, verb):
    check(table, (verb,))


@fuzz(4)
@given(tags().filter(lambda table: not table.excuses))
def test_tagged_words_are_trained_on_and_answered(tmp_path_factory, table):
    check(table, (), tmp_path_factory.mktemp("run"))


@pytest.mark.exhaustive
@fuzz(2000, always_the_same=False)
@given(tags())
def test_many_tagged_words_are_read_as_they_were_meant_or_refused(table):
    check(table)
