"""A loss that jumps is named; a hard row among learnt ones is not."""

import logging

import numpy as np
import pytest
import torch

from hftl.training.spikes import MIN_STEPS, SpikeDetector
from tests.networks import build_network
from tests.training.test_trainer import build_rows, build_trainer


def find_spikes(losses):
    detector = SpikeDetector()
    return [step for step, loss in enumerate(losses) if detector.check(loss) is not None]


def test_a_jump_is_found_and_does_not_become_usual():
    rng = np.random.default_rng(0)
    losses = 1 + 0.1 * rng.random(100)
    losses[[40, 41, 42, 80]] = 10
    assert find_spikes(losses) == [40, 41, 42, 80]


@pytest.mark.parametrize(
    "losses",
    [
        2 * np.exp(-np.arange(300) / 30) * np.random.default_rng(0).lognormal(0, 0.7, 300),  # learns, heavy tails
        [1.1] * 20 + [0.001] * 60 + [0.5] + [0.001] * 9,  # one hard batch among learnt ones
        [1.0] * (MIN_STEPS - 1) + [50.0],  # nothing is usual yet
        np.linspace(1, 4, 200),  # rises slowly
    ],
    ids=["noise", "hard", "early", "slow"],
)
def test_what_is_no_jump_is_not_called_one(losses):
    assert find_spikes(losses) == []


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_names_the_step_and_what_is_usual_and_trains_on(tmp_path, caplog, monkeypatch, accumulation):
    network, number = build_network("bert"), iter(range(1, 1000))
    trainer = build_trainer(
        tmp_path, "bert", network, build_rows("bert", num_rows=8), max_steps=16, learning_rate=1e-4, warmup_steps=0,
        per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    sum_loss = trainer.loss.sum_loss
    monkeypatch.setattr(
        trainer.loss,
        "sum_loss",
        lambda outputs, labels: sum_loss(outputs, labels) * (20 if (next(number) - 1) // accumulation == 12 else 1),
    )
    with caplog.at_level(logging.WARNING, logger="hftl.training.spikes"):
        trainer.train()
    (record,) = [record for record in caplog.records if record.name == "hftl.training.spikes"]
    usual = np.median([entry["loss"] for entry in trainer.state.log_history if "loss" in entry][:12])
    assert "at step 13" in record.message and f"usually {usual:.4g}" in record.message
    assert "--learning_rate (0.0001)" in record.message and "--max_grad_norm (0.0)" in record.message
    assert trainer.state.global_step == 16 and not trainer.loss.parts
    assert torch.isfinite(next(network.parameters())).all()


def test_a_resumed_run_knows_what_was_usual(tmp_path, caplog, monkeypatch):
    settings = {"max_steps": 16, "learning_rate": 1e-4, "warmup_steps": 0, "save_strategy": "steps", "save_steps": 12}

    def build(folder):
        return build_trainer(folder, "bert", build_network("bert"), build_rows("bert", num_rows=8), **settings)

    build(tmp_path / "first").train()
    assert "jumped" not in caplog.text
    trainer = build(tmp_path / "second")
    sum_loss, number = trainer.loss.sum_loss, iter(range(13, 1000))
    monkeypatch.setattr(
        trainer.loss, "sum_loss", lambda outputs, labels: sum_loss(outputs, labels) * (20 if next(number) == 13 else 1)
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-12"))
    assert "jumped" in caplog.text and "at step 13" in caplog.text
