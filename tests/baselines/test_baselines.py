"""Baselines against scikit-learn by hand, and that the test rows decide nothing."""

import csv
import json
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
import transformers
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neighbors import NearestNeighbors

from hftl import baselines
from hftl.baselines import BASELINES, find_baseline, run_baseline
from hftl.config import parse_args
from hftl.data.labels import MULTI, REGRESSION, SINGLE, LabelInfo
from hftl.errors import UserError
from hftl.run_record import RunRecord, read_predictions
from hftl.tasks import build_task
from hftl.training.run import run
from tests import tiny

TEXT_BASELINES = tuple(BASELINES)
IMAGE_BASELINES = ("majority", "prior", "knn")
LABELS = list(tiny.LABELS)


def _write_texts(path: Path, n: int, seed: int, labels=None) -> Path:
    """Classes of unequal size, and a fifth of the labels drawn at random: no baseline is perfect."""
    draw = random.Random(seed)
    pool = tiny.make_texts(3 * n, seed=seed)
    rows = [pool[3 * i + (i % 3 if i % 4 else 0)] for i in range(n)]
    for row in rows:
        if draw.random() < 0.2:
            row["label"] = draw.choice(LABELS)
    for row, label in zip(rows, labels or [], strict=False):
        row["label"] = label
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def _write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    tiny.write_tiny_bert(folder / "bert")
    tiny.write_tiny_vit(folder / "vit")
    for seed, (split, n) in enumerate({"train": 60, "validation": 24, "test": 30}.items()):
        _write_texts(folder / f"{split}.csv", n, seed)
        draw, texts = random.Random(seed), tiny.make_texts(n, seed=seed)
        labels = [[row["label"], *draw.sample("xyz", draw.randint(0, 2))] for row in texts]
        multi = [{"text": row["text"], "label": label} for row, label in zip(texts, labels, strict=True)]
        _write_lines(folder / f"multi-{split}.jsonl", multi)
        scores = [3.0 * LABELS.index(row["label"]) + draw.random() for row in texts]
        pairs = [
            {"a": row["text"], "b": other["text"], "score": score}
            for row, other, score in zip(texts, texts[1:] + texts[:1], scores, strict=True)
        ]
        _write_lines(folder / f"pair-{split}.jsonl", pairs)
    tiny.write_image_folder(folder / "photos" / "train", 8)
    tiny.write_image_folder(folder / "photos" / "test", 4, seed=1)
    return folder


def _flags(folder: Path, case: str) -> list[str]:
    if case == "image":
        return ["--task", "image-classification", "--dataset", f"{folder}/photos", "--validation_fraction", "0.25"]
    prefix, ending = {"text": ("", "csv"), "multi-label": ("multi-", "jsonl"), "pair": ("pair-", "jsonl")}[case]
    words = [
        word
        for split in ("train", "validation", "test")
        for word in (f"--{split}_file", f"{folder}/{prefix}{split}.{ending}")
    ]
    if case == "pair":
        words += ["--text_columns", "a", "b", "--label_column", "score", "--problem_type", "regression"]
    return words


@pytest.fixture(scope="module")
def runs(folder):
    """Runs by (case, mode, further flags), made when first asked for, all in this one process."""
    done = {}

    def get(case: str, mode: str, *flags: str) -> SimpleNamespace:
        key = (case, mode, flags)
        if key not in done:
            target = folder / f"run-{len(done)}"
            model = str(folder / ("vit" if case == "image" else "bert"))
            words = [*_flags(folder, case), "--output_dir", str(target), *flags]
            if mode not in BASELINES or BASELINES[mode].has_network:
                words += ["--model_name_or_path", model]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HFTL_CACHE", str(folder / "cache"))
                record = (run_baseline if mode in BASELINES else run)(parse_args(words, mode=mode))
            done[key] = SimpleNamespace(record=record, folder=target, table=read_predictions(target))
        return done[key]

    return get


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], np.array([LABELS.index(row["label"]) for row in rows])


def test_majority_and_frequencies_equal_scikit_learn(folder, runs):
    _, y = _read_csv(folder / "train.csv")
    _, truth = _read_csv(folder / "test.csv")
    table = runs("text", "majority").table
    expected = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(y), 1)), y).predict(truth[:, None])
    np.testing.assert_array_equal(table["prediction"], expected)
    frequencies = (np.bincount(y, minlength=3) + 1) / (len(y) + 3)
    np.testing.assert_allclose(table["probabilities"], np.tile(frequencies, (len(truth), 1)), rtol=1e-6)
    metrics = runs("text", "majority").record.metrics["test"]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, expected))
    assert metrics["log_loss"] == pytest.approx(log_loss(truth, np.tile(frequencies, (len(truth), 1))))


def test_majority_of_several_labels_and_of_values(folder, runs):
    rows = {split: _read_lines(folder / f"multi-{split}.jsonl") for split in ("train", "test")}
    done = runs("multi-label", "majority")
    counts = np.array([sum(name in row["label"] for row in rows["train"]) for name in done.record.data["label_names"]])
    expected = np.tile((counts + 1) / (60 + 2), (30, 1))
    np.testing.assert_allclose(done.table["probabilities"], expected, rtol=1e-6)
    np.testing.assert_array_equal(done.table["prediction"], expected >= 0.5)
    mean = np.mean([row["score"] for row in _read_lines(folder / "pair-train.jsonl")])
    np.testing.assert_allclose(runs("pair", "majority").table["prediction"], mean, rtol=1e-6)


def test_prior_draws_whole_label_sets_and_values_of_train(folder, runs):
    names = runs("multi-label", "prior").record.data["label_names"]
    rows = _read_lines(folder / "multi-train.jsonl")
    known = {tuple(int(name in row["label"]) for name in names) for row in rows}
    drawn = {tuple(row) for row in runs("multi-label", "prior").table["prediction"].tolist()}
    assert drawn <= known and len(drawn) > 3
    values = np.float32([row["score"] for row in _read_lines(folder / "pair-train.jsonl")])
    assert set(np.float32(runs("pair", "prior").table["prediction"])) <= set(values)


def test_prior_draws_labels_as_often_as_they_are_in_train():
    labels = np.repeat([0, 1, 2], [70, 25, 5])
    info = LabelInfo(SINGLE, ("a", "b", "c"))
    fit = BASELINES["prior"].fit(info, 3, baselines.Rows(None, labels), baselines.Rows(None, labels[:3]))
    outputs = fit.predict(None, 20_000)
    shares = np.bincount(outputs.decisions.argmax(1), minlength=3) / 20_000
    np.testing.assert_allclose(shares, [0.7, 0.25, 0.05], atol=0.015)  # 4 standard errors


def test_prior_is_scored_by_its_draws_and_its_probabilities(runs):
    done = runs("text", "prior")
    truth, metrics = done.table["label"], done.record.metrics["test"]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, done.table["prediction"]))
    assert len(set(done.table["prediction"])) > 1
    assert metrics["log_loss"] == runs("text", "majority").record.metrics["test"]["log_loss"]


def _weigh_by_hand(train: list[str], *others: list[str]) -> list[scipy.sparse.csr_matrix]:
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    for terms in (words, letters):
        terms.fit(train)
    return [scipy.sparse.hstack([words.transform(x), letters.transform(x)]).tocsr() for x in (train, *others)]


def test_tfidf_equals_scikit_learn_fitted_on_train_alone(folder, runs):
    """The strength is the one with the lowest log loss on validation, and validation is for nothing else."""
    (train, y), (held_out, v), (test, t) = (_read_csv(folder / f"{s}.csv") for s in ("train", "validation", "test"))
    x, x_validation, x_test = _weigh_by_hand(train, held_out, test)
    fits = {c: LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(x, y) for c in baselines.STRENGTHS}
    losses = {c: log_loss(v, fit.predict_proba(x_validation)) for c, fit in fits.items()}
    best = min(losses, key=losses.get)
    done = runs("text", "tfidf")
    assert done.record.model["strength"] == best
    assert done.record.model["validation_loss"] == pytest.approx(losses[best], abs=1e-3)
    np.testing.assert_allclose(done.table["probabilities"], fits[best].predict_proba(x_test), atol=2e-3)
    assert done.record.metrics["test"]["accuracy"] == accuracy_score(t, fits[best].predict(x_test))
    assert done.record.model["num_parameters"] == (x.shape[1] + 1) * 3


def test_tfidf_of_pairs_equals_ridge_regression(folder, runs):
    rows = {split: _read_lines(folder / f"pair-{split}.jsonl") for split in ("train", "validation", "test")}
    columns = [_weigh_by_hand(*([row[name] for row in part] for part in rows.values())) for name in ("a", "b")]
    x, x_validation, x_test = (scipy.sparse.hstack(both).toarray() for both in zip(*columns, strict=True))
    y, v, t = (np.array([row["score"] for row in part]) for part in rows.values())
    fits = {c: Ridge(alpha=1 / c).fit(x, y) for c in baselines.STRENGTHS}
    best = min(fits, key=lambda c: np.mean((fits[c].predict(x_validation) - v) ** 2))
    done = runs("pair", "tfidf")
    assert done.record.model["strength"] == best
    np.testing.assert_allclose(done.table["prediction"], fits[best].predict(x_test), atol=1e-3)
    assert done.record.metrics["test"]["mse"] < 0.5 * runs("pair", "majority").record.metrics["test"]["mse"]


def test_tfidf_of_several_labels_equals_one_logistic_regression_each(folder, runs):
    rows = {split: _read_lines(folder / f"multi-{split}.jsonl") for split in ("train", "validation", "test")}
    done = runs("multi-label", "tfidf")
    x, _, x_test = _weigh_by_hand(*([row["text"] for row in part] for part in rows.values()))
    for index, name in enumerate(done.record.data["label_names"]):
        y = [name in row["label"] for row in rows["train"]]
        fit = LogisticRegression(C=done.record.model["strength"], tol=1e-8, max_iter=10_000).fit(x, y)
        np.testing.assert_allclose(done.table["probabilities"][:, index], fit.predict_proba(x_test)[:, 1], atol=2e-3)


def test_rotated_features_give_the_same_model_as_the_terms_themselves(folder, monkeypatch):
    (train, y), (held_out, v) = (_read_csv(folder / f"{split}.csv") for split in ("train", "validation"))
    info, rows = LabelInfo(SINGLE, tuple(LABELS)), (baselines.Rows([train], y), baselines.Rows([held_out], v))
    rotated = BASELINES["tfidf"].fit(info, 0, *rows)
    monkeypatch.setattr(baselines, "MAX_ROTATED", 0)
    plain = BASELINES["tfidf"].fit(info, 0, *rows)
    assert rotated.model["strength"] == plain.model["strength"]
    outputs = [np.exp(fit.predict([held_out], len(v)).logits) for fit in (rotated, plain)]
    np.testing.assert_allclose(*outputs, atol=2e-3)


def test_a_class_that_train_lacks_keeps_its_smoothed_frequency():
    x, labels = np.eye(4), np.array([0, 0, 2, 2])
    logits = baselines._fit_linear(LabelInfo(SINGLE, ("a", "b", "c")), x, labels, 1.0)(x)
    np.testing.assert_allclose(logits[:, 1], np.log(1 / 7))
    assert logits.argmax(1).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("texts", [["one text"] * 4, ["?!", "!!", "...", "a"]])
def test_tfidf_reads_texts_that_hold_nothing(texts):
    rows = baselines.Rows([texts], np.array([0, 1, 1, 0]))
    fit = BASELINES["tfidf"].fit(LabelInfo(SINGLE, ("a", "b")), 0, rows, rows)
    assert np.isfinite(fit.predict([["new", ""]], 2).logits).all()


def _compute_bert_features(folder: Path, texts: list[str], kind: str) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "bert")
    network = transformers.AutoModel.from_pretrained(folder / "bert").eval()
    with torch.no_grad():
        outputs = [network(**tokenizer(text, return_tensors="pt")) for text in texts]
    return (
        torch.cat([o.pooler_output if kind == "own" else o.last_hidden_state[:, 0] for o in outputs]).double().numpy()
    )


def _estimate_by_hand(x, y, z, k: int, temperature: float) -> np.ndarray:
    mean, k = x.mean(0), min(k, len(x))
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(x - mean)
    distance, index = search.kneighbors(z - mean)
    weights = np.exp(-(distance - distance[:, :1]) / temperature)
    frequencies = (np.bincount(y, minlength=3) + 1) / (len(y) + 3)
    votes = np.stack([(weights * (y[index] == c)).sum(1) for c in range(3)], axis=1)
    return (votes + 0.1 * frequencies) / (weights.sum(1, keepdims=True) + 0.1)


def test_knn_equals_scikit_learn_on_the_frozen_features(folder, runs):
    """Every choice is tried by hand; the one that the run took has the lowest loss on validation."""
    done = runs("text", "knn")
    (train, y), (held_out, v), (test, _) = (_read_csv(folder / f"{s}.csv") for s in ("train", "validation", "test"))
    losses, estimates = {}, {}
    for kind in ("own", "linear"):
        x, z, w = (_compute_bert_features(folder, texts, kind) for texts in (train, held_out, test))
        for k, temperature in [(k, t) for k in baselines.NEIGHBOURS for t in baselines.TEMPERATURES]:
            losses[kind, k, temperature] = log_loss(v, _estimate_by_hand(x, y, z, k, temperature))
            estimates[kind, k, temperature] = _estimate_by_hand(x, y, w, k, temperature)
    model = done.record.model
    chosen = model["features"], model["k"], model["temperature"]
    assert losses[chosen] == pytest.approx(min(losses.values()), abs=1e-3)
    assert model["validation_loss"] == pytest.approx(losses[chosen], abs=1e-3)
    np.testing.assert_allclose(done.table["probabilities"], estimates[chosen], atol=2e-3)


def test_neighbours_of_a_large_split_are_found_in_chunks(monkeypatch):
    draw = np.random.default_rng(0)
    memory = baselines._Memory(draw.normal(size=(40, 5)), draw.integers(0, 2, 40), LabelInfo(SINGLE, ("a", "b")))
    queries = draw.normal(size=(23, 5))
    whole = memory.find(queries, 7)
    monkeypatch.setattr(baselines, "CHUNK", 4)
    np.testing.assert_array_equal(whole.index, memory.find(queries, 7).index)
    assert (np.diff(whole.similarity) <= 0).all()


def test_neighbours_average_values_and_labels():
    x = np.array([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, -0.1]])
    values, hot = np.array([10.0, 12.0, -10.0, -12.0]), np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    for info, labels, expected in (
        (LabelInfo(REGRESSION, ("value",)), values, [[11.0], [-11.0]]),
        (LabelInfo(MULTI, ("a", "b")), hot, [[1.0, 0.0], [0.0, 1.0]]),
    ):
        memory = baselines._Memory(x, labels, info)
        found = memory.find(np.array([[1.0, 0.05], [-1.0, -0.05]]), 2)
        np.testing.assert_allclose(memory.estimate(found, 2, 0.5), expected, atol=0.06 * np.abs(expected).max())


def test_damaged_features_are_refused():
    with pytest.raises(UserError, match="not finite"):
        baselines._Memory(np.array([[np.nan, 1.0]]), np.array([0]), LabelInfo(SINGLE, ("a", "b")))


@pytest.mark.parametrize("mode", TEXT_BASELINES)
def test_labels_of_test_rows_decide_nothing(mode, folder, runs):
    """Other test labels: the same predictions, and another score, so the labels were read."""
    _, truth = _read_csv(folder / "test.csv")
    changed = [LABELS[(label + 1) % 3] for label in truth]
    other = _write_texts(folder / "turned" / "test.csv", 30, 2, labels=changed)
    first, again = runs("text", mode), runs("text", mode, "--test_file", str(other))
    for column in ("row_id", "prediction", "probabilities"):
        np.testing.assert_array_equal(first.table[column], again.table[column])
    np.testing.assert_array_equal((first.table["label"] + 1) % 3, again.table["label"])
    metrics = [done.record.metrics for done in (first, again)]
    assert metrics[0]["validation"] == metrics[1]["validation"]
    assert metrics[0]["test"]["accuracy"] != metrics[1]["test"]["accuracy"]


@pytest.mark.parametrize("mode", TEXT_BASELINES)
def test_validation_rows_are_not_fitted(mode, folder, monkeypatch):
    """With a single choice left, labels of validation cannot change a prediction."""
    monkeypatch.setattr(baselines, "STRENGTHS", (10.0,))
    monkeypatch.setattr(baselines, "NEIGHBOURS", (5,))
    monkeypatch.setattr(baselines, "TEMPERATURES", (0.1,))
    (train, y), (held_out, v), (test, t) = (_read_csv(folder / f"{s}.csv") for s in ("train", "validation", "test"))
    read = {"tfidf": lambda texts: [texts], "knn": lambda texts: {"own": lambda: _compute_lengths(texts)}}
    inputs = [read.get(mode, lambda texts: None)(texts) for texts in (train, held_out, test)]
    outputs = []
    for labels in (v, (v + 1) % 3):
        rows = baselines.Rows(inputs[0], y), baselines.Rows(inputs[1], labels)
        fit = BASELINES[mode].fit(LabelInfo(SINGLE, tuple(LABELS)), 0, *rows)
        result = fit.predict(inputs[2], len(t))
        outputs.append(result.logits if result.decisions is None else result.decisions)
    np.testing.assert_array_equal(*outputs)


def _compute_lengths(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), text.count("a"), text.count("e"), len(text.split())] for text in texts], float)


@pytest.mark.parametrize("case", ["text", "multi-label", "pair", "image"])
def test_rows_are_those_of_a_training_run(case, runs):
    expected = runs(case, "probe")
    for mode in IMAGE_BASELINES if case == "image" else TEXT_BASELINES:
        done = runs(case, mode)
        for column in ("row_id", "label"):
            np.testing.assert_array_equal(done.table[column], expected.table[column])
        assert done.table.keys() == expected.table.keys()
        assert done.table["prediction"].shape == expected.table["prediction"].shape
        assert done.record.data == _without_tokens(expected.record.data)
        assert done.record.metrics["test"].keys() == expected.record.metrics["test"].keys()


def _without_tokens(data):
    """Baselines have no tokenizer."""
    return {name: value for name, value in data.items() if name != "tokens"}


def test_subsets_are_those_of_a_training_run(runs):
    cut = ("--num_train_examples", "20", "--num_validation_examples", "9", "--num_test_examples", "15", "--seed", "5")
    data = [_without_tokens(runs("text", mode, *cut).record.data) for mode in ("probe", *TEXT_BASELINES)]
    assert data[0]["num_train_examples"] == 20
    assert all(other == data[0] for other in data[1:])


@pytest.mark.parametrize("case", ["text", "image"])
def test_probabilities_sum_to_one(case, runs):
    for mode in IMAGE_BASELINES if case == "image" else TEXT_BASELINES:
        probabilities = runs(case, mode).table["probabilities"]
        assert (probabilities >= 0).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("mode", TEXT_BASELINES)
def test_a_seed_repeats(mode, runs, folder):
    first, again = runs("text", mode), runs("text", mode, "--logging_steps", "7")
    assert first.folder != again.folder
    for column in first.table:
        np.testing.assert_array_equal(first.table[column], again.table[column])
    assert first.record.metrics == again.record.metrics


def test_another_seed_draws_other_labels(runs):
    first, other = runs("text", "prior"), runs("text", "prior", "--seed", "9")
    assert not np.array_equal(first.table["prediction"], other.table["prediction"])


def test_what_can_be_learned_is_learned(runs):
    """Words tell the class of most texts, colours that of every picture."""
    floor = runs("text", "majority").record.metrics["test"]["accuracy"]
    assert runs("text", "tfidf").record.metrics["test"]["accuracy"] > floor + 0.1
    assert runs("image", "knn").record.metrics["test"]["accuracy"] > 0.8
    assert runs("multi-label", "tfidf").record.metrics["test"]["f1_micro"] > 0.5


@pytest.mark.parametrize("mode", TEXT_BASELINES)
def test_record_has_every_part_of_the_cost(mode, runs):
    stored = RunRecord.read(runs("text", mode).folder)
    assert (stored.mode, stored.status, set(stored.metrics)) == (mode, "completed", {"validation", "test"})
    parts = [stored.cost[f"{name}_seconds"] for name in ("startup", "train", "evaluation", "save", "other")]
    assert all(part >= 0 for part in parts) and parts[1] > 0
    assert sum(parts) == pytest.approx(stored.cost["wall_seconds"], rel=1e-6)
    assert stored.cost["num_examples_seen"] == 60
    assert stored.cost["peak_memory_bytes"] > 0
    assert (stored.cost["num_steps"], stored.cost["artifact_bytes"]) == (0, 0)
    assert not list(runs("text", mode).folder.glob("*.safetensors"))


def test_flops_are_those_of_reading_train_once(runs):
    flops = {mode: runs("text", mode).record.cost["train_flops"] for mode in (*TEXT_BASELINES, "probe")}
    assert flops["majority"] == flops["prior"] == 0
    assert flops["tfidf"] is None
    assert flops["knn"] == flops["probe"] > 0


def test_start_of_the_process_counts_as_startup(folder, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(folder / "cache"))
    words = [*_flags(folder, "text"), "--output_dir", str(folder / "late")]
    record = run_baseline(parse_args(words, mode="majority"), started=time.time() - 50)
    assert 50 <= record.cost["startup_seconds"] < 80


def test_a_failure_is_recorded(folder, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("broken on purpose")

    monkeypatch.setitem(BASELINES, "majority", baselines.Baseline("Majority class", baselines._read_nothing, fail))
    words = [*_flags(folder, "text"), "--output_dir", str(folder / "failed")]
    with pytest.raises(RuntimeError, match="on purpose"):
        run_baseline(parse_args(words, mode="majority"))
    stored = RunRecord.read(folder / "failed")
    assert stored.status == "failed" and "on purpose" in stored.error
    assert not (folder / "failed" / "predictions.parquet").exists()


def test_tfidf_on_images_names_those_that_fit(folder):
    with pytest.raises(UserError, match=r"reads text, but .* image inputs.*: majority, prior, knn\."):
        run_baseline(parse_args([*_flags(folder, "image"), "--output_dir", str(folder / "no")], mode="tfidf"))
    assert not (folder / "no").exists()


def test_mistakes_are_explained(folder, runs):
    with pytest.raises(UserError, match="Unknown baseline 'tfidg'. Did you mean 'tfidf'"):
        find_baseline("tfidg", build_task("text-classification"))
    with pytest.raises(UserError, match="--model_name_or_path"):
        run_baseline(parse_args([*_flags(folder, "text"), "--output_dir", str(folder / "no")], mode="knn"))
    used = ["--output_dir", str(runs("text", "majority").folder)]
    with pytest.raises(UserError, match="already holds files"):
        run_baseline(parse_args([*_flags(folder, "text"), *used], mode="majority"))
