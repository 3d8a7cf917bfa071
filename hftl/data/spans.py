"""Questions, contexts and where their answers stand: a SQuAD file, the layout of the Hub, or a plain table.

After `standardize_questions` all data look alike: `row_id`, `text` (the question), `text_pair` (the context), and for
each row a list of `answers` and of their `starts` in the context, both empty where there is no answer. Must not know:
tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from hftl.data.label_columns import name_label_column
from hftl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from hftl.config import DataArguments

QUESTION_NAMES = ("question", "query")
CONTEXT_NAMES = ("context", "passage", "paragraph", "document", "text")
ANSWER_NAMES = ("answers", "answer")
START_NAME = "answer_start"
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
    with path.open(encoding="utf-8", errors="replace") as file:
        return '"paragraphs"' in file.read(10_000)


def read_squad(path: Path) -> datasets.Dataset:
    """The questions of a file as rows: id, question, context, answers.

    Raises:
        UserError: it is not JSON, or something of it is missing.
    """
    rows = []
    try:
        for article in json.loads(path.read_text(encoding="utf-8-sig"))["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    rows.append(_read_question(asked, paragraph["context"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not whole: after {len(rows)} questions there is no {error}. Expected data > paragraphs > "
            "context and qas > id, question, answers > text, answer_start."
        ) from error
    except ValueError as error:  # not UTF-8 or not JSON
        raise UserError(f"Cannot read {path} as SQuAD: {error}. Check the file.") from error
    if not rows:
        raise UserError(f"{path} holds no question.")
    return datasets.Dataset.from_list(rows)


def _read_question(asked: dict[str, Any], context: str) -> dict[str, Any]:
    answers = [] if asked.get("is_impossible") else asked["answers"]
    return {
        "id": str(asked["id"]),
        "question": asked["question"],
        "context": context,
        "answers": {
            "text": [str(answer["text"]) for answer in answers],
            "answer_start": [int(answer["answer_start"]) for answer in answers],
        },
    }


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
    texts = [[str(value or "") for value in rows[name][:]] for name in names[:2]]
    places = rows[START_NAME][:] if START_NAME in rows.column_names else [None] * len(rows)
    answers, starts = [], []
    for index, (answer, place) in enumerate(zip(rows[names[2]][:], places, strict=True)):
        pairs = list(_read_answers(answer, place, f"Row {index} of {split}"))
        answers.append([text for text, _ in pairs])
        starts.append([_find(text, start, texts[1][index]) for text, start in pairs])
    columns = {"row_id": range(len(rows)), "text": texts[0], "text_pair": texts[1]}
    return datasets.Dataset.from_dict({**columns, "answers": answers, "starts": starts}, features=_FEATURES)


def _read_answers(answer: Any, place: Any, where: str) -> Iterator[tuple[str, int | None]]:
    """Texts and, where they are given, places; in any of the usual layouts."""
    if answer is None or isinstance(answer, str):
        if answer:
            yield answer, None if place is None else int(place)
        return
    if isinstance(answer, dict) and {"text", START_NAME} <= set(answer):
        yield from zip(answer["text"] or [], answer[START_NAME] or [], strict=True)
        return
    if isinstance(answer, list) and all(isinstance(part, dict) and "text" in part for part in answer):
        yield from ((part["text"], part.get(START_NAME)) for part in answer)
        return
    if isinstance(answer, list) and all(isinstance(part, str) for part in answer):
        yield from ((part, None) for part in answer)
        return
    raise UserError(
        f"{where} has {str(answer)[:60]!r} as answer; expected a text, or texts with their places (text, "
        f"{START_NAME}). Is it data for another task?"
    )


def _find(text: str, start: int | None, context: str) -> int:
    """The place of an answer; one that is not given is the only one where it stands."""
    if start is not None and start >= 0:
        return int(start)
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
