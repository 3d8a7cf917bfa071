"""Annotations files of COCO: images beside them become rows, and what does not fit together is named by its id."""

import gzip
import json
import logging
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hftl.config import DataArguments
from hftl.data.boxes import read_boxes
from hftl.data.load import load_splits
from hftl.data.stream import open_stream
from hftl.errors import UserError


def make_content():
    return {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "bbox": [1.5, 2, 10, 5], "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 5, "bbox": [0, 0, 40, 20]},
            {"id": 4, "image_id": 7, "category_id": 5, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "hat"}, {"id": 5, "name": "shoe"}, {"id": -1, "name": "bag"}],
    }


def write(folder, content, *, name="train.json", images="."):
    (folder / images).mkdir(exist_ok=True, parents=True)
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    for file in ("a.png", "b.png"):
        Image.new("RGB", (40, 20)).save(folder / images / file)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder / name


def load(path, **options):
    return read_boxes(load_splits(DataArguments(train_file=str(path), **options)), DataArguments(**options))


@pytest.mark.parametrize(
    "name, images",
    [
        ("train.json", "."),
        ("train.json", "images"),
        ("annotations/instances_val2017.json", "val2017"),
    ],
)
def test_images_are_found_where_they_usually_lie(tmp_path, name, images):
    names, splits = load(write(tmp_path, make_content(), name=name, images=images))
    assert names == ("bag", "shoe", "hat")  # in the order of their ids
    train = splits["train"]
    assert train["boxes"][:] == [[], [[1.5, 2, 10, 5], [0, 0, 40, 20]]]
    assert train["classes"][:] == [[], [2, 1]]
    assert train[0]["image"].size == (40, 20)


def test_a_packed_file_and_a_folder_of_splits_are_read(tmp_path):
    path = write(tmp_path, make_content())
    with gzip.open(tmp_path / "packed.json.gz", "wt", encoding="utf-8") as file:
        file.write(path.read_text(encoding="utf-8"))
    assert load(tmp_path / "packed.json.gz")[0] == ("bag", "shoe", "hat")
    for split in ("train", "valid"):
        write(tmp_path / "exported" / split, make_content(), name="_annotations.coco.json")
    splits = load_splits(DataArguments(dataset=str(tmp_path / "exported")))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 2}


def test_crowds_are_counted_and_left_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(write(tmp_path, make_content()))
    assert "1 annotations of crowds are left out, such as 4" in caplog.text


def change(part, place, **values):
    content = make_content()
    content[part][place] |= values
    return content


@pytest.mark.parametrize(
    "content, message",
    [
        (
            change("annotations", 1, category_id=6),
            "annotation 2 has the category 6, which has no name; known are -1, 5",
        ),
        (change("annotations", 1, image_id=8), "annotation 2 is of image 8, which is not there"),
        (change("annotations", 1, id=1), "the id 1 stands 2 times in annotations"),
        (change("images", 0, id=3), "the id 3 stands 2 times in images"),
        (change("images", 0, id="x"), "the id 'x' in images is no integer"),
        (change("categories", 0, id=5), "the id 5 stands 2 times in categories"),
        (change("categories", 0, name="bag"), "2 categories are called 'bag'"),
        (change("images", 0, file_name="c.png"), "the file of image 7, c.png, is in none of .*images"),
        (change("images", 0, file_name="../a.png"), "image 7: The image path '../a.png' leads out of the folder"),
        (change("annotations", 1, bbox=[0, 0, 0, 5]), r"row_id 1 \(image 3\): .*\(annotation 2\) has no area"),
        (change("annotations", 1, bbox=[0, 0, 4, -5]), r"row_id 1 \(image 3\): .*\(annotation 2\) has no area"),
        (change("annotations", 1, bbox=[9, 0, 33, 5]), r"\(annotation 2\) reaches out of the image of 40 x 20"),
        (change("annotations", 1, bbox=[9, 0]), r"\(annotation 2\) is not \[x, y, width, height\]"),
        (change("annotations", 1, bbox=["a", 0, 1, 1]), r"annotation 2 has the bbox \['a', 0, 1, 1\]; expected"),
        (make_content() | {"categories": []}, "has no categories"),
        (make_content() | {"images": [{"id": 3}, {"id": 7}]}, "is not whole: 'file_name' is missing"),
        (make_content() | {"annotations": [{"id": 1, "image_id": 3}]}, "is not whole: 'category_id' is missing"),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, content))


def test_a_box_may_reach_one_pixel_out_and_bad_images_are_dropped_when_asked_for(tmp_path):
    path = write(tmp_path, change("annotations", 1, bbox=[9, 0, 32, 20]))
    assert len(load(path)[1]["train"]) == 2
    path = write(tmp_path, change("annotations", 1, bbox=[9, 0, 33, 20]))
    assert load(path, on_bad_rows="skip")[1]["train"]["row_id"][:] == [0]


def test_splits_with_other_categories_are_refused(tmp_path):
    train = write(tmp_path, make_content())
    test = write(tmp_path, change("categories", 0, name="cap"), name="test.json")
    with pytest.raises(UserError, match="The classes of objects differ: train has .*'hat'.*test has .*'cap'"):
        load_splits(DataArguments(train_file=str(train), test_file=str(test)))


def test_a_packed_file_that_is_cut_is_an_error_of_a_prediction_as_well(tmp_path):
    whole = gzip.compress(write(tmp_path, make_content()).read_bytes())
    (tmp_path / "cut.json.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="cut.json.gz"):
        open_stream(str(tmp_path / "cut.json.gz"), DataArguments(), "image")


def test_its_images_are_what_a_prediction_reads(tmp_path):
    stream = open_stream(str(write(tmp_path, make_content())), DataArguments(), "image")
    windows = list(stream.read(["image"], 1))
    assert [Path(row["path"]).name for window in windows for row in window["image"]] == ["a.png", "b.png"]


def test_a_table_with_a_column_of_annotations_stays_a_table(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    row = {"image": "a.png", "annotations": [{"bbox": [1, 2, 3, 4], "category": "hat"}]}
    for name, text in (("rows.json", json.dumps(row) + "\n" + json.dumps(row)), ("list.json", json.dumps([row] * 2))):
        (tmp_path / name).write_text(text, encoding="utf-8")
        names, splits = load(tmp_path / name)
        assert (names, len(splits["train"]), isinstance(splits["train"], datasets.Dataset)) == (("hat",), 2, True)
