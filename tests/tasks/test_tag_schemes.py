"""Tags of every usual scheme mean the same entities, and those of none are scored as what they are."""

import random

import numpy as np
import pytest
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import BILOU, IOB2, IOBES, IOE2

import hftl
from hftl.config import parse_args
from hftl.data.labels import LabelInfo
from hftl.data.load import load_splits
from hftl.metrics.spans import count_document, score_counts
from hftl.metrics.tag_schemes import odd_tags, read_scheme
from hftl.tasks.token_classification import TokenClassification
from hftl.training.run import run
from tests import tiny

# Two words of A, one of B, two entities of A side by side, one of three words.
SPANS = [("A", 0, 1), ("B", 3, 3), ("A", 4, 4), ("A", 5, 6), ("B", 8, 10)]
LENGTH = 12
ROLES = {  # first, inside, last, single
    "IOB": "BIIB",
    "IOE": "IIEE",
    "IOBES": "BIES",
    "BILOU": "BILU",
    "BMES": "BMES",
    "BMEW": "BMEW",
}
LAYOUTS = {
    "prefix": "{role}-{kind}",
    "underscore": "{role}_{kind}",
    "colon": "{role}:{kind}",
    "suffix": "{kind}-{role}",
    "suffix with underscore": "{kind}_{role}",
}


def write_tags(roles, layout="{role}-{kind}", outside="O", spans=SPANS):
    tags = [outside] * LENGTH
    for kind, first, last in spans:
        for place in range(first, last + 1):
            is_first, is_last = place == first, place == last
            role = roles[3 if is_first and is_last else 0 if is_first else 2 if is_last else 1]
            tags[place] = layout.format(role=role, kind=kind)
    return tags


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ROLES)
def test_entities_are_those_of_iob_in_every_scheme_and_layout(name, layout):
    for roles, outside in ((ROLES[name], "O"), (ROLES[name].lower(), "o"), (ROLES[name], "OUT")):
        tags = write_tags(roles, LAYOUTS[layout], outside)
        scheme = read_scheme(tags)
        assert scheme.name == name
        assert scheme.find_spans(tags) == SPANS


@pytest.mark.parametrize("outside", ["O", "o", "OUT", "Outside", "Other", "none", "0", "_", "-"])
def test_a_word_outside_is_no_entity_however_it_is_called(outside):
    tags = write_tags("BIIB", outside=outside)
    assert read_scheme(tags).find_spans(tags) == SPANS


@pytest.mark.parametrize("name", ["IOB", "IOBES", "BILOU", "BMES"])
def test_roles_without_kinds_are_entities_of_one_kind(name):
    tags = write_tags(ROLES[name], "{role}")
    assert read_scheme(tags).find_spans(tags) == [("entity", first, last) for _, first, last in SPANS]


def test_iob1_is_read_and_its_begins_are_counted():
    tags = ["I-A", "I-A", "O", "I-B", "I-A", "B-A", "I-A", "O"]
    scheme = read_scheme(tags)
    assert scheme.find_spans(tags) == [("A", 0, 1), ("B", 3, 3), ("A", 4, 4), ("A", 5, 6)]
    assert scheme.begins_late(tags) == 3
    for roles in ("BIIB", "IIEE"):  # IOE has no begins
        tags = write_tags(roles)
        assert read_scheme(tags).begins_late(tags) == 0


@pytest.mark.parametrize("scheme, roles", [(IOB2, "BIIB"), (IOE2, "IIEE"), (IOBES, "BIES"), (BILOU, "BILU")])
def test_scores_are_those_of_strict_seqeval(scheme, roles):
    draw = random.Random(roles)
    truths, guesses = [], []
    for _ in range(30):
        truths.append(write_tags(roles, spans=[s for s in SPANS if draw.random() < 0.7]))
        guesses.append(write_tags(roles, spans=[s for s in SPANS if draw.random() < 0.7]))
    read = read_scheme({tag for row in truths for tag in row})
    counts = np.sum([count_document(a, b, read) for a, b in zip(truths, guesses, strict=True)], axis=0)
    precision, recall, f1, _ = precision_recall_fscore_support(truths, guesses, average="micro", scheme=scheme)
    assert score_counts(counts[4], counts[3], counts[2]) == pytest.approx(
        {"precision": precision, "recall": recall, "f1": f1}
    )


@pytest.mark.parametrize(
    "names",
    [
        ("NOUN", "VERB", "X", "PUNCT"),
        ("NN", "VB", ".", ",", ":", "-LRB-"),
        ("PER", "LOC", "O"),
        ("0", "1", "2"),
        ("B-PER", "PER", "O"),
        ("S", "W", "O"),
        ("T-cell", "B-cell", "O"),
        ("B-PER", "U-PER", "W-PER", "O"),
    ],
)
def test_classes_of_words_are_no_scheme(names):
    assert read_scheme(names) is None


def test_tags_that_break_a_scheme_are_named():
    assert odd_tags(["O", "B-A", "I-A", "B-B", "I B"]) == ["I B"]
    assert odd_tags(["NOUN", "VERB"]) == [] and odd_tags(["O", "B-A", "I-A"]) == []


@pytest.mark.parametrize(
    "seen, names",
    [
        (["b-a", "o"], ("o", "b-a", "i-a")),
        (["A-U", "O", "A-B"], ("O", "A-B", "A-I", "A-L", "A-U")),
        (["M_A", "OUT"], ("OUT", "B_A", "E_A", "M_A", "S_A")),
        (["E-A", "O"], ("O", "E-A", "I-A")),
        (["O", "B"], ("O", "B", "I")),
    ],
)
def test_a_network_has_every_tag_of_the_scheme_of_train(tmp_path, seen, names):
    info, _ = read(tmp_path, [seen])
    assert info == LabelInfo("token-classification", names)


def read(tmp_path, tags):
    rows = [{"tokens": [f"w{place}" for place in range(len(row))], "tags": row} for row in tags]
    tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    args = parse_args(["--task", "token-classification", "--train_file", str(tmp_path / "train.jsonl")], mode="full")
    splits, info = TokenClassification().read(load_splits(args.data), args.data)
    return info, splits["train"]["tags"][:]


@pytest.mark.parametrize("tags", [["B-A ", "B-A", "O", " O"], ["B-e\u0301", "B-\u00e9", "O", "O\u200b"]])
def test_spellings_of_a_tag_that_look_the_same_are_one(tmp_path, tags):
    info, numbers = read(tmp_path, [tags])
    assert numbers == [[1, 1, 0, 0]] and len(info.names) == 3 and len(info.spellings) == 2


def make_run(folder, roles=None, names=None):
    """A tiny run on words of two classes, tagged by `names`, or as entities of one word."""
    words = [*tiny.CLASS_WORDS[0], *tiny.CLASS_WORDS[1]]
    tags = {word: (names or [f"{roles[3]}-A", f"{roles[3]}-B"])[word in tiny.CLASS_WORDS[1]] for word in words}
    draw, rows = random.Random(0), []
    for _ in range(16):
        row = [draw.choice([*words, *tiny.FILLER_WORDS]) for _ in range(6)]
        rows.append({"tokens": row, "tags": [tags.get(word, "O") for word in row]})
    folder.mkdir()
    tiny.write_tiny_bert(folder / "bert")
    tiny.write_jsonl(folder / "train.jsonl", rows)
    flags = f"--task token-classification --train_file {folder}/train.jsonl --test_file {folder}/train.jsonl --use_cpu"
    flags += f" --model_name_or_path {folder}/bert --max_steps 30 --learning_rate 5e-3 --output_dir {folder}/run"
    return run(parse_args(flags.split(), mode="full")), rows


def test_a_run_in_another_scheme_is_scored_and_answers_in_entities(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    record, rows = make_run(tmp_path / "a", "BILU")
    scores = record.metrics["test"]
    assert scores["entity_f1"] > 0.8 and set(scores["per_class"]) <= {"A", "B"}
    assert sum(kind["support"] for kind in scores["per_class"].values()) == sum(
        tag != "O" for row in rows for tag in row["tags"]
    )
    answers = hftl.load(tmp_path / "a" / "run").predict([{"tokens": row["tokens"]} for row in rows])
    for answer in answers:
        found = [(e["first_word"], e["last_word"], f"U-{e['label']}") for e in answer["entities"]]
        assert found == [(place, place, tag) for place, tag in enumerate(answer["labels"]) if tag != "O"]
    assert any(answer["entities"] for answer in answers)


def test_scores_of_words_are_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    record, _ = make_run(tmp_path / "a", names=["NOUN", "VERB"])
    scores = record.metrics["test"]
    assert (
        scores["tag_f1"] > 0.8 and "entity_f1" not in scores and record.data["problem_type"] == "word-classification"
    )
