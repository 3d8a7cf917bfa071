import pytest

from hftl.cost.diagnosis import compute_speed, diagnose

FINE = {
    "wall_seconds": 110.0,
    "startup_seconds": 10.0,
    "train_seconds": 80.0,
    "evaluation_seconds": 10.0,
    "save_seconds": 5.0,
    "other_seconds": 5.0,
    "data_wait_seconds": 2.0,
    "padding_fraction": 0.05,
    "num_evaluations": 5,
    "num_saves": 5,
}
SETTINGS = {
    "dataloader_num_workers": 0,
    "num_free_cores": 7,
    "modality": "text",
    "task": "text-classification",
    "is_packed": False,
    "train_sampling_strategy": "random",
}
IMAGES = SETTINGS | {"modality": "image", "task": "image-classification"}


def test_a_run_without_fault_gets_no_sentence():
    assert diagnose(FINE, SETTINGS) is None


def test_a_model_that_waits_is_told_how_many_workers_load_as_fast_as_it_computes():
    sentence = diagnose(FINE | {"data_wait_seconds": 50.0}, IMAGES)  # 30 s of computing: two would load in 25
    assert "waits 62% of the training time for image decoding" in sentence
    assert "2 workers (--dataloader_num_workers 2) would give about 2.7x" in sentence  # 80 / 30


def test_workers_that_are_there_count_as_busy_all_the_time():
    sentence = diagnose(FINE | {"data_wait_seconds": 50.0}, IMAGES | {"dataloader_num_workers": 2})
    assert "--dataloader_num_workers 6)" in sentence  # 2 workers load for 160 s what is computed in 30


def test_no_worker_is_advised_where_no_core_is_free():
    sentence = diagnose(FINE | {"data_wait_seconds": 50.0}, IMAGES | {"num_free_cores": 0})
    assert "no processor core is left" in sentence and "--image_size" in sentence


def test_no_worker_is_advised_where_the_free_cores_win_little():
    sentence = diagnose(FINE | {"data_wait_seconds": 74.0}, SETTINGS | {"num_free_cores": 1})  # 80 s become 74
    assert "waits 92% of the training time" in sentence and "too few processor cores are left" in sentence
    assert "a shorter --max_length would help" in sentence


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "--train_sampling_strategy group_by_length) would give at most 2.0x"),
        ({"task": "causal-lm", "train_sampling_strategy": "group_by_length"}, "--packing) would give at most 2.0x"),
    ],
)
def test_much_padding_is_named_with_what_removes_it(changes, advice):
    sentence = diagnose(FINE | {"padding_fraction": 0.5}, SETTINGS | changes)
    assert sentence.startswith("50% of the tokens") and advice in sentence


@pytest.mark.parametrize("changes", [{"is_packed": True}, {"train_sampling_strategy": "group_by_length"}])
def test_padding_that_no_setting_removes_is_not_mentioned(changes):
    assert diagnose(FINE | {"padding_fraction": 0.5}, SETTINGS | changes) is None


def test_evaluation_and_saving_too_often_are_told_apart_and_the_worse_one_is_named():
    often = {"evaluation_seconds": 50.0, "num_evaluations": 50, "save_seconds": 30.0, "num_saves": 50}
    sentence = diagnose(FINE | often, SETTINGS)
    assert "Evaluating 50 times takes 50%" in sentence and "--eval_steps 0.1) would save about 40 s" in sentence
    sentence = diagnose(FINE | often | {"evaluation_seconds": 20.0}, SETTINGS)
    assert "Saving checkpoints 50 times" in sentence and "--save_steps 0.2) would save about 27 s" in sentence


def test_a_slow_evaluation_that_is_not_repeated_cannot_be_advised_away():
    assert diagnose(FINE | {"evaluation_seconds": 60.0, "num_evaluations": 1}, SETTINGS) is None


def test_a_share_of_almost_nothing_is_not_worth_a_sentence():
    short = {name: value / 100 if name.endswith("_seconds") else value for name, value in FINE.items()}
    assert diagnose(short | {"data_wait_seconds": 0.6}, SETTINGS) is None


def test_rates_and_shares_are_quotients_and_none_where_nothing_is_known():
    cost = FINE | {"num_examples_seen": 800, "num_tokens_seen": None, "train_flops": 8e12}
    speed = compute_speed(cost, 1e12, recomputes=False)
    assert speed["examples_per_second"] == 10 and speed["tokens_per_second"] is None
    assert speed["mfu"] == pytest.approx(0.1)
    assert speed["evaluation_share"] == pytest.approx(10 / 110)
    assert compute_speed(cost, 1e12, recomputes=True)["mfu"] is None
    assert compute_speed(cost, None, recomputes=False)["mfu"] is None
    assert compute_speed({}, None, recomputes=False)["examples_per_second"] is None
