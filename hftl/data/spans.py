"""Questions, contexts and where their answers stand: a SQuAD file, the layout of the Hub, or a plain table.

After `standardize_questions` all data look alike: `row_id`, `text` (the question), `text_pair` (the context), and for
each row a list of `answers` and of their `starts` in the context, both empty where there is no answer. Where rows
cannot be read, `fault` says why. Must not know: tokens.
"""

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from hftl.data.chats import parse_text
from hftl.data.encoding import open_text
from hftl.data.label_columns import name_label_column
from hftl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from hftl.config import DataArguments

QUESTION_NAMES = ("question", "query")
CONTEXT_NAMES = ("context", "passage", "paragraph", "document", "text")
ANSWER_NAMES = ("answers", "answer", "answer_text")
START_NAME = "answer_start"
IMPOSSIBLE_NAME = "is_impossible"
UNKNOWN = -1  # the place of an answer that is not given, and cannot be found
_FEATURES = datasets.Features(
    row_id=datasets.Value("int64"),
    text=datasets.Value("string"),
    text_pair=datasets.Value("string"),
    answers=datasets.List(datasets.Value("string")),
    starts=datasets.List(datasets.Value("int64")),
)


def is_squad(path: Path) -> bool:
    """Whether a JSON file is nested as SQuAD is: data, paragraphs, questions."""
    try:
        with open_text(path, errors="replace") as file:
            return '"paragraphs"' in file.read(10_000)
    except (OSError, EOFError, zlib.error):  # no whole gzip file: whoever reads it will say so
        return False


def read_squad(path: Path) -> datasets.Dataset:
    """The questions of a file as rows: id, question, context, answers, and whether it says that there are none.

    Raises:
        UserError: it is not JSON, or something of it is missing.
    """
    rows: list[dict[str, Any]] = []
    try:
        with open_text(path) as file:
            content = json.load(file)
        articles = content["data"] if isinstance(content, dict) and "data" in content else content
        for article in [articles] if isinstance(articles, dict) else articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    rows.append(_read_question(asked, paragraph["context"], len(rows)))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not whole: after {len(rows)} questions there is no {error}. Expected data > paragraphs > "
            "context and qas > id, question, answers > text, answer_start."
        ) from error
    except (ValueError, OSError, EOFError, zlib.error) as error:  # not UTF-8, not JSON or not packed
        raise UserError(f"Cannot read {path} as SQuAD: {error}. Check the file.") from error
    if not rows:
        raise UserError(f"{path} holds no question.")
    return datasets.Dataset.from_list(rows)


def _read_question(asked: dict[str, Any], context: str, number: int) -> dict[str, Any]:
    is_impossible = asked.get(IMPOSSIBLE_NAME)
    answers = (asked.get("answers") if is_impossible else asked["answers"]) or []
    return {
        "id": str(asked.get("id", number)),
        "question": asked["question"],
        "context": context,
        "answers": {
            "text": [str(answer["text"]) for answer in answers],
            "answer_start": [_as_text(answer.get("answer_start")) for answer in answers],
        },
        IMPOSSIBLE_NAME: _as_text(is_impossible),
    }


def _as_text(value: Any) -> str | None:
    """One type for what files write as numbers, as texts or not at all."""
    return None if value is None else str(value)


def standardize_questions(splits: datasets.DatasetDict, args: "DataArguments") -> datasets.DatasetDict:
    """Splits in canonical columns.

    Raises:
        UserError: there are no such columns, or an answer is neither a text nor texts with their places.
    """
    features = splits["train"].features
    question, context = (*choose_question(features, args.text_columns),)
    answer = _choose(features, name_label_column(args), ANSWER_NAMES, "--label_column")
    return datasets.DatasetDict(
        {split: _standardize(rows, split, (question, context, answer)) for split, rows in splits.items()}
    )


def choose_question(features: datasets.Features, given: list[str] | None) -> dict[str, str]:
    """The columns that are read: their names -> canonical names, the question first.

    Raises:
        UserError: a name that is not a column, another number than two, or no best guess.
    """
    if given and len(given) != 2:
        raise UserError(f"--text_columns takes the question and the context; found {given}.")
    question, context = given or (None, None)
    question = _choose(features, question, QUESTION_NAMES, "--text_columns QUESTION CONTEXT")
    rest = {name: feature for name, feature in features.items() if name != question}
    return {
        question: "text",
        _choose(rest, context, CONTEXT_NAMES, "--text_columns QUESTION CONTEXT"): "text_pair",
    }


def _choose(features: Any, given: str | None, names: tuple[str, ...], flag: str) -> str:
    if given and given not in features:
        raise unknown_name("column", given, features, f"Correct {flag.split()[0]}.")
    found = given or next((name for name in names if name in features), None)
    if found is None:
        raise UserError(
            f"Among the columns {', '.join(features)} none is {' or '.join(names)}, which question-answering needs; "
            f"name it with {flag}."
        )
    return found


def _standardize(rows: datasets.Dataset, split: str, names: tuple[str, str, str]) -> datasets.Dataset:
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise UserError(f"{split} has no column {missing[0]!r}, which train has.")
    texts = [["" if value is None else str(value) for value in rows[name][:]] for name in names[:2]]
    known = {
        name: rows[name][:] if name in rows.column_names and name not in names else [None] * len(rows)
        for name in (START_NAME, IMPOSSIBLE_NAME)
    }
    answers, starts, faults = [], [], []
    for context, answer, *others in zip(texts[1], rows[names[2]][:], *known.values(), strict=True):
        try:
            pairs, fault = read_answers(answer, *others, context), None
        except UserError as error:
            pairs, fault = [], str(error)
        answers.append([text for text, _ in pairs])
        starts.append([_find(text, start, context) for text, start in pairs])
        faults.append(fault)
    columns = {"row_id": range(len(rows)), "text": texts[0], "text_pair": texts[1]}
    read = datasets.Dataset.from_dict({**columns, "answers": answers, "starts": starts}, features=_FEATURES)
    return read.add_column("fault", faults, feature=datasets.Value("string")) if any(faults) else read


def read_answers(answer: Any, place: Any, is_impossible: Any, context: str) -> list[tuple[str, int | None]]:
    """Texts and, where they are given, places; none where there is no answer.

    Args:
        answer: in any of the usual layouts, also as JSON or as Python shows it.
        place: of a column of its own.
        is_impossible: what the row says of itself, or None.
        context: in which a text stands that only looks like another layout.

    Raises:
        UserError: it is none of the layouts, the row says that there is an answer and has none, or the numbers of
            texts and places differ.
    """
    says_none = read_flag(is_impossible)
    if says_none:
        return []
    if isinstance(answer, str) and answer.lstrip()[:1] in ("[", "{") and answer not in context:
        answer = parse_written(answer)
    pairs = [(text, _read_place(start)) for text, start in _list_answers(answer, place, context)]
    pairs = [(text, start) for text, start in pairs if text.strip()]
    if says_none is False and not pairs:
        raise UserError(f"{IMPOSSIBLE_NAME} says that there is an answer, and none is given")
    return pairs


def parse_written(text: str) -> Any:
    """What a text means that was written as JSON or by Python, numpy's arrays included; itself where it is neither."""
    plain = re.sub(r"\barray\((\[.*?\])(?:, dtype=\w+)?\)", r"\1", text, flags=re.DOTALL)
    parsed = parse_text(plain)
    return text if parsed is None else parsed


def read_flag(value: Any) -> bool | None:
    """True or false, also as a number or a text; None: not said."""
    known = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
    said = str(value).strip().lower()
    if value is None or said in ("", "none", "null", "nan"):
        return None
    if said not in known:
        raise UserError(f"{IMPOSSIBLE_NAME} is {str(value)[:20]!r}; expected true or false")
    return known[said]


def _read_place(value: Any) -> int | None:
    """A number, also written as a text or as a decimal; None: not given."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null", "nan")):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{START_NAME} is {str(value)[:20]!r}; expected a number of characters") from error
    if math.isnan(number):
        return None
    if number != int(number) if math.isfinite(number) else True:
        raise UserError(f"{START_NAME} is {value}; expected a number of characters")
    return int(number)


def _list_answers(answer: Any, place: Any, context: str) -> Iterator[tuple[str, Any]]:
    """Each text with its place, as it was written."""
    place = parse_written(place) if isinstance(place, str) and place.lstrip().startswith("[") else place
    if isinstance(answer, Mapping) and "text" in answer:
        place = answer.get(START_NAME, place)
        answer = answer["text"]
    if answer is None or (isinstance(answer, float) and math.isnan(answer)):
        return
    is_number = isinstance(answer, (int, float)) and not isinstance(answer, bool) and str(answer) in context
    if isinstance(answer, str) or is_number:  # a table of numbers alone is no longer text
        place = place[0] if isinstance(place, list) and len(place) == 1 else place
        yield str(answer), place
    elif isinstance(answer, list) and all(isinstance(part, Mapping) and "text" in part for part in answer):
        for part in answer:
            yield from _list_answers(part["text"], part.get(START_NAME), context)
    elif isinstance(answer, list) and all(isinstance(part, str) for part in answer):
        places = [None] * len(answer) if place is None else place if isinstance(place, list) else [place]
        if len(places) != len(answer):
            raise UserError(f"there are {len(answer)} answers and {len(places)} of {START_NAME}")
        yield from zip(answer, places, strict=True)
    else:
        raise UserError(
            f"the answer is {str(answer)[:60]!r}; expected a text, or texts with their places (text, {START_NAME}). "
            "Is it data for another task?"
        )


def _find(text: str, start: int | None, context: str) -> int:
    """The place of an answer; one that is not given is the only one where it stands."""
    if start is not None and start >= 0:
        return start
    return context.find(text) if context.count(text) == 1 else UNKNOWN


def find_fault(answers: list[str], starts: list[int], context: str) -> str | None:
    """Why a row cannot be learnt; None for a good one."""
    for text, start in zip(answers, starts, strict=True):
        if start == UNKNOWN:
            count = context.count(text)
            reason = (
                "is not in its context" if count == 0 else f"stands {count} times in its context; give {START_NAME}"
            )
            return f"the answer {text[:40]!r} {reason}"
        if context[start : start + len(text)] != text:
            there = context[start : start + len(text)]
            return f"the answer {text[:40]!r} is not at {START_NAME} {start}, where {there[:40]!r} stands"
    return None
