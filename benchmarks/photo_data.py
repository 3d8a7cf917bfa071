"""Fashion-MNIST as JPEGs of 256 px in a folder for each class: images that have to be decoded and resized."""

from pathlib import Path

import datasets

from hftl.assets import resolve_dataset


def write_photos(folder: Path, num_train: int = 400, num_test: int = 200) -> Path:
    """`train/`, `validation/` (100 images) and `test/`, each drawn from its split; returns `folder`.

    Without a validation split ours would hold one out of train, and train on fewer images than the other side.
    """
    for split, count in (("train", num_train), ("validation", 100), ("test", num_test)):
        path = resolve_dataset("bundled:fashion-mnist")[split]
        rows = datasets.load_dataset("parquet", data_files={split: path}, split=split)
        rows = rows.shuffle(seed=0).select(range(count))  # the validation split is not in random order
        names = rows.features["label"].names
        for index, row in enumerate(rows):
            target = folder / split / names[row["label"]].replace("/", "-")
            target.mkdir(parents=True, exist_ok=True)
            row["image"].convert("RGB").resize((256, 256)).save(target / f"{index}.jpg", quality=90)
    return folder
