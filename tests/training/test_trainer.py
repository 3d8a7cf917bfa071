"""Is an optimizer step the same however it is divided, a restart exact, and every second, token and FLOP counted?"""

import copy
from functools import partial
from types import SimpleNamespace

import datasets
import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from hftl.config import ModelArguments, parse_args
from hftl.cost.ledger import Ledger
from hftl.errors import TrainingDiverged, UserError
from hftl.models.head import head_modules
from hftl.models.modes import MODES
from hftl.tasks import build_task
from hftl.tasks.image_classification import ImageCollator
from hftl.tasks.text_classification import TextCollator
from hftl.training.settings import set_defaults
from hftl.training.trainer import FineTuningTrainer, StopWhenNotFinite, SummedLoss
from tests.networks import IMAGE_SIZE, MULTI, REGRESSION, SINGLE, TEXT_NETWORKS, build_network, build_tokenizer

NUM_LABELS = {SINGLE: 3, MULTI: 3, REGRESSION: 1}


def build_rows(name, problem_type=SINGLE, num_rows=21, seed=0):
    """Prepared rows for a network of that name: token ids of many lengths, or pixels."""
    rng = np.random.default_rng(seed)
    labels = {
        SINGLE: rng.integers(0, 3, num_rows).tolist(),
        MULTI: rng.integers(0, 2, (num_rows, 3)).astype(float).tolist(),
        REGRESSION: rng.normal(size=num_rows).tolist(),
    }[problem_type]
    columns = {"row_id": list(range(num_rows)), "labels": labels}
    if name in TEXT_NETWORKS:
        lengths = rng.integers(2, 13, num_rows)
        columns["input_ids"] = [rng.integers(3, 40, length).tolist() for length in lengths]
        columns["length"] = lengths.tolist()
    else:
        pixels = rng.integers(0, 256, (num_rows, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        columns["pixels"] = [image.tobytes() for image in pixels]
        columns["height"] = columns["width"] = [IMAGE_SIZE] * num_rows
    return datasets.Dataset.from_dict(columns)


def build_collator(name, padding_side="right", augmentation="none"):
    if name in TEXT_NETWORKS:
        return TextCollator(build_tokenizer(padding_side))
    return ImageCollator(np.full(3, 1 / 127.5, np.float32), np.full(3, -1, np.float32), augmentation)


def build_arguments(folder, **changes):
    """Plain gradient descent: Adam would hide a gradient of the wrong scale, and so would clipping."""
    settings = {
        "output_dir": str(folder),
        "optim": "sgd",
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "train_sampling_strategy": "group_by_length",
    }
    return TrainingArguments(**settings | changes)


def build_trainer(
    folder, name, network, rows, *, ledger=None, collator=None, head_learning_rate=None, autocast=None, **changes
):
    base = network.get_base_model() if isinstance(network, peft.PeftModel) else network
    return FineTuningTrainer(
        task=build_task("text-classification"),
        problem_type=base.config.problem_type,
        head_names=head_modules(base, []),
        head_learning_rate=head_learning_rate,
        autocast=autocast,
        ledger=ledger or Ledger(),
        model=network,
        args=build_arguments(folder, **changes),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator or build_collator(name),
    )


def read_losses(trainer):
    return np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def read_weights(network):
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def largest_difference(first, second):
    assert set(first) == set(second)
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


# --- (a) the loss of an optimizer step ---------------------------------------------------------------------------

CASES = [
    *[(name, SINGLE) for name in ("bert", "distilbert", "roberta", "modernbert", "deberta", "llama")],
    *[(name, SINGLE) for name in ("vit", "resnet", "convnext")],
    *[(name, problem) for name in ("bert", "resnet") for problem in (MULTI, REGRESSION)],
    ("llama", MULTI),
    ("vit", REGRESSION),
]
DIVISIONS = {"4 x 2": (4, 2), "2 x 4": (2, 4)}


def freeze_batch_norm(network):
    """Batch statistics depend on the micro-batch by definition."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda module, inputs: module.eval() and None)


def train_divided(trainer_class, name, problem_type, folder, batch_size, accumulation_steps):
    """Losses and weights of 4 steps over 21 rows: the third step has five rows only."""
    network = build_network(name, problem_type=problem_type, num_labels=NUM_LABELS[problem_type])
    freeze_batch_norm(network)
    rows = build_rows(name, problem_type)
    changes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation_steps}
    if trainer_class is FineTuningTrainer:
        trainer = build_trainer(folder, name, network, rows, **changes)
    else:
        args = build_arguments(folder, train_sampling_strategy="random", remove_unused_columns=False, **changes)
        trainer = trainer_class(network, args, build_collator(name), rows)
    trainer.train()
    return read_losses(trainer), read_weights(network)


@pytest.mark.parametrize(("name", "problem_type"), CASES)
def test_an_optimizer_step_is_the_same_for_any_accumulation(name, problem_type, tmp_path):
    losses, weights = train_divided(FineTuningTrainer, name, problem_type, tmp_path, 8, 1)
    start = build_network(name, problem_type=problem_type, num_labels=NUM_LABELS[problem_type])
    assert len(losses) == 4 and largest_difference(weights, read_weights(start)) > 1e-3
    for batch_size, accumulation_steps in DIVISIONS.values():
        others = train_divided(FineTuningTrainer, name, problem_type, tmp_path, batch_size, accumulation_steps)
        np.testing.assert_allclose(others[0], losses, rtol=5e-6, atol=1e-6)
        assert largest_difference(others[1], weights) < 5e-6


def test_the_stock_trainer_still_scales_the_loss_of_bert_by_accumulation(tmp_path):
    """huggingface/transformers#47688. When this fails, `SummedLoss` is no longer needed for it."""
    whole, _ = train_divided(transformers.Trainer, "bert", SINGLE, tmp_path, 8, 1)
    divided, _ = train_divided(transformers.Trainer, "bert", SINGLE, tmp_path, 4, 2)
    assert divided[0] == pytest.approx(2 * whole[0], rel=1e-3)


LOSSES = {
    SINGLE: F.cross_entropy,
    MULTI: F.binary_cross_entropy_with_logits,
    REGRESSION: lambda logits, labels: F.mse_loss(logits[:, 0], labels),
}


@pytest.mark.parametrize("problem_type", LOSSES)
def test_the_loss_is_the_one_that_its_definition_gives(problem_type, tmp_path):
    """The first loss, by hand: the mean over the rows of the step, whatever their number in a micro-batch."""
    network = build_network("bert", problem_type=problem_type, num_labels=NUM_LABELS[problem_type])
    rows = build_rows("bert", problem_type, 8)
    batch = build_collator("bert")(list(rows))
    labels = batch.pop("labels")
    with torch.inference_mode():
        expected = float(LOSSES[problem_type](network(**batch).logits, labels))
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1}
    trainer = build_trainer(tmp_path, "bert", network, rows, **settings)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    trainer.train()
    assert read_losses(trainer)[0] == pytest.approx(expected, abs=1e-5)


def build_loss(problem_type, smoothing=0.0):
    task = build_task("text-classification")
    return SummedLoss(partial(task.sum_loss, problem_type=problem_type, smoothing=smoothing))


def test_label_smoothing_mixes_the_target_with_the_uniform_one():
    logits = torch.randn(5, 3)
    classes, columns = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([[0.0, 1.0, 1.0]] * 5)
    found = build_loss(SINGLE, 0.1)({"logits": logits}, classes, torch.tensor(5))
    assert float(found) == pytest.approx(float(F.cross_entropy(logits, classes, label_smoothing=0.1)), abs=1e-6)
    found = build_loss(MULTI, 0.1)({"logits": logits}, columns, torch.tensor(15))
    expected = F.binary_cross_entropy_with_logits(logits, columns * 0.9 + 0.05)
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


# --- (b) a loss that is not finite -------------------------------------------------------------------------------


def build_diverging_trainer(folder, **changes):
    """The label of row 10 is NaN; in the order of the data that is step 3."""
    rows = build_rows("bert", REGRESSION, 24)
    labels = rows["labels"][:]
    labels[10] = float("nan")
    rows = rows.remove_columns("labels").add_column("labels", labels)
    network = build_network("bert", problem_type=REGRESSION, num_labels=1)
    settings = {"per_device_train_batch_size": 4, "max_steps": 6, "train_sampling_strategy": "sequential"}
    return build_trainer(folder, "bert", network, rows, **settings | changes)


def test_a_nan_loss_stops_the_run_at_its_step_and_nothing_is_saved_after(tmp_path):
    trainer = build_diverging_trainer(tmp_path, save_strategy="steps", save_steps=1)
    with pytest.raises(TrainingDiverged, match="not finite at step 3 of 6. Nothing was saved since"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert np.isfinite(read_losses(trainer)).all()


def test_a_nan_in_an_early_micro_batch_is_not_forgotten(tmp_path):
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 3}
    with pytest.raises(TrainingDiverged, match="step 2 of 3"):  # row 10 is in the second of four micro-batches
        build_diverging_trainer(tmp_path, **changes).train()


def test_a_nan_in_evaluation_does_not_stop_the_run(tmp_path):
    trainer = build_diverging_trainer(tmp_path)
    trainer.evaluate()
    trainer.train_dataset = build_rows("bert", REGRESSION, 24)
    trainer.train()
    assert np.isfinite(read_losses(trainer)).all()


def test_all_processes_stop_when_the_loss_of_one_is_not_finite(monkeypatch):
    """Or the others would wait for it, and the first one, which writes the record, be killed."""
    loss = build_loss(REGRESSION)
    loss({"logits": torch.zeros((2, 1), requires_grad=True)}, torch.zeros(2))
    args, check = SimpleNamespace(device=torch.device("cpu")), StopWhenNotFinite(loss).on_step_end
    check(args, TrainerState(), TrainerControl())
    monkeypatch.setattr("hftl.training.trainer.gather", lambda mine: torch.stack([mine, torch.tensor(False)]))
    with pytest.raises(TrainingDiverged):
        check(args, TrainerState(), TrainerControl())


@pytest.mark.parametrize("clipped", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_saved(clipped, tmp_path):
    """The loss of that step is fine; the next one is not, but a checkpoint may be due between them."""
    settings = {"max_grad_norm": clipped, "save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    trainer = build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"), **settings)
    bias = trainer.model.classifier.bias
    bias.register_hook(lambda gradient: gradient * (torch.inf if trainer.state.global_step == 2 else 1))
    with pytest.raises(TrainingDiverged, match="loss or its gradient is not finite at step 3 of 6"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize(
    ("step", "settings", "saved"),
    [(4, {}, []), (4, {"save_strategy": "steps", "save_steps": 1}, [1, 2, 3]), (2, {"save_strategy": "steps"}, [])],
    ids=["the last step", "the last step, which is saved", "a step within"],
)
def test_weights_that_an_update_makes_infinite_are_not_kept(step, settings, saved, tmp_path):
    """Loss and gradient of that step are fine; only a later loss would show it, and after the last step none comes."""
    trainer = build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"), **settings)
    trainer.create_optimizer()
    trainer.optimizer.register_step_post_hook(
        lambda *_: trainer.state.global_step == step - 1 and trainer.model.classifier.bias.data.fill_(torch.inf)
    )
    with pytest.raises(TrainingDiverged, match="Weights after the update are|The loss or its gradient is"):
        trainer.train()
    assert sorted(int(path.name.partition("-")[2]) for path in tmp_path.glob("checkpoint-*")) == saved


def test_a_metric_that_is_not_a_number_is_named(tmp_path, caplog):
    trainer = build_diverging_trainer(tmp_path, metric_for_best_model="loss", per_device_eval_batch_size=24)
    trainer.evaluate()
    assert "eval_loss is not a number at step 0: it cannot be the best." in caplog.text


@pytest.mark.parametrize("call", ["evaluate", "predict_rows"])
def test_evaluation_out_of_memory_goes_on_with_half_the_batch(call, tmp_path, caplog):
    rows = build_rows("bert")
    trainer = build_trainer(tmp_path, "bert", build_network("bert"), rows)
    expected = trainer.predict_rows(rows)
    step = trainer.prediction_step

    def crowd(model, inputs, *args, **kwargs):
        if len(inputs["labels"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return step(model, inputs, *args, **kwargs)

    trainer.prediction_step = crowd
    found = getattr(trainer, call)(rows)
    assert trainer.args.per_device_eval_batch_size == 2 and "again with batches of 2." in caplog.text
    if call == "predict_rows":
        np.testing.assert_allclose(found, expected, atol=1e-6)
    trainer.prediction_step = lambda *args, **kwargs: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        trainer.evaluate()


def test_evaluation_out_of_memory_ends_several_processes(tmp_path):
    """One of them alone may not begin again: the others would wait for it."""
    trainer = build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"))
    trainer.args, calls = SimpleNamespace(world_size=2, per_device_eval_batch_size=8), []

    def run_out():
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        trainer._in_smaller_batches(run_out)
    assert (len(calls), trainer.args.per_device_eval_batch_size) == (1, 8)


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_an_accelerator_is_asked_only_when_something_is_logged_evaluated_or_saved(event):
    loss = build_loss(REGRESSION)
    loss({"logits": torch.full((2, 1), torch.nan, requires_grad=True)}, torch.zeros(2))
    check = getattr(StopWhenNotFinite(loss), event)
    args = SimpleNamespace(device=torch.device("cuda"))
    check(args, TrainerState(), TrainerControl())
    for due in ("should_log", "should_evaluate", "should_save", "should_training_stop"):
        with pytest.raises(TrainingDiverged):
            check(args, TrainerState(), TrainerControl(**{due: True}))


def test_a_run_does_not_filter_nan_losses_unless_it_is_told_to():
    assert TrainingArguments(output_dir="x").logging_nan_inf_filter  # the stock default
    network, task = build_network("bert"), build_task("text-classification")
    for words, expected in (([], False), (["--logging_nan_inf_filter", "true"], True)):
        args = parse_args(["--mode", "full", "--dataset", "x", "--use_cpu", *words])
        set_defaults(args, MODES["full"], network, task, 100)
        assert args.training.logging_nan_inf_filter is expected


# --- (c) the head's own learning rate ----------------------------------------------------------------------------


def build_lora(network, **settings):
    heads = head_modules(network, [])
    return MODES["peft"].adapt(network, ModelArguments(lora_r=4, lora_alpha=4, **settings), heads, None)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "resnet"])
@pytest.mark.parametrize("is_peft", [False, True], ids=["full", "peft"])
def test_the_head_has_its_own_rate_and_every_parameter_is_in_one_group(name, is_peft, tmp_path):
    network = build_network(name)
    heads = tuple(head_modules(network, []))
    network = build_lora(network) if is_peft else network
    rows = build_rows(name, num_rows=8)
    settings = {"learning_rate": 0.01, "weight_decay": 0.1, "optim": "adamw_torch", "max_steps": 1}
    trainer = build_trainer(tmp_path, name, network, rows, head_learning_rate=0.5, **settings)
    trainer.train()
    rates = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in rates
            rates[id(parameter)] = group["lr"]
    trainable = {key: parameter for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert set(rates) == {id(parameter) for parameter in trainable.values()}
    for key, parameter in trainable.items():
        is_head = key.removeprefix("base_model.model.").startswith(tuple(f"{head}." for head in heads))
        assert rates[id(parameter)] == (0.5 if is_head else 0.01), key
    decays = {group["lr"]: {g["weight_decay"] for g in trainer.optimizer.param_groups if g["lr"] == group["lr"]}
              for group in trainer.optimizer.param_groups}  # fmt: skip
    assert decays[0.5] == {0.1, 0.0}  # biases of the head still do not decay


def test_without_a_rate_of_its_own_the_head_is_an_ordinary_parameter(tmp_path):
    trainer = build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"))
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {0.02}


# --- (d), (e) predictions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side"), [("bert", "right"), ("llama", "right"), ("llama", "left"), ("vit", None)])
def test_logits_come_in_the_order_of_the_rows_as_if_computed_one_by_one(name, side, tmp_path):
    network, rows = build_network(name), build_rows(name)
    collator = build_collator(name, side)
    trainer = build_trainer(tmp_path, name, network, rows, collator=collator, per_device_eval_batch_size=4)
    found = trainer.predict_rows(rows)
    with torch.inference_mode():
        expected = torch.cat([network(**collator([row]) | {"labels": None}).logits for row in rows])
    assert found.dtype == np.float32 and found.shape == (21, 3)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert np.abs(found[1:] - found[:-1]).max(1).min() > 1e-4  # or the order would not show


def test_hidden_states_that_a_network_also_returns_are_not_collected(tmp_path):
    rows = build_rows("bert")
    plain, wordy = (build_network("bert", output_hidden_states=wanted) for wanted in (False, True))
    found = [build_trainer(tmp_path, "bert", network, rows).predict_rows(rows) for network in (plain, wordy)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("strategy", ["group_by_length", "random", "sequential"])
def test_the_training_order_does_not_reach_predictions(strategy, tmp_path):
    """The stock trainer permutes them when it groups by length (transformers#33514)."""
    network, rows = build_network("bert"), build_rows("bert")
    trainer = build_trainer(
        tmp_path, "bert", network, rows, train_sampling_strategy=strategy, per_device_eval_batch_size=4
    )
    found = trainer.predict(rows)
    assert found.label_ids.tolist() == rows["labels"][:]
    np.testing.assert_allclose(found.predictions, trainer.predict_rows(rows), atol=1e-5)
    expected = F.cross_entropy(torch.from_numpy(found.predictions), torch.tensor(rows["labels"][:]))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_every_epoch_has_an_order_and_augmentation_of_its_own(name, tmp_path):
    plain, seen = build_collator(name), []

    def record(chosen):
        seen.extend((row["row_id"], row["augmentation_seed"]) for row in chosen)
        return plain(chosen)

    rows = build_rows(name, num_rows=16)
    build_trainer(tmp_path, name, build_network(name), rows, collator=record, seed=7, max_steps=4).train()
    for epoch, start in enumerate((0, 16)):
        assert sorted(seen[start : start + 16]) == [(row, (7, epoch, row)) for row in range(16)]
    assert [row for row, _ in seen[:16]] != [row for row, _ in seen[16:]]


def test_sequential_sampling_keeps_the_order_of_the_data(tmp_path):
    plain, seen = build_collator("bert"), []

    def record(chosen):
        seen.extend(row["row_id"] for row in chosen)
        return plain(chosen)

    settings = {"train_sampling_strategy": "sequential", "max_steps": 3}
    build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"), collator=record, **settings).train()
    assert seen == list(range(21))


# --- (f) resume --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("name", "accumulation_steps", "is_peft"),
    [("bert", 1, False), ("bert", 2, False), ("resnet", 1, False), ("vit", 1, False), ("swin", 1, True)],
    ids=["text", "accumulated", "images", "renamed weights", "adapter"],
)
def test_a_run_that_goes_on_from_a_checkpoint_equals_one_without_a_break(
    name, accumulation_steps, is_peft, num_workers, tmp_path
):
    """Bit for bit, from the middle of the second epoch, with dropout, length grouping and augmentation."""
    dropout = {"hidden_dropout_prob": 0.1} if name == "bert" else {}
    network, rows = build_network(name, **dropout), build_rows(name, num_rows=15)
    network = build_lora(network) if is_peft else network
    settings = {
        "per_device_train_batch_size": 8 // accumulation_steps,  # two steps an epoch; step 3 is in the second one
        "gradient_accumulation_steps": accumulation_steps,
        "dataloader_num_workers": num_workers,
        "max_steps": 6,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 3,
    }
    collator = build_collator(name, augmentation="strong")
    whole = build_trainer(tmp_path, name, copy.deepcopy(network), rows, collator=collator, **settings)
    whole.train()
    torch.manual_seed(99)
    np.random.seed(99)
    resumed = build_trainer(tmp_path / "b", name, copy.deepcopy(network), rows, collator=collator, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert read_losses(resumed).tolist() == read_losses(whole).tolist()
    assert largest_difference(read_weights(resumed.model), read_weights(whole.model)) == 0.0


@pytest.mark.parametrize(("name", "is_peft"), [("swin", False), ("bert", False), ("bert", True)])
def test_the_best_model_is_the_one_that_was_evaluated(name, is_peft, tmp_path):
    """Weights of a Swin are saved under other names than it has in memory (transformers#48805)."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings |= {"load_best_model_at_end": True, "max_steps": 2, "learning_rate": 1.0}  # so high that it gets worse
    network = build_lora(build_network(name)) if is_peft else build_network(name)
    trainer = build_trainer(tmp_path, name, network, build_rows(name), **settings)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(losses) < losses[-1] - 0.1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


def test_a_checkpoint_loads_with_plain_transformers(tmp_path):
    trainer = build_trainer(
        tmp_path, "vit", build_network("vit"), build_rows("vit"), save_strategy="steps", save_steps=4
    )
    trainer.train()
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert largest_difference(read_weights(loaded), read_weights(trainer.model)) == 0.0
    trainer.model.save_pretrained(tmp_path / "model")  # outside of a checkpoint the names are the released ones
    assert "vit.encoder.layer.0.attention.attention.key.weight" in load_file(tmp_path / "model" / "model.safetensors")


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4}
    build_trainer(tmp_path, "vit", build_network("vit"), build_rows("vit"), **settings).train()
    deeper = build_network("vit", num_hidden_layers=3)
    trainer = build_trainer(tmp_path / "b", "vit", deeper, build_rows("vit"), max_steps=8)
    with pytest.raises(UserError, match=r"lacks 16 weights of the network, such as vit\.layers\.2\."):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_the_stock_trainer_still_resumes_a_vit_with_other_weights(tmp_path):
    """huggingface/transformers#48805. When this fails, `_own_names` is no longer needed."""
    args = build_arguments(tmp_path, save_strategy="steps", save_steps=4, train_sampling_strategy="random",
                           remove_unused_columns=False)  # fmt: skip
    rows, collator = build_rows("vit"), build_collator("vit")
    trained = transformers.Trainer(build_network("vit"), args, collator, rows)
    trained.train()
    resumed = transformers.Trainer(build_network("vit"), args, collator, rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))  # no step is left
    assert largest_difference(read_weights(trained.model), read_weights(resumed.model)) > 1e-3


# --- (g) adapters ------------------------------------------------------------------------------------------------


def test_an_adapter_leaves_batch_statistics_alone_and_loads_with_plain_libraries(tmp_path):
    network = build_network("resnet")
    network.save_pretrained(tmp_path / "checkpoint")
    before, rows = read_weights(network), build_rows("resnet")
    adapted = build_lora(network)
    trainer = build_trainer(tmp_path / "run", "resnet", adapted, rows, learning_rate=0.05)
    trainer.train()
    trained = trainer.predict_rows(rows)
    state = {key.removeprefix("base_model.model."): value for key, value in adapted.state_dict().items()}
    buffers = {key: value for key, value in before.items() if "running" in key or "num_batches" in key}
    assert len(buffers) == 3 * sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules()) > 0
    for key, value in buffers.items():
        assert torch.equal(state[key], value), key
    adapted.save_pretrained(tmp_path / "adapter")
    base = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "checkpoint")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.inference_mode():
        batch = build_collator("resnet")(list(rows.remove_columns("labels")))
        np.testing.assert_allclose(loaded(**batch).logits.numpy(), trained, atol=1e-5)
        assert np.abs(build_network("resnet")(**batch).logits.numpy() - trained).max() > 1e-2  # it did learn


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_what_is_trained_over_a_bfloat16_base_is_float32(name, tmp_path):
    adapted = build_lora(build_network(name).to(torch.bfloat16), dtype="bfloat16")
    types = {(parameter.requires_grad, parameter.dtype) for parameter in adapted.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    if name == "bert":
        trainer = build_trainer(tmp_path, name, adapted, build_rows(name))
        trainer.train()
        assert np.isfinite(read_losses(trainer)).all()


# --- (h), (i) what was spent -------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when somebody says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def charge(self, seconds, method):
        """`method`, taking that long."""

        def charged(*args, **kwargs):
            self.now += seconds
            return method(*args, **kwargs)

        return charged


def build_timed_trainer(folder, **changes):
    """A micro-batch takes 1 s, a batch of evaluation 10 s, a checkpoint 100 s."""
    clock = Clock()
    ledger = Ledger(clock=clock)
    settings = {"max_steps": 6, "per_device_eval_batch_size": 8, "eval_strategy": "steps", "eval_steps": 2}
    trainer = build_trainer(
        folder, "bert", build_network("bert"), build_rows("bert"), ledger=ledger, **settings | changes
    )
    trainer.meter.add = clock.charge(1.0, trainer.meter.add)
    trainer.prediction_step = clock.charge(10.0, trainer.prediction_step)
    trainer.save_model = clock.charge(100.0, trainer.save_model)
    return trainer, ledger, clock


@pytest.mark.parametrize("when", [{"save_strategy": "steps", "save_steps": 3}, {"save_strategy": "epoch"}])
def test_evaluation_and_saving_inside_of_training_are_not_charged_to_training(when, tmp_path):
    trainer, ledger, clock = build_timed_trainer(tmp_path, **when)
    with ledger.bucket("train"):
        trainer.train()
    trainer.predict_rows(trainer.eval_dataset)
    clock.now += 5.0
    seconds = ledger.seconds()
    assert seconds["train_seconds"] == 6.0
    assert seconds["evaluation_seconds"] == 10.0 * 3 * (3 + 1)  # of 21 rows, three times in training and once after
    assert seconds["save_seconds"] == 200.0
    assert seconds["other_seconds"] == 5.0
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


def test_a_save_that_fails_leaves_no_bucket_open(tmp_path):
    trainer, ledger, clock = build_timed_trainer(tmp_path, save_strategy="steps", save_steps=2)

    def fail(*args, **kwargs):
        clock.now += 7.0
        raise OSError("no space")

    trainer.save_model = fail
    with pytest.raises(OSError, match="no space"), ledger.bucket("train"):
        trainer.train()
    clock.now += 5.0
    seconds = ledger.seconds()
    assert (seconds["save_seconds"], seconds["other_seconds"]) == (7.0, 5.0)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_examples_tokens_and_padding_are_those_of_the_batches_seen(accumulation_steps, tmp_path):
    rows, batches = build_rows("bert"), []
    collator = build_collator("bert")

    def record(chosen):
        batches.append([len(row["input_ids"]) for row in chosen])
        return collator(chosen)

    trainer = build_trainer(
        tmp_path,
        "bert",
        build_network("bert"),
        rows,
        collator=record,
        gradient_accumulation_steps=accumulation_steps,
        per_device_train_batch_size=8 // accumulation_steps,
        max_steps=3,  # one epoch
    )
    trainer.train()
    found = trainer.meter.summary(num_processes=1)
    assert found["num_examples_seen"] == 21
    assert found["num_tokens_seen"] == sum(rows["length"])
    padded = sum(max(lengths) * len(lengths) for lengths in batches)
    assert found["padding_fraction"] == pytest.approx(1 - sum(rows["length"]) / padded)
    assert 0 < found["padding_fraction"] < 0.4


def test_images_have_no_tokens(tmp_path):
    trainer = build_trainer(tmp_path, "vit", build_network("vit"), build_rows("vit"))
    trainer.train()
    found = trainer.meter.summary(num_processes=1)
    assert (found["num_examples_seen"], found["num_tokens_seen"], found["padding_fraction"]) == (29, None, None)
    assert found["train_flops"] > 0


@pytest.mark.parametrize(("is_peft", "low", "high"), [(False, 5.8, 6.4), (True, 3.6, 4.4)], ids=["full", "lora"])
def test_flops_are_those_of_the_rule_of_thumb(is_peft, low, high, tmp_path):
    """6 N for each token when every weight is trained, about 4 N when only an adapter is."""
    network = build_network("bert", hidden_size=128, intermediate_size=512, num_attention_heads=2)
    layers = [m for m in network.bert.encoder.modules() if isinstance(m, torch.nn.Linear)]
    num_weights = sum(layer.weight.numel() for layer in layers)  # pooler and head see one token a row
    network = build_lora(network) if is_peft else network
    rows = build_rows("bert")
    trainer = build_trainer(tmp_path, "bert", network, rows, max_steps=3, learning_rate=1e-3)
    trainer.train()
    found = trainer.meter.summary(num_processes=1)
    padded = found["num_tokens_seen"] / (1 - found["padding_fraction"])
    assert low < found["train_flops"] / (num_weights * padded) < high
    assert trainer.state.total_flos == pytest.approx(found["train_flops"], rel=1e-6)


def test_counting_flops_does_not_change_the_first_step(tmp_path, monkeypatch):
    losses = []
    for count in (True, False):
        trainer = build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"))
        if not count:
            trainer.meter.flops_per_unit = 1.0
        trainer.train()
        losses.append(read_losses(trainer).tolist())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_loss_of_evaluation_is_of_labels_where_no_process_repeats_rows(world_size, tmp_path, monkeypatch):
    """Of several processes it is the stock one, which leaves the repeated rows out."""
    trainer = build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"), per_device_eval_batch_size=8)
    stock = Trainer.evaluation_loop

    def loop(trainer, *args, **kwargs):
        output = stock(trainer, *args, **kwargs)
        trainer.loss.evaluated[:] = [torch.tensor([6.0, 2.0]), torch.tensor([0.0, 4.0])]
        output.metrics["eval_loss"] = 7.0
        return output

    monkeypatch.setattr(Trainer, "evaluation_loop", loop)
    loader = trainer.get_eval_dataloader()
    monkeypatch.setattr(TrainingArguments, "world_size", world_size)
    assert trainer.evaluation_loop(loader, "Evaluation").metrics["eval_loss"] == {1: 1.0, 2: 7.0}[world_size]
