"""Which columns are the inputs and which is the label? Given names are checked, the others guessed or asked for.

After `standardize_columns` all data look alike: `row_id`, `text` (and `text_pair`) or `image`, `label`.
This module must not look at what the values mean: that is `labels` and `audit`.
"""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hftl.data.label_columns import name_label_columns
from hftl.data.paths import IMAGE_PATH_NAMES, to_images
from hftl.errors import MAX_NAMES, UserError, quote_names, shorten, unknown_name

if TYPE_CHECKING:
    from hftl.config import DataArguments

logger = logging.getLogger(__name__)

Modality = Literal["text", "image"]

# Names as they occur in GLUE, SuperGLUE and the most used Hub data sets; a name of the first group wins.
LABEL_NAMES = (
    ("label", "labels"),
    ("target", "class", "category", "score", "sentiment", "intent", "emotion", "topic"),
)
TEXT_NAMES = ("text", "sentence", "content", "review", "document", "comment", "tweet", "utterance", "query")
TEXT_PAIR_NAMES = (
    ("text", "text_pair"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question1", "question2"),
)


@dataclass(frozen=True)
class Columns:
    """The columns that are used: one or two texts or one image, and the label."""

    inputs: tuple[str, ...]
    label: str


def choose_columns(splits: datasets.DatasetDict, args: "DataArguments", modality: Modality) -> Columns:
    """Takes the columns that `args` names and guesses the others.

    Raises:
        UserError: a name that is not a column, or no single best guess; the message says what to type.
    """
    features = splits["train"].features
    label = _choose_label(features, args.label_column)
    if modality == "image":
        inputs = _choose_image(features, args.image_column, label)
    else:
        inputs = _choose_texts(features, args.text_columns, label)
    logger.info("Columns used: inputs %s, label %s.", ", ".join(inputs), label)
    return Columns(inputs, label)


def choose_inputs(features: datasets.Features, args: "DataArguments", modality: Modality) -> tuple[str, ...]:
    """The input columns of rows that need no label; what looks like a label is passed over.

    Raises:
        UserError: a name that is not a column, or no single best guess; the message says what to type.
    """
    given = name_label_columns(args)
    labels = [name for name in features if name in given or name.lower() in sum(LABEL_NAMES, ())]
    if modality == "image":
        return _choose_image(features, args.image_column, given[0] if given else "")
    others = {name: feature for name, feature in features.items() if name not in labels} or features
    chosen = _choose_texts(features if args.text_columns else datasets.Features(others), args.text_columns, "")
    for name in chosen:
        _check_text(name, features[name])
    return chosen


def standardize_columns(
    splits: datasets.DatasetDict, columns: Columns, modality: Modality, args: "DataArguments"
) -> datasets.DatasetDict:
    """Keeps the chosen columns under their canonical names, adds `row_id`, and makes inputs texts or images.

    Images are `datasets.Image`, which decodes a row when it is read and not before.

    Raises:
        UserError: a text column holds lists, images or other things that are not text.
    """
    inputs = ("image",) if modality == "image" else ("text", "text_pair")[: len(columns.inputs)]
    names = dict(zip((*columns.inputs, columns.label), (*inputs, "label"), strict=True))
    for name in columns.inputs if modality == "text" else ():
        _check_text(name, splits["train"].features[name])
    if modality == "image":
        splits = datasets.DatasetDict({s: to_images(rows, columns.inputs[0], args) for s, rows in splits.items()})
    return datasets.DatasetDict({split: _standardize(rows, names, inputs) for split, rows in splits.items()})


def read_whole_numbers(rows: datasets.Dataset) -> datasets.Dataset:
    """Labels that are decimals without a fraction as integers, which is what they are where a network has classes."""
    if _is_decimal(rows.features["label"]) and are_whole(rows.data.column("label")):
        return rows.cast_column("label", datasets.Value("int64"))
    return rows


def are_whole(values: pa.ChunkedArray) -> bool:
    """Whether decimals have no fraction and are finite; those that are missing count for nothing."""
    is_whole = pc.and_(pc.is_finite(values), pc.equal(pc.floor(values), values))
    return bool(pc.all(is_whole).as_py() is not False)


def _standardize(rows: datasets.Dataset, names: dict[str, str], inputs: tuple[str, ...]) -> datasets.Dataset:
    rows = rows.with_format(None).select_columns(list(names)).rename_columns(names)
    for name in inputs:
        if not isinstance(rows.features[name], datasets.Image) and rows.features[name] != datasets.Value("string"):
            rows = rows.cast_column(name, datasets.Value("string"))
    rows = rows.add_column("row_id", np.arange(len(rows), dtype=np.int64))
    return rows.select_columns(["row_id", *inputs, "label"])


def _choose_label(features: datasets.Features, given: str | None) -> str:
    if given is not None:
        return _known(given, features, "--label_column")
    for names in LABEL_NAMES:
        if len(found := [name for name in features if name.lower() in names]) == 1:
            return found[0]
        if found:
            raise _ambiguous("label", found, features, "--label_column X")
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(classes) != 1:
        raise _ambiguous("label", classes, features, "--label_column X [Y ...]")
    return classes[0]


def _choose_texts(features: datasets.Features, given: list[str] | None, label: str) -> tuple[str, ...]:
    if given:
        return _check_given_texts(features, given, label)
    names = [name for name, feature in features.items() if _is_string(feature) and name != label]
    if not names and (images := [name for name in features if isinstance(features[name], datasets.Image)]):
        raise UserError(
            f"The column {quote_names(images)} holds images and no column holds texts; for images give "
            "`--task image-classification`."
        )
    if len(names) == 1:
        return (names[0],)
    lowered = {name.lower(): name for name in features if name != label}
    pairs = [tuple(lowered[name] for name in pair) for pair in TEXT_PAIR_NAMES if set(pair) <= set(lowered)]
    paired = {name for pair in pairs for name in pair}
    singles = [(lowered[name],) for name in TEXT_NAMES if name in lowered and lowered[name] not in paired]
    if len(found := pairs + singles) != 1:
        raise _ambiguous("text", found or [(name,) for name in names], features, "--text_columns A [B]")
    if decimals := [name for name in found[0] if _is_decimal(features[name])]:
        raise UserError(
            f"The text column {decimals[0]!r} holds numbers, and 1.50 would be read as 1.5; to read them as they are "
            f"written give `--text_columns {shlex.join(found[0])}`."
        )
    return found[0]


def _check_given_texts(features: datasets.Features, given: list[str], label: str) -> tuple[str, ...]:
    if len(given) > 2 or len(set(given)) < len(given):
        raise UserError(f"--text_columns takes one or two different columns; found {quote_names(given)}.")
    if label in given:
        raise UserError(f"The column {label!r} is the label; it cannot be a text as well. Give --label_column X.")
    return tuple(_known(name, features, "--text_columns") for name in given)


def _choose_image(features: datasets.Features, given: str | None, label: str) -> tuple[str, ...]:
    if given is not None:
        return (_known(given, features, "--image_column"),)
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        images = [name for name in features if name.lower() in IMAGE_PATH_NAMES and name != label]
    if len(images) != 1:
        raise _ambiguous("image", images, features, "--image_column X")
    return (images[0],)


def choose_named(kind: str, found: list[str], given: str | None, features: datasets.Features, flag: str) -> str:
    """The column that a flag names, else the only one that was found.

    Raises:
        UserError: there is no such column, or not one.
    """
    if given is not None:
        return _known(given, features, flag)
    if len(found) != 1:
        raise _ambiguous(kind, found, features, f"{flag} X")
    return found[0]


def _check_text(name: str, feature: object) -> None:
    if _is_string(feature):
        return
    if not isinstance(feature, datasets.Value) or "binary" in feature.dtype:
        raise UserError(
            f"The text column {name!r} holds {shorten(str(feature), 200)}, not text; choose another with "
            "--text_columns A [B]."
        )
    logger.warning("The text column %r holds %s and is turned into text.", name, feature.dtype)


def _is_string(feature: object) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_decimal(feature: object) -> bool:
    return isinstance(feature, datasets.Value) and "float" in feature.dtype


def _known(name: str, features: datasets.Features, flag: str) -> str:
    if name not in features:
        raise unknown_name("column", name, features, f"Correct {flag}.")
    return name


def _ambiguous(kind: str, found: Sequence[str | tuple[str, ...]], features: datasets.Features, flag: str) -> UserError:
    names = "; ".join(quote_names([name] if isinstance(name, str) else name) for name in found[:MAX_NAMES])
    reason = f"several columns could be the {kind} ({names})" if found else f"no column looks like the {kind}"
    return UserError(f"Among the columns {quote_names(features)} {reason}; say which with `{flag}`.")
