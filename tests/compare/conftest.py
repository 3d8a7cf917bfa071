"""What the tests of plans and of campaigns share: a tiny checkpoint and three tables of texts."""

import pytest

from tests.tiny import write_text_csv, write_tiny_bert


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tiny_bert(folder / "bert")
    for seed, (split, n) in enumerate({"train": 120, "validation": 30, "test": 60}.items()):
        write_text_csv(folder / f"{split}.csv", n, seed=seed)
    return folder
