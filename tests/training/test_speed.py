import time

import pytest

import hftl.training.trainer
from hftl.cost import diagnosis
from hftl.run_record import RunRecord
from hftl.tasks.text_classification import TextClassification
from hftl.training.trainer import Meter
from tests import tiny


def test_the_time_until_a_batch_is_there_counts_as_waiting_and_the_step_does_not():
    def load():
        for batch in range(3):
            time.sleep(0.02)
            yield batch

    meter, batches = Meter(), []
    for batch in meter.time_waits(load()):
        batches.append(batch)
        time.sleep(0.05)
    assert batches == [0, 1, 2]
    assert 0.06 <= meter.data_wait_seconds < 0.15


def test_waiting_goes_on_from_a_checkpoint_also_from_one_that_did_not_count_it():
    meter, resumed = Meter(), Meter()
    meter.data_wait_seconds, meter.num_saves = 2.5, 3
    state = meter.state(2)
    resumed.restore(state, 2)
    assert (resumed.data_wait_seconds, resumed.num_saves) == (2.5, 3)
    resumed.restore({k: v for k, v in state.items() if k not in ("data_wait_seconds", "num_saves")}, 2)
    assert (resumed.data_wait_seconds, resumed.num_saves) == (0.0, 0)


def _slow_collator(monkeypatch):
    build = TextClassification.build_collator

    def build_slowly(*args, **kwargs):
        collator = build(*args, **kwargs)
        return lambda rows: time.sleep(0.1) or collator(rows)

    monkeypatch.setattr(TextClassification, "build_collator", build_slowly)


def _slow_evaluation(monkeypatch):
    compute = TextClassification.compute_metrics
    monkeypatch.setattr(
        TextClassification, "compute_metrics", lambda *args: time.sleep(0.1) or compute(*args), raising=True
    )


def _slow_save(monkeypatch):
    commit = hftl.training.trainer.commit
    monkeypatch.setattr(hftl.training.trainer, "commit", lambda *args: time.sleep(0.3) or commit(*args))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize(
    ("slow_down", "flags", "words"),
    [
        (_slow_collator, (), "of the training time for batches of text"),
        (_slow_evaluation, ("--eval_strategy", "steps", "--eval_steps", "1"), "Evaluating 12 times"),
        (_slow_save, ("--save_strategy", "steps", "--save_steps", "1"), "Saving checkpoints 12 times"),
    ],
)
def test_a_run_names_what_was_slow_in_its_record(train_once, monkeypatch, slow_down, flags, words):
    slow_down(monkeypatch)
    monkeypatch.setattr(diagnosis, "MIN_SECONDS", 0.1)
    monkeypatch.setattr(diagnosis, "ENOUGH_EVALUATIONS", 2)
    monkeypatch.setattr(diagnosis, "ENOUGH_SAVES", 2)
    cost = RunRecord.read(train_once("full", "--max_steps", "12", *flags)).cost
    assert words in cost["diagnosis"]
    assert cost["tokens_per_second"] == pytest.approx(cost["num_tokens_seen"] / cost["train_seconds"])
    assert 0 <= cost["data_wait_seconds"] <= cost["train_seconds"]
