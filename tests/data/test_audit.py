import io
import logging

import datasets
import pytest
from PIL import Image

from hftl.data.audit import audit
from hftl.data.labels import LabelInfo
from hftl.errors import UserError

INFO = LabelInfo("single_label_classification", ("a", "b"))
REGRESSION = LabelInfo("regression", ("value",))


def texts(*values, labels=None, **more):
    columns = {"row_id": range(7, 7 + len(values)), "text": values, **more}
    return datasets.Dataset.from_dict({**columns, "label": labels or [i % 2 for i in range(len(values))]})


def images(*values):
    features = {"row_id": datasets.Value("int64"), "image": datasets.Image(), "label": datasets.Value("int64")}
    rows = {"row_id": range(7, 7 + len(values)), "image": values, "label": [i % 2 for i in range(len(values))]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def encode(size=(40, 30), color=0, kind="JPEG"):
    buffer = io.BytesIO()
    Image.effect_noise(size, 50 + color).save(buffer, kind)
    return buffer.getvalue()


def test_good_rows_pass_unchanged():
    splits = datasets.DatasetDict(train=texts("x", "y"), test=texts("z", "w"))
    kept, report = audit(splits, INFO, "text")
    assert {split: rows.to_list() for split, rows in kept.items()} == {
        split: rows.to_list() for split, rows in splits.items()
    }
    found = report.as_dict()
    assert [finding["kind"] for finding in found.pop("findings")] == ["tiny_classes"]
    assert found == {
        "num_rows": {"train": 2, "test": 2},
        "bad_rows": {"train": {}, "test": {}},
        "num_duplicates": {"test": 0},
        "label_counts": {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}},
        "looked_for_near_duplicates": True,
        "detectable_difference": None,
    }


def test_empty_texts_are_an_error_that_names_rows_and_the_way_out():
    splits = datasets.DatasetDict(train=texts("x", None, "y", " \n\t"), test=texts(*[""] * 7))
    with pytest.raises(UserError) as error:
        audit(splits, INFO, "text")
    message = str(error.value)
    assert "train: 2 x empty text (row_id 8, 10);" in message
    assert "test: 7 x empty text (row_id 7, 8, 9, 10, 11, ...)" in message
    assert "--on_bad_rows skip" in message


def test_a_pair_is_bad_if_either_text_is_empty():
    splits = datasets.DatasetDict(train=texts("x", "y", "", text_pair=["p", None, "q"]))
    with pytest.raises(UserError, match=r"train: 2 x empty text \(row_id 8, 9\)"):
        audit(splits, INFO, "text")


def test_bad_rows_are_dropped_counted_and_warned_about(caplog):
    splits = datasets.DatasetDict(train=texts("x", "", "y", "z"), validation=texts("v", "w"))
    kept, report = audit(splits, INFO, "text", "skip")
    assert kept["train"]["row_id"][:] == [7, 9, 10]
    assert report.num_rows == {"train": 3, "validation": 2}
    assert report.bad_rows == {"train": {"empty text": 1}, "validation": {}}
    assert report.label_counts["train"] == {"a": 2, "b": 1}
    assert "Dropped 1 of 4 rows of train: 1 x empty text" in caplog.text


def test_a_split_or_class_of_which_nothing_is_left_is_refused():
    with pytest.raises(UserError, match=r"No row of test can be used \(2 x empty text\)"):
        audit(datasets.DatasetDict(train=texts("x", "y"), test=texts("", "")), INFO, "text", "skip")
    with pytest.raises(UserError, match="Without its bad rows, train has nothing of class b"):
        audit(datasets.DatasetDict(train=texts("x", "", "z")), INFO, "text", "skip")


def test_inputs_that_train_shares_with_other_splits_are_counted(caplog):
    splits = datasets.DatasetDict(
        train=texts("One  two", "y"), validation=texts("ONE two\n", "v"), test=texts("y", "y", "one", "onetwo")
    )
    report = audit(splits, INFO, "text")[1]
    assert report.num_duplicates == {"validation": 1, "test": 2}
    assert "duplicates_across_splits: 1 of 2 rows of validation, 2 of 4 rows of test" in caplog.text


def test_a_pair_is_a_duplicate_only_as_a_whole():
    train, test = texts("a b", "c", text_pair=["c", "d"]), texts("a", "a b", text_pair=["b c", "C"])
    assert audit(datasets.DatasetDict(train=train, test=test), INFO, "text")[1].num_duplicates == {"test": 1}


def test_classes_are_counted_only_where_rows_have_one_each():
    splits = datasets.DatasetDict(train=texts("x", "y", labels=[0.5, 1.5]))
    assert audit(splits, REGRESSION, "text")[1].label_counts == {"train": {}}


def test_unusable_images_are_told_apart_and_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    good = encode()
    bad = {
        "corrupt image": [{"path": None, "bytes": good[: len(good) // 2]}, {"path": None, "bytes": b"GIF89a, not"}],
        "empty image file": [str(tmp_path / "empty.png")],
        "missing file": [str(tmp_path / "missing.png")],
        "no image": [None],
    }
    values = [{"path": None, "bytes": good}] * 2 + [image for group in bad.values() for image in group]
    splits = datasets.DatasetDict(train=images(*values))
    with pytest.raises(UserError) as error:
        audit(splits, INFO, "image")
    message = str(error.value)
    assert "2 x corrupt image (row_id 9, 10)" in message
    assert f"1 x empty image file (row_id 11 {tmp_path}/empty.png)" in message
    assert f"1 x missing file (row_id 12 {tmp_path}/missing.png)" in message
    assert "1 x no image (row_id 13)" in message
    kept, report = audit(splits, INFO, "image", "skip")
    assert report.bad_rows["train"] == {kind: len(group) for kind, group in bad.items()}
    assert [row["image"].size for row in kept["train"]] == [(40, 30)] * 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_a_cut_off_image_is_found_in_every_format(kind):
    good = encode(kind=kind)
    splits = datasets.DatasetDict(
        train=images({"path": None, "bytes": good}, {"path": None, "bytes": good[: int(len(good) * 0.9)]})
    )
    with pytest.raises(UserError, match=r"train: 1 x corrupt image \(row_id 8\)"):
        audit(splits, INFO, "image")


def test_an_image_beyond_pillows_pixel_limit_is_bad_and_the_limit_stays(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    splits = datasets.DatasetDict(
        train=images({"path": None, "bytes": encode((20, 20))}, {"path": None, "bytes": encode((40, 40))})
    )
    with pytest.raises(UserError, match=r"1 x image with too many pixels \(row_id 8\)"):
        audit(splits, INFO, "image")
    assert Image.MAX_IMAGE_PIXELS == 500


def test_an_image_is_a_duplicate_by_its_bytes(tmp_path):
    for name, color in (("a.png", 1), ("copy.png", 1), ("other.png", 2)):
        (tmp_path / name).write_bytes(encode(color=color, kind="PNG") if name != "copy.png" else b"")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    splits = datasets.DatasetDict(
        train=images(str(tmp_path / "a.png"), {"path": None, "bytes": encode(color=3)}),
        test=images(str(tmp_path / "copy.png"), str(tmp_path / "other.png")),
    )
    assert audit(splits, INFO, "image")[1].num_duplicates == {"test": 1}


def test_many_images_are_checked_in_order(caplog):
    caplog.set_level(logging.WARNING)
    good, bad = {"path": None, "bytes": encode()}, {"path": None, "bytes": b"x"}
    values = [bad if index in (3, 299, 300) else good for index in range(600)]
    kept, _ = audit(datasets.DatasetDict(train=images(*values)), INFO, "image", "skip")
    assert sorted(set(range(7, 607)) - set(kept["train"]["row_id"][:])) == [10, 306, 307]
