"""Is the head found in every kind of network, fitted to the known optimum, and are frozen features computed once?"""

import logging

import datasets
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from hftl.config import parse_args
from hftl.errors import UserError
from hftl.models import head as head_module
from hftl.models.head import (
    LINEAR_SCALE,
    STRENGTHS,
    LinearHead,
    compute_features,
    find_head,
    find_pooling_layer,
    fit_head,
    has_bias,
    head_modules,
    make_linear,
    set_head,
)
from hftl.tasks.image_classification import ImageCollator
from hftl.tasks.text_classification import TextCollator
from hftl.training import head_init as head_start
from hftl.training.head_init import initialize_head, load_features
from tests.networks import (
    IMAGE_NETWORKS,
    IMAGE_SIZE,
    MULTI,
    NETWORKS,
    REGRESSION,
    SINGLE,
    TEXT_NETWORKS,
    build_network,
    build_tokenizer,
    run_plainly,
)

CPU = torch.device("cpu")
# The last linear layer; all modules outside of the pretrained body that have weights.
HEADS = {
    "bert": ("classifier", ["classifier"]),
    "distilbert": ("classifier", ["pre_classifier", "classifier"]),
    "roberta": ("classifier.out_proj", ["classifier"]),
    "modernbert": ("classifier", ["head", "classifier"]),
    "deberta": ("classifier", ["pooler", "classifier"]),
    "llama": ("score", ["score"]),
    "gpt2": ("score", ["score"]),
    "vit": ("classifier", ["classifier"]),
    "resnet": ("classifier.1", ["classifier"]),
    "resnet-bottleneck": ("classifier.1", ["classifier"]),
    "convnext": ("classifier", ["classifier"]),
    "swin": ("classifier", ["classifier"]),
    "efficientnet": ("classifier", ["classifier"]),
}


def build_rows(name, num_rows=24, seed=0):
    rng = np.random.default_rng(seed)
    columns = {"labels": rng.permutation(np.arange(num_rows) % 3).tolist()}
    if name in TEXT_NETWORKS:
        columns["input_ids"] = [rng.integers(3, 40, length).tolist() for length in rng.integers(2, 13, num_rows)]
        columns["length"] = [len(ids) for ids in columns["input_ids"]]
    else:
        pixels = rng.integers(0, 256, (num_rows, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        columns["pixels"] = [image.tobytes() for image in pixels]
        columns["height"] = columns["width"] = [IMAGE_SIZE] * num_rows
    return datasets.Dataset.from_dict(columns)


def build_collator(name, side="right"):
    if name in TEXT_NETWORKS:
        return TextCollator(build_tokenizer(side))
    return ImageCollator(np.full(3, 1 / 127.5, np.float32), np.full(3, -1, np.float32), "none")


def build_batches(name, side="right"):
    """Two padded batches, without labels."""
    rows = list(build_rows(name).remove_columns("labels"))
    return [build_collator(name, side)(rows[:12]), build_collator(name, side)(rows[12:])]


# --- where the head is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_labels", [3, 16])  # 16 is the width of the networks too
def test_the_head_is_found_in_every_network(name, num_labels):
    network = build_network(name, num_labels=num_labels)
    assert (find_head(network), head_modules(network, [])) == HEADS[name]


def test_modules_of_the_body_that_are_not_in_the_checkpoint_belong_to_the_head():
    """BERT's pooler is missing from a checkpoint of a masked language model."""
    network = build_network("bert")
    new = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    assert head_modules(network, new) == ["classifier", "bert.pooler.dense"]


def test_a_linear_layer_of_the_body_is_not_taken_for_the_head():
    network = build_network("vit", num_labels=16)  # as many as the layers of the body have outputs
    network.classifier = nn.Identity()
    with pytest.raises(UserError, match="no linear last layer"):
        find_head(network)


@pytest.mark.parametrize(
    ("name", "side"),
    [*[(name, "right") for name in NETWORKS], ("llama", "left"), ("gpt2", "left"), ("bert", "left")],
)
def test_logits_are_the_head_applied_to_the_features(name, side):
    network, batches = build_network(name), build_batches(name, side)
    features = compute_features(network, batches, CPU)
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(3, features.shape[1])).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32) if has_bias(network) else np.zeros(3, np.float32)
    set_head(network, LinearHead(weight, bias, strength=1.0, validation_loss=0.0))
    logits = run_plainly(network, batches).numpy()
    assert features.dtype == np.float32 and features.shape[0] == 24
    np.testing.assert_allclose(logits, features @ weight.T + bias, atol=2e-5)
    assert logits.std(0).min() > 1e-3  # of inputs, not of the bias alone


def test_features_of_a_decoder_do_not_depend_on_the_padding_side():
    """Of one with relative positions: GPT-2 counts its positions from the left end of the padding."""
    network = build_network("llama")
    left, right = (compute_features(network, build_batches("llama", side), CPU) for side in ("left", "right"))
    np.testing.assert_allclose(left, right, atol=1e-4)


def test_computing_features_leaves_the_network_as_it_was():
    network = build_network("roberta", hidden_dropout_prob=0.5).train()
    layer = network.classifier.out_proj
    first = compute_features(network, build_batches("roberta"), CPU)
    assert network.classifier.out_proj is layer and network.training
    assert all(module.training for module in network.modules())
    np.testing.assert_array_equal(compute_features(network, build_batches("roberta"), CPU), first)  # no dropout
    with pytest.raises(AttributeError):
        compute_features(network, [{"input_ids": "not a tensor"}], CPU)
    assert network.classifier.out_proj is layer and network.training


def test_labels_are_not_given_to_the_network():
    """They may be of another problem type than the head without its last layer takes."""
    network = build_network("bert")
    batches = build_batches("bert")
    with_labels = [batch | {"labels": torch.full((12,), 99)} for batch in batches]
    expected = compute_features(network, batches, CPU)
    np.testing.assert_array_equal(compute_features(network, with_labels, CPU), expected)


def test_a_bias_is_never_dropped_in_silence():
    network = build_network("llama")
    with pytest.raises(AssertionError, match="without a bias was fitted with one"):
        set_head(network, LinearHead(np.zeros((3, 16), np.float32), np.ones(3, np.float32), 1.0, 0.0))


# --- fit_head against known answers ------------------------------------------------------------------------------


def build_features(num_rows=200, num_features=6, seed=0):
    """Columns of very different size and offset, and scores that depend on them."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(num_rows, num_features))
    features = (signal * 10.0 ** np.arange(num_features) / 100 + np.arange(num_features)).astype(np.float32)
    return features, signal @ rng.normal(size=(num_features, 4)) + rng.normal(size=(num_rows, 4))


def split(features, labels):
    return (features[:150], labels[:150]), (features[150:], labels[150:])


def standardize(features, train):
    return (features - train.mean(0, dtype=np.float64)) / train.std(0, dtype=np.float64)


def apply(head, features):
    return features @ head.weight.astype(np.float64).T + head.bias


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("num_labels", [2, 4])
def test_classes_equal_scikit_learn_on_standardised_features(num_labels, monkeypatch):
    monkeypatch.setattr(head_module, "OPTIONS", head_module.OPTIONS | {"gtol": 1e-8, "ftol": 0})
    features, scores = build_features()
    train, validation = split(features, scores[:, :num_labels].argmax(1))
    head = fit_head(train, validation, SINGLE, num_labels)
    scaled = standardize(train[0], train[0]), standardize(validation[0], train[0])
    losses = {}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8).fit(scaled[0], train[1])
        losses[strength] = -model.predict_log_proba(scaled[1])[np.arange(50), validation[1]].mean()
    assert head.strength == min(losses, key=losses.get)
    assert head.validation_loss == pytest.approx(min(losses.values()), abs=1e-5)
    model = LogisticRegression(C=head.strength, max_iter=10_000, tol=1e-8).fit(scaled[0], train[1])
    assert head.weight.shape == (num_labels, 6) and head.bias.shape == (num_labels,)
    found = log_softmax(apply(head, validation[0]))
    np.testing.assert_allclose(found, model.predict_log_proba(scaled[1]), atol=1e-4)
    assert (found.argmax(1) == validation[1]).mean() > 0.6


def test_the_strength_is_the_one_that_validates_best():
    """Noise wants the strongest regularisation, a clean signal the weakest."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 20)).astype(np.float32)
    head = fit_head(*split(noise, rng.integers(0, 2, 200)), SINGLE, 2)
    assert head.strength == STRENGTHS[0]
    assert fit_head(*split(noise, (noise[:, 0] > 0).astype(int)), SINGLE, 2).strength == STRENGTHS[-1]


@pytest.mark.parametrize("present", [[0, 2, 3], [1, 3], [2]])
def test_a_class_without_a_training_row_is_almost_never_predicted(present):
    features, scores = build_features()
    labels = np.array(present)[scores[:, : len(present)].argmax(1)]
    head = fit_head(*split(features, labels), SINGLE, 4)
    probabilities = np.exp(log_softmax(apply(head, features)))
    missing = [label for label in range(4) if label not in present]
    assert np.median(probabilities[:, missing].sum(1)) < 1e-3
    assert set(probabilities.argmax(1)) <= set(present)
    if len(present) > 1:
        assert (probabilities.argmax(1) == labels).mean() > 0.6


def test_a_column_with_one_value_gets_the_smoothed_prior():
    features, scores = build_features()
    labels = (scores > 0).astype(np.float32)
    labels[:, 1], labels[:, 2] = 0.0, 1.0
    train, validation = split(features, labels)
    head = fit_head(train, validation, MULTI, 4)
    assert not head.weight[1:3].any()
    assert head.bias[1] == pytest.approx(-np.log(151), abs=1e-5)  # one of 152 rows
    assert head.bias[2] == pytest.approx(np.log(151), abs=1e-5)
    scaled = standardize(train[0], train[0]), standardize(validation[0], train[0])
    for column in (0, 3):
        model = LogisticRegression(C=head.strength, max_iter=1000, tol=1e-3).fit(scaled[0], train[1][:, column])
        expected = model.decision_function(scaled[1])
        np.testing.assert_allclose(apply(head, validation[0])[:, column], expected, atol=1e-4)


@pytest.mark.parametrize("with_bias", [True, False])
def test_values_are_fitted_by_ridge_regression(with_bias):
    features, scores = build_features()
    train, validation = split(features, scores[:, 0] + 5)
    head = fit_head(train, validation, REGRESSION, 1, with_bias=with_bias)
    mean = train[0].mean(0, dtype=np.float64) if with_bias else 0.0
    offset = train[1].mean() if with_bias else 0.0
    spread = train[0].std(0, dtype=np.float64)

    def solve(alpha):  # the closed form
        x = (train[0] - mean) / spread
        weight = np.linalg.solve(x.T @ x + alpha * np.eye(6), x.T @ (train[1] - offset))
        return ((validation[0] - mean) / spread) @ weight + offset

    losses = {strength: np.mean((solve(1 / strength) - validation[1]) ** 2) for strength in STRENGTHS}
    assert head.strength == min(losses, key=losses.get)
    assert head.weight.shape == (1, 6) and head.bias.shape == (1,)
    np.testing.assert_allclose(apply(head, validation[0])[:, 0], solve(1 / head.strength), atol=1e-3)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_a_head_without_a_bias_is_fitted_without_one(problem_type):
    features, scores = build_features()
    labels = {SINGLE: scores.argmax(1), MULTI: (scores > 0).astype(np.float32), REGRESSION: scores[:, 0]}[problem_type]
    num_labels = 1 if problem_type == REGRESSION else 4
    if problem_type == MULTI:
        labels[:, 1] = 0.0
    head = fit_head(*split(features - features.mean(0), labels), problem_type, num_labels, with_bias=False)
    assert not head.bias.any()
    if problem_type == SINGLE:
        assert (apply(head, features - features.mean(0)).argmax(1) == labels).mean() > 0.5


def test_a_constant_feature_is_harmless():
    features, scores = build_features()
    labels = scores.argmax(1)
    constant = np.concatenate([features, np.full((200, 1), 3.0, np.float32)], axis=1)
    with_it, without = (fit_head(*split(x, labels), SINGLE, 4) for x in (constant, features))
    np.testing.assert_allclose(apply(with_it, constant), apply(without, features), atol=1e-3)


@pytest.mark.parametrize("row", [10, 160], ids=["train", "validation"])
def test_features_that_are_not_finite_are_refused(row):
    features, scores = build_features()
    features[row, 0] = np.nan
    with pytest.raises(UserError, match="features are not finite: the checkpoint's weights may be damaged"):
        fit_head(*split(features, scores.argmax(1)), SINGLE, 4)


# --- initialize_head ---------------------------------------------------------------------------------------------


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    words = ["--dataset", "x", "--use_cpu", "--per_device_eval_batch_size", "5", "--output_dir", str(tmp_path / "run")]
    return parse_args([*words, "--mode", "full"])


@pytest.fixture
def passes(monkeypatch):
    """How many times the features of a split were really computed."""
    calls = []

    def compute(*arguments):
        calls.append(arguments)
        return compute_features(*arguments)

    monkeypatch.setattr(head_start, "compute_features", compute)
    return calls


def build_splits(name):
    return {"train": build_rows(name, 24, seed=0), "validation": build_rows(name, 12, seed=1)}


@pytest.mark.parametrize("name", ["bert", "llama", "resnet"])
def test_the_network_starts_as_the_fitted_head(name, args):
    network, rows = build_network(name), build_splits(name)
    collator = build_collator(name)
    made = initialize_head(network, args, "probe", rows, collator)
    features = {split: compute_features(network, [collator(list(rows[split]))], CPU) for split in rows}
    head = fit_head(
        (features["train"], np.array(rows["train"]["labels"])),
        (features["validation"], np.array(rows["validation"]["labels"])),
        SINGLE,
        3,
        with_bias=name != "llama",
    )
    assert made.pop("flops") > 0
    assert made == {"init": "probe", "strength": head.strength}
    logits = run_plainly(network, [collator(list(rows["train"].remove_columns("labels")))]).numpy()
    np.testing.assert_allclose(logits, features["train"] @ head.weight.T + head.bias, atol=1e-2)


def test_a_random_head_is_left_alone(args, passes):
    network = build_network("bert")
    before = network.classifier.weight.detach().clone()
    assert initialize_head(network, args, "random", build_splits("bert"), build_collator("bert")) == {"init": "random"}
    assert torch.equal(network.classifier.weight, before) and not passes


def test_a_network_without_a_linear_head_is_refused_or_starts_at_random_with_a_warning(args, caplog):
    network, rows = build_network("vit"), build_splits("vit")
    network.classifier = nn.Sequential(nn.Unflatten(1, (16, 1)), nn.Conv1d(16, 3, 1), nn.Flatten())
    with pytest.raises(UserError, match="ViTForImageClassification has no linear last layer.*--head_init random"):
        initialize_head(network, args, "probe", rows, build_collator("vit"))
    with caplog.at_level(logging.WARNING, "hftl"):
        made = initialize_head(network, args, "auto-probe", rows, build_collator("vit"))
    assert made == {"init": "random"}
    assert "The head starts at random: ViTForImageClassification has no linear last layer" in caplog.text


POOLING = {"bert": "bert.pooler.dense", "roberta": "classifier.dense", "deberta": "pooler.dense"}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_pooling_layer_is_found_where_there_is_one(name):
    network = build_network(name)
    expected = network.get_submodule(POOLING[name]) if name in POOLING else None
    assert find_pooling_layer(network) is expected


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_linear_pooling_layer_hands_on_what_it_reads(name):
    network, seen = build_network(name), []
    layer = find_pooling_layer(network)
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numpy()))
    make_linear(layer)
    features = compute_features(network, build_batches(name), CPU)
    np.testing.assert_allclose(features, LINEAR_SCALE * np.concatenate(seen), atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_one_pass_gives_the_features_of_both_poolings(name, args, passes, monkeypatch, tmp_path):
    network, rows, collator = build_network(name), build_rows(name, 23), build_collator(name)
    pooling = find_pooling_layer(network)
    head_start.read_both_poolings(network, pooling, rows, args, collator, "train")
    head_start.read_both_poolings(network, pooling, rows, args, collator, "train")  # which finds them
    own = load_features(network, rows, args, collator, "train")
    make_linear(pooling)
    linear = load_features(network, rows, args, collator, "train")
    assert len(passes) == 1
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "other"))
    np.testing.assert_allclose(linear, load_features(network, rows, args, collator, "train"), atol=1e-6)
    plain = build_network(name)
    np.testing.assert_allclose(own, load_features(plain, rows, args, collator, "train"), atol=1e-6)


@pytest.mark.parametrize("is_useless", [True, False])
@pytest.mark.parametrize("is_final", [True, False])
def test_a_pooling_layer_is_passed_by_when_that_validates_better_and_nothing_is_trained(is_useless, is_final, args):
    """The label is the sign of a direction of the body's own features, or of the pooled ones."""
    network, collator = build_network("bert"), build_collator("bert")
    if is_useless:
        nn.init.zeros_(network.bert.pooler.dense.weight)
        twin = build_network("bert")
        make_linear(find_pooling_layer(twin))
    else:
        nn.init.normal_(network.bert.pooler.dense.weight, std=2.0)  # far from linear
        twin = network
    rows = {split: build_rows("bert", 200, seed=seed) for split, seed in (("train", 0), ("validation", 1))}
    direction = np.random.default_rng(5).normal(size=16)
    scores = {split: compute_features(twin, [collator(list(rows[split]))], CPU) @ direction for split in rows}
    edges = np.quantile(scores["train"], [1 / 3, 2 / 3])
    for split in rows:
        labels = np.digitize(scores[split], edges).tolist()
        rows[split] = rows[split].remove_columns("labels").add_column("labels", labels)
    before = network.bert.pooler.dense.weight.detach().clone()
    made = initialize_head(network, args, "probe", rows, collator, is_final=is_final)
    is_passed_by = is_useless and is_final
    assert made.get("pooling") == ("linear" if is_passed_by else None)
    assert torch.equal(network.bert.pooler.dense.weight, before) != is_passed_by
    logits = run_plainly(network, [collator(list(rows["validation"].remove_columns("labels")))]).numpy()
    accuracy = (logits.argmax(1) == np.array(rows["validation"]["labels"])).mean()
    assert accuracy > 0.7 or (is_useless and not is_final)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_features_are_in_the_order_of_the_rows_and_computed_once(name, args, passes):
    network, rows, collator = build_network(name), build_rows(name), build_collator(name)
    first = load_features(network, rows, args, collator, "train")
    one_by_one = compute_features(network, [collator([row]) for row in rows], CPU)
    np.testing.assert_allclose(first, one_by_one, atol=1e-5)
    assert np.abs(first[1:] - first[:-1]).max(1).min() > 1e-3  # or the order would not show
    second = load_features(network, rows, args, collator, "train")
    np.testing.assert_array_equal(second, first)
    assert len(passes) == 1


def test_another_head_does_not_make_other_features(args, passes):
    rows, collator = build_rows("bert"), build_collator("bert")
    network = build_network("bert")
    load_features(network, rows, args, collator, "train")
    nn.init.normal_(network.classifier.weight)
    load_features(network, rows, args, collator, "train")
    assert len(passes) == 1


CHANGES = {
    "weights": lambda case: case["network"].bert.encoder.layer[1].output.dense.bias.data.add_(1e-3),
    "a weight of the head before its last layer": lambda case: case["network"].bert.pooler.dense.bias.data.add_(1e-3),
    "the configuration": lambda case: case["network"].config.update({"layer_norm_eps": 1e-5}),
    "rows": lambda case: case.update(rows=build_rows("bert", seed=3)),
    "fewer rows": lambda case: case.update(rows=case["rows"].select(range(10))),
    "preprocessing": lambda case: case.update(rows=case["rows"].map(lambda row: {"length": row["length"]})),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_features_are_not_taken_from_the_cache(change, args, passes):
    case = {"network": build_network("bert"), "rows": build_rows("bert")}
    load_features(case["network"], case["rows"], args, build_collator("bert"), "train")
    change(case)
    load_features(case["network"], case["rows"], args, build_collator("bert"), "train")
    assert len(passes) == 2


def test_batch_statistics_are_part_of_the_weights(args, passes):
    network, rows = build_network("resnet"), build_rows("resnet")
    load_features(network, rows, args, build_collator("resnet"), "train")
    network.resnet.embedder.embedder.normalization.running_mean.add_(0.1)
    load_features(network, rows, args, build_collator("resnet"), "train")
    assert len(passes) == 2


def test_every_network_of_the_list_is_covered():
    assert set(HEADS) == set(NETWORKS) == set(TEXT_NETWORKS) | set(IMAGE_NETWORKS)
