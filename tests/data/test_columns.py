import logging
from types import SimpleNamespace

import datasets
import pytest
from datasets import ClassLabel, Features, List, Value
from PIL import Image

from hftl.data.columns import Columns, choose_columns, standardize_columns
from hftl.errors import UserError

STRING, INTEGER, IMAGE = Value("string"), Value("int64"), datasets.Image()


def choose(features, modality="text", **given):
    args = SimpleNamespace(**{"text_columns": None, "image_column": None, "label_column": None, **given})
    rows = datasets.Dataset.from_dict({name: [] for name in features}, features=Features(features))
    return choose_columns(datasets.DatasetDict(train=rows), args, modality)


@pytest.mark.parametrize(
    "features, expected",
    [
        ({"idx": INTEGER, "anything": STRING, "label": INTEGER}, Columns(("anything",), "label")),
        ({"Text": STRING, "title": STRING, "Label": STRING}, Columns(("Text",), "Label")),
        ({"text": STRING, "label": INTEGER, "label_text": STRING}, Columns(("text",), "label")),
        ({"premise": STRING, "hypothesis": STRING, "label": INTEGER}, Columns(("premise", "hypothesis"), "label")),
        ({"sentence2": STRING, "sentence1": STRING, "score": INTEGER}, Columns(("sentence1", "sentence2"), "score")),
        ({"question": STRING, "sentence": STRING, "label": INTEGER}, Columns(("question", "sentence"), "label")),
        ({"text": STRING, "odd": ClassLabel(names=["a", "b"]), "n": INTEGER}, Columns(("text",), "odd")),
        ({"text": STRING, "category": STRING}, Columns(("text",), "category")),
        ({"text": STRING, "label": INTEGER, "score": INTEGER}, Columns(("text",), "label")),
    ],
)
def test_columns_of_usual_text_data_are_guessed(features, expected):
    assert choose(features) == expected


@pytest.mark.parametrize(
    "features, expected",
    [
        ({"photo": IMAGE, "text": STRING, "label": INTEGER}, Columns(("photo",), "label")),
        ({"file_name": STRING, "other": STRING, "label": STRING}, Columns(("file_name",), "label")),
        ({"img": IMAGE, "path": STRING, "label": STRING}, Columns(("img",), "label")),
    ],
)
def test_columns_of_usual_image_data_are_guessed(features, expected):
    assert choose(features, "image") == expected


def test_given_columns_win_over_guesses():
    features = {"text": STRING, "a": STRING, "b": STRING, "label": INTEGER, "c": INTEGER}
    assert choose(features, text_columns=["b", "a"], label_column="c") == Columns(("b", "a"), "c")
    assert choose({"image": IMAGE, "b": IMAGE, "label": INTEGER}, "image", image_column="b").inputs == ("b",)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"text_columns": ["txt"]},
            "'txt'. Did you mean 'text'.* Valid: 'label', 'text'.*--text_columns",
        ),
        ({"label_column": "labl"}, "Unknown column 'labl'. Did you mean 'label'.*--label_column"),
        ({"text_columns": ["text", "label"]}, "'label' is the label; it cannot be a text"),
        ({"text_columns": ["text", "text"]}, "one or two different columns"),
        ({"text_columns": ["text", "a", "b"]}, "one or two different columns; found 'text', 'a', 'b'"),
    ],
)
def test_wrong_names_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        choose({"text": STRING, "label": INTEGER}, **given)


def test_a_wrong_image_column_is_refused():
    with pytest.raises(UserError, match="Unknown column 'imag'. Did you mean 'image'.*--image_column"):
        choose({"image": IMAGE, "label": INTEGER}, "image", image_column="imag")


@pytest.mark.parametrize(
    "features, modality, message",
    [
        (
            {"text": STRING, "n": INTEGER},
            "text",
            "'text', 'n' no column looks like the label.*--label_column X",
        ),
        ({"text": STRING, "class": STRING, "topic": STRING}, "text", r"could be the label \('class'; 'topic'\)"),
        ({"label": INTEGER, "n": INTEGER}, "text", r"no column looks like the text.*`--text_columns A \[B\]`"),
        ({"a": STRING, "b": STRING, "label": INTEGER}, "text", r"several columns could be the text \('a'; 'b'\)"),
        (
            {"text": STRING, "premise": STRING, "hypothesis": STRING, "label": INTEGER},
            "text",
            r"could be the text \('premise', 'hypothesis'; 'text'\)",
        ),
        ({"a": IMAGE, "b": IMAGE, "label": INTEGER}, "image", r"could be the image \('a'; 'b'\).*--image_column X"),
        ({"photo": STRING, "label": INTEGER}, "image", "no column looks like the image"),
    ],
)
def test_an_unclear_choice_is_an_error_that_says_what_to_type(features, modality, message):
    with pytest.raises(UserError, match=message):
        choose(features, modality)


def standardize(rows, columns, modality="text"):
    rows = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_dict(rows)
    args = SimpleNamespace(dataset=None)
    return standardize_columns(datasets.DatasetDict(train=rows), columns, modality, args)["train"]


def test_text_data_get_canonical_columns():
    rows = standardize({"x": [1, 2], "b": ["p", None], "a": ["q", "r"], "y": [0, 1]}, Columns(("a", "b"), "y"))
    assert rows.column_names == ["row_id", "text", "text_pair", "label"]
    assert rows.features["row_id"] == INTEGER
    assert rows.to_list() == [
        {"row_id": 0, "text": "q", "text_pair": "p", "label": 0},
        {"row_id": 1, "text": "r", "text_pair": None, "label": 1},
    ]


def test_columns_may_have_each_others_names():
    rows = standardize({"label": ["a"], "text": [3], "row_id": [9]}, Columns(("label",), "text"))
    assert rows.to_list() == [{"row_id": 0, "text": "a", "label": 3}]


def test_row_id_counts_rows_as_they_were_loaded():
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}).select([2, 0])
    assert standardize(rows, Columns(("text",), "label")).to_list() == [
        {"row_id": 0, "text": "c", "label": 0},
        {"row_id": 1, "text": "a", "label": 0},
    ]


def test_the_label_keeps_its_type():
    features = Features({"text": STRING, "label": ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"text": ["t"], "label": [1]}, features=features)
    assert standardize(rows, Columns(("text",), "label")).features["label"] == features["label"]


def test_numbers_as_texts_are_cast_with_a_warning(caplog):
    caplog.set_level(logging.WARNING)
    assert standardize({"text": [7, None], "label": [0, 1]}, Columns(("text",), "label"))["text"][:] == ["7", None]
    assert "'text' holds int64 and is turned into text" in caplog.text


@pytest.mark.parametrize(
    "feature, value", [(List(STRING), ["a"]), (ClassLabel(names=["a"]), 0), (Value("binary"), b"")]
)
def test_what_is_not_text_is_refused_as_text(feature, value):
    rows = datasets.Dataset.from_dict(
        {"text": [value], "label": [0]}, features=Features({"text": feature, "label": INTEGER})
    )
    with pytest.raises(UserError, match="The text column 'text' holds .*, not text; .*--text_columns"):
        standardize(rows, Columns(("text",), "label"))


def test_images_come_from_paths_and_bytes_and_are_decoded_only_when_read(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    encoded = (tmp_path / "a.png").read_bytes()
    paths = [str(tmp_path / "a.png"), str(tmp_path / "missing.png"), None]
    rows = standardize({"path": paths, "y": [0, 1, 2]}, Columns(("path",), "y"), "image")
    assert rows.column_names == ["row_id", "image", "label"]
    assert rows.features["image"] == IMAGE
    assert rows[0]["image"].size == (3, 2)
    with pytest.raises(FileNotFoundError):
        rows[1]
    for raw in (encoded, {"bytes": encoded, "path": None}):
        rows = standardize({"image": [raw], "label": [0]}, Columns(("image",), "label"), "image")
        assert rows[0]["image"].size == (3, 2)
