"""Does the parity contract see what was unequal between arms, name the arm, and keep quiet where all was equal?

A clean campaign of 7 arms, 3 sizes and 5 seeds is built from plain dictionaries and spoiled in one way at a time.
Three fixtures have the shape of published tables; their numbers are there to be judged by shape, not to be cited.
"""

import copy
from typing import Any

import pytest

from hftl.compare.experiment import KINDS
from hftl.compare.parity import RULES, check_parity, check_table
from hftl.errors import UserError
from hftl.models.modes import Role

MODES = {
    "majority": "majority",
    "tfidf": "tfidf",
    "probe": "probe",
    "lora": "peft",
    "full": "full",
    "scratch": "scratch",
    "small-scratch": "scratch",
}
TRAINED = ("lora", "full", "scratch", "small-scratch")
RATES = {"lora": 1e-3, "full": 5e-5, "scratch": 3e-4, "small-scratch": 1e-3}
STEPS = {"lora": 120, "full": 120, "scratch": 240, "small-scratch": 240}
SIZES, SEEDS, TRIALS = (64, 128, 256), (1, 2, 3, 4, 5), 4
QUESTION = {"task": "text-classification", "margin": 0.02, "num_test_examples": 4000}
SMALL_NET = "small-network"


def build_cell(arm: str, size: int, seed: int) -> dict[str, Any]:
    """What a finished run of the clean campaign states of itself."""
    num_validation = size // 5
    chain = [*range(1000 * seed, 1000 * seed + size)]
    cell = {
        "arm": arm,
        "size": size,
        "seed": seed,
        "role": "final",
        "status": "completed",
        "folder": f"cells/{arm}-n{size}-seed{seed}",
        "num_train_examples": size - num_validation,
        "num_validation_examples": num_validation,
        "data_fingerprints": {"train": f"t{size}-{seed}", "validation": f"v{size}-{seed}", "test": "test"},
        "row_ids": {"train": chain[num_validation:], "validation": chain[:num_validation]},
        "overlaps": {"train_validation": 0, "train_test": 0},
        "config": {"text_columns": ["text"], "label_column": "label"},
        "environment": {
            "python": "3.12.3",
            "cpu": "Processor A",
            "device": "cpu",
            "num_threads": 1,
            "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
        },
        "code": "abc123",
        "num_test_reads": 1,
        "tuning": None,
    }
    return cell | _build_training(arm) if arm in TRAINED else cell


def _build_training(arm: str) -> dict[str, Any]:
    steps, rate = STEPS[arm], RATES[arm]
    config = {
        "text_columns": ["text"],
        "label_column": "label",
        "model_name_or_path": SMALL_NET if arm == "small-scratch" else "bundled:minilm-l6",
        "learning_rate": rate,
        "max_steps": steps,
        "num_train_epochs": 3.0,  # Trainer's default, which max_steps overrides
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "max_length": 128,
        "bf16": False,
        "fp16": False,
        "tf32": None,
        "metric_for_best_model": "loss",
    }
    return {
        "config": config,
        "num_steps": steps,
        "num_examples_seen": 16 * steps,
        "train_flops": 1e12,
        "train_seconds": 10.0,
        # Flat at the end: 0.2 % over the last fifth.
        "validation_history": [{"step": steps * i // 5, "loss": 1 + 2.0 ** (-2 * i)} for i in range(1, 6)],
        "tuning": {"trials": TRIALS, "best_at_edge": False, "best": {"learning_rate": rate}},
    }


def build_campaign() -> dict[str, Any]:
    """The arguments of `check_parity` for a campaign in which nothing is wrong."""
    arms = [
        {"name": n, "role": KINDS[m].role, "keeps_base": KINDS[m].keeps_base, "settings": {"mode": m}}
        for n, m in MODES.items()
    ]
    arms[-1]["settings"]["model_name_or_path"] = SMALL_NET  # declared: the other network is what this arm is about
    return {
        "cells": [build_cell(arm, size, seed) for seed in SEEDS for size in SIZES for arm in MODES],
        "question": dict(QUESTION),
        "arms": arms,
        "expected": {
            "seeds": list(SEEDS),
            "sizes": list(SIZES),
            "arms": {name: KINDS[mode].role for name, mode in MODES.items()},
            "trials": TRIALS,
            "frame": "own_schedule",
            "schedules": {arm: {"max_steps": {str(size): STEPS[arm] for size in SIZES}} for arm in TRAINED},
            "minimum_detectable_difference": 0.014,
        },
    }


def check(campaign: dict[str, Any]) -> dict[str, Any]:
    return check_parity(campaign["cells"], campaign["question"], campaign["arms"], expected=campaign["expected"])


def cells_of(campaign: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    return [cell for cell in campaign["cells"] if cell["arm"] == arm]


def loud(parity: dict[str, Any]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(severity, what, arms) of the flags that are more than a note."""
    return [(f["severity"], f["what"], tuple(f["arms"])) for f in parity["flags"] if f["severity"] != "notes"]


def test_products_of_other_precision_are_noted():
    """On a CPU the default depends on the network: wide ones multiply in bfloat16 where the processor can."""
    campaign = build_campaign()
    for arm in ("lora", "full", "scratch"):
        for cell in cells_of(campaign, arm):
            cell["environment"]["precision"] = "float32" if arm == "scratch" else "bfloat16 autocast"
    parity = check(campaign)
    (flag,) = [flag for flag in parity["flags"] if flag["what"] == "different products"]
    assert flag["severity"] == "notes" and flag["arms"] == ["scratch"] and loud(parity) == []


# --- the clean campaign


def test_a_clean_campaign_has_neither_blocks_nor_warnings():
    parity = check(build_campaign())
    assert loud(parity) == []
    assert parity["is_blocked"] is False
    assert {flag["what"] for flag in parity["flags"]} == {"different number of steps", "different checkpoint"}


def test_a_clean_campaign_says_what_was_equal():
    said = " ".join(check(build_campaign())["equal"])
    for words in (
        "training, validation and test rows",
        "inside the larger",
        "leak",
        "tuning trials",
        "inside its range",
    ):
        assert words in said
    for words in ("declared for it", "same seeds", "test set once", "precision", "hardware", "library versions"):
        assert words in said


def test_the_input_is_not_changed():
    campaign = build_campaign()
    before = copy.deepcopy(campaign)
    check(campaign)
    assert campaign == before


# --- one spoiled thing at a time: (what, severity, arms named)


def divide_rate(campaign):
    for cell in cells_of(campaign, "full"):
        cell["config"]["learning_rate"] /= 30


def cut_schedule(campaign):
    for cell in cells_of(campaign, "scratch"):
        cell["config"]["max_steps"] //= 5
        cell["num_steps"] //= 5


def stop_early(campaign):
    for cell in cells_of(campaign, "scratch"):
        cell["num_steps"] //= 5


def drop_seeds(campaign):
    campaign["cells"] = [c for c in campaign["cells"] if c["arm"] != "full" or c["seed"] < 4]


def drop_test_rows(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["data_fingerprints"]["test"] = "fewer"


def leak_validation(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["overlaps"] = {"train_validation": cell["num_validation_examples"]}


def train_on_test(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["data_fingerprints"]["train"] = "test"


def select_on_test(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["config"]["metric_for_best_model"] = "eval_test_accuracy"


def add_labels(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["num_train_examples"] = cell["size"]


def break_chain(campaign):
    for cell in cells_of(campaign, "lora"):
        if cell["size"] == 128:
            cell["row_ids"]["train"][0] = -1


def cut_trials(campaign):
    for cell in cells_of(campaign, "full"):
        cell["tuning"]["trials"] = 1


def skip_tuning(campaign):
    for cell in cells_of(campaign, "full"):
        cell["tuning"] = None


def change_precision(campaign):
    for cell in cells_of(campaign, "full"):
        cell["config"]["bf16"] = True


def load_in_half(campaign):
    for cell in cells_of(campaign, "full"):
        cell["config"]["dtype"] = "torch.bfloat16"


def change_library(campaign):
    for cell in cells_of(campaign, "full"):
        cell["environment"]["packages"]["transformers"] = "5.0.0"


def change_code(campaign):
    for cell in cells_of(campaign, "full"):
        cell["code"] = "def456"


def change_cpu(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["environment"]["cpu"] = "Processor B"


def touch_edge(campaign):
    for cell in cells_of(campaign, "scratch"):
        cell["tuning"]["best_at_edge"] = True


def extend_edge(campaign):
    for cell in cells_of(campaign, "scratch"):
        cell["tuning"] |= {"best_at_edge": True, "extended": True}


def read_twice(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["num_test_reads"] = 2


def keep_falling(campaign):
    for cell in cells_of(campaign, "scratch"):
        cell["validation_history"] = [{"step": 48 * i, "loss": 2 - 0.2 * i} for i in range(1, 6)]


def change_checkpoint(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["config"]["model_name_or_path"] = "minilm-after-another-task"


def shorten_inputs(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["config"]["max_length"] = 64


def lose_predictions(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["folder"] = None


def lose_precision(campaign):
    for cell in cells_of(campaign, "lora"):
        for name in ("bf16", "fp16", "tf32"):
            del cell["config"][name]


def count_twice(campaign):
    campaign["cells"].append(copy.deepcopy(cells_of(campaign, "lora")[0]))


def add_seed(campaign):
    campaign["cells"] += [build_cell("lora", size, 6) for size in SIZES]


def diverge(campaign):
    cells_of(campaign, "full")[0]["status"] = "diverged"


def time_everything(campaign):
    for cell in cells_of(campaign, "lora"):
        cell["train_seconds_include"] = ["loading", "evaluation"]


def quantize_trained_base(campaign):
    for cell in cells_of(campaign, "full"):
        cell["config"]["quantization"] = "nf4"


MUTATIONS = [
    (divide_rate, "undeclared settings", "blocks", ["full"]),
    (cut_schedule, "undeclared settings", "blocks", ["scratch"]),
    (stop_early, "undeclared settings", "blocks", ["scratch"]),
    (drop_seeds, "missing seeds", "blocks", ["full"]),
    (diverge, "missing seeds", "warns", ["full"]),
    (drop_test_rows, "different data", "blocks", ["lora"]),
    (leak_validation, "rows leaked into training", "blocks", ["lora"]),
    (train_on_test, "rows leaked into training", "blocks", ["lora"]),
    (select_on_test, "selection on the test split", "blocks", ["lora"]),
    (add_labels, "validation labels not counted", "blocks", ["lora"]),
    (break_chain, "chain not nested", "blocks", ["lora"]),
    (cut_trials, "unequal tuning", "blocks", ["full"]),
    (skip_tuning, "unequal tuning", "blocks", ["full"]),
    (change_precision, "different precision", "blocks", ["full"]),
    (load_in_half, "different precision", "blocks", ["full"]),
    (lose_precision, "not stated", "warns", ["lora"]),
    (change_library, "different versions", "blocks", ["full"]),
    (change_code, "different versions", "blocks", ["full"]),
    (change_cpu, "different hardware", "warns", ["lora"]),
    (touch_edge, "LR-edge", "blocks", ["scratch"]),
    (extend_edge, "LR-edge", "warns", ["scratch"]),
    (read_twice, "test set read more than once", "warns", ["lora"]),
    (keep_falling, "not converged", "warns", ["scratch"]),
    (change_checkpoint, "different checkpoint", "blocks", ["lora"]),
    (shorten_inputs, "different inputs", "blocks", ["lora"]),
    (lose_predictions, "not stated", "blocks", ["lora"]),
    (count_twice, "cells beside the plan", "blocks", ["lora"]),
    (add_seed, "cells beside the plan", "warns", ["lora"]),
    (time_everything, "training time with other work", "warns", ["lora"]),
    (quantize_trained_base, "quantized base", "blocks", ["full"]),
]


@pytest.mark.parametrize(("mutate", "what", "severity", "arms"), MUTATIONS, ids=[m[0].__name__ for m in MUTATIONS])
def test_what_was_spoiled_is_flagged_and_its_arm_is_named(mutate, what, severity, arms):
    campaign = build_campaign()
    mutate(campaign)
    parity = check(campaign)
    flag = next((flag for flag in parity["flags"] if flag["what"] == what and flag["severity"] == severity), None)
    assert flag is not None, parity["flags"]
    assert flag["arms"] == arms
    assert {arm for _, _, named in loud(parity) for arm in named} == set(arms)  # nobody else is accused
    assert any(arm in flag["detail"] for arm in arms)
    assert parity["is_blocked"] == (severity == "blocks")


@pytest.mark.parametrize(("mutate", "what"), [m[:2] for m in MUTATIONS], ids=[m[0].__name__ for m in MUTATIONS])
def test_what_was_spoiled_is_no_longer_said_to_be_equal(mutate, what):
    campaign = build_campaign()
    mutate(campaign)
    rule = next(rule for rule in RULES if rule.what == what)
    assert rule.equal not in check(campaign)["equal"]


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("config", {"learning_rate": 1e-3}, "numeric precision"),
        ("tuning", {"trials": TRIALS}, "inside its range"),
        ("data_fingerprints", {"test": "test"}, "training, validation and test rows"),
        ("num_test_reads", None, "test set once"),
        ("overlaps", {"train_test": None}, "leak"),
    ],
)
def test_what_one_arm_does_not_state_is_not_said_to_be_equal(field, value, sentence):
    campaign = build_campaign()
    for cell in cells_of(campaign, "lora"):
        cell[field] = value
    assert any(sentence in line for line in check(build_campaign())["equal"])
    assert not any(sentence in line for line in check(campaign)["equal"])


def leave_out_defaults(campaign: dict[str, Any]) -> None:
    """As the runs of hftl do, which record what differs from the defaults."""
    for cell in campaign["cells"]:
        cell["environment"]["packages"]["hftl"] = "0.1.0"
        for name in ("bf16", "fp16", "tf32", "max_length", "num_train_epochs", "text_columns", "label_column"):
            cell["config"].pop(name, None)


def test_settings_that_hftl_leaves_out_are_at_their_defaults():
    campaign = build_campaign()
    leave_out_defaults(campaign)
    assert loud(check(campaign)) == []
    for cell in cells_of(campaign, "full"):
        cell["config"]["bf16"] = True
    assert loud(check(campaign)) == [("blocks", "different precision", ("full",))]


def test_an_input_length_that_only_one_arm_states_differs_from_the_default():
    campaign = build_campaign()
    leave_out_defaults(campaign)
    for cell in cells_of(campaign, "lora"):
        cell["config"]["max_length"] = 64
    assert loud(check(campaign)) == [("blocks", "different inputs", ("lora",))]
    campaign["arms"][3]["settings"]["max_length"] = 64
    assert loud(check(campaign)) == []


def test_one_column_may_be_declared_as_a_word_or_as_a_list():
    campaign = build_campaign()
    campaign["arms"][3]["settings"]["text_columns"] = "text"
    assert loud(check(campaign)) == []


def test_one_spoiled_cell_of_many_is_found():
    campaign = build_campaign()
    cells_of(campaign, "full")[7]["config"]["learning_rate"] /= 30
    flag = next(f for f in check(campaign)["flags"] if f["what"] == "undeclared settings")
    assert flag["arms"] == ["full"]
    assert "n=128, seed 3" in flag["detail"]


def test_one_seed_for_every_arm_is_a_warning():
    campaign = build_campaign()
    campaign["cells"] = [cell for cell in campaign["cells"] if cell["seed"] == 1]
    campaign["expected"]["seeds"] = [1]
    assert loud(check(campaign)) == [("warns", "single seed", tuple(sorted(MODES)))]


def test_a_test_set_too_small_for_the_margin_is_a_warning_about_all_arms():
    campaign = build_campaign()
    campaign["question"]["num_test_examples"] = 200
    campaign["expected"]["minimum_detectable_difference"] = 0.062
    parity = check(campaign)
    assert loud(parity) == [("warns", "test set too small", ())]
    assert "200 test rows" in parity["flags"][0]["detail"]


def test_validation_labels_uncounted_for_every_arm_are_a_warning():
    campaign = build_campaign()
    for cell in campaign["cells"]:
        cell["num_train_examples"] = cell["size"]
    assert loud(check(campaign)) == [("warns", "validation labels not counted", tuple(sorted(MODES)))]


def test_a_declared_setting_is_the_arm_and_a_rate_by_hand_is_uneven_care():
    campaign = build_campaign()
    campaign["expected"]["trials"] = 0
    for cell in campaign["cells"]:
        cell["tuning"] = None
    assert loud(check(campaign)) == []
    campaign["arms"][3]["settings"]["learning_rate"] = RATES["lora"]
    assert loud(check(campaign)) == [("warns", "set by hand", ("lora",))]


def test_an_unfinished_rung_is_a_warning_and_a_dropped_one_blocks():
    campaign = build_campaign()
    campaign["cells"] = [cell for cell in campaign["cells"] if cell["seed"] < 5]
    assert [flag[:2] for flag in loud(check(campaign))] == [("warns", "missing seeds")]


# --- budget frames


def set_frame(campaign: dict[str, Any], frame: str) -> None:
    campaign["expected"] |= {"frame": frame, "schedules": {}}
    for cell in campaign["cells"]:
        if cell["arm"] in TRAINED:
            cell["config"]["max_steps"] = cell["num_steps"] = 120
            cell["num_examples_seen"] = 16 * 120
            cell["validation_history"] = [{"step": step, "loss": 1.0} for step in (24, 48, 72, 96, 120)]


@pytest.mark.parametrize("frame", ["steps", "flops", "wall_time", "convergence"])
def test_a_clean_campaign_is_clean_in_every_frame(frame):
    campaign = build_campaign()
    set_frame(campaign, frame)
    assert loud(check(campaign)) == []


def add_epoch(cell):
    cell["num_steps"] += 8
    cell["num_examples_seen"] += 128


@pytest.mark.parametrize(
    ("frame", "spoil", "what"),
    [
        ("steps", add_epoch, "unequal training"),
        ("steps", lambda cell: cell["config"].update(per_device_train_batch_size=32), "unequal training"),
        ("flops", lambda cell: cell.update(train_flops=1.06e12), "unequal FLOPs"),
        ("wall_time", lambda cell: cell.update(train_seconds=11.2), "unequal training time"),
        ("convergence", lambda cell: cell.update(validation_history=None, converged=False), "not converged"),
        ("wall_time", lambda cell: cell["environment"].update(cpu="Processor B"), "different hardware"),
    ],
)
def test_more_than_the_budget_blocks_in_its_frame(frame, spoil, what):
    campaign = build_campaign()
    set_frame(campaign, frame)
    for cell in cells_of(campaign, "lora"):
        spoil(cell)
    assert ("blocks", what, ("lora",)) in loud(check(campaign))


def test_one_more_epoch_blocks_under_an_own_schedule_that_did_not_declare_it():
    campaign = build_campaign()
    for cell in cells_of(campaign, "lora"):
        add_epoch(cell)
    assert loud(check(campaign)) == [("blocks", "undeclared settings", ("lora",))]


def test_a_schedule_in_epochs_is_judged_by_the_steps_taken():
    campaign = build_campaign()
    for cell in cells_of(campaign, "lora"):
        cell["config"] |= {"max_steps": -1, "num_train_epochs": 2.0}
    assert loud(check(campaign)) == []
    cells_of(campaign, "lora")[0]["num_steps"] = 60
    assert loud(check(campaign)) == [("blocks", "undeclared settings", ("lora",))]


@pytest.mark.parametrize(("name", "inside", "outside"), [("flops", 1.05, 1.051), ("wall_time", 1.10, 1.101)])
def test_the_tolerance_of_a_frame_is_what_it_says(name, inside, outside):
    for factor, is_blocked in ((inside, False), (outside, True)):
        campaign = build_campaign()
        set_frame(campaign, name)
        for cell in cells_of(campaign, "lora"):
            cell["train_flops" if name == "flops" else "train_seconds"] *= factor
        assert check(campaign)["is_blocked"] is is_blocked


# --- mistakes of the caller


def test_a_misspelt_frame_key_or_arm_is_refused():
    campaign = build_campaign()
    with pytest.raises(UserError, match="frame"):
        check(campaign | {"expected": {"frame": "step"}})
    with pytest.raises(UserError, match="expected plan"):
        check(campaign | {"expected": {"frame": "steps", "seed": [1]}})
    with pytest.raises(UserError, match="arm of a cell"):
        check_parity([{"arm": "b"}], {}, [{"name": "a"}], expected={"frame": "steps"})
    with pytest.raises(UserError, match="no finished cell"):
        check(campaign | {"cells": []})


# --- tables shaped like published ones


def build_adapter_suite() -> list[dict[str, Any]]:
    """Shape of peft's method_comparison: one seed, one size, the same rate for most methods, no predictions."""
    methods = {"lora": 1e-4, "dora": 1e-4, "ia3": 1e-4, "prompt": 1e-4, "vera": 1e-3, "full": 1e-5}
    return [
        {
            "arm": name,
            "keeps_base": name != "full",
            "settings": {"learning_rate": rate} if rate != 1e-4 else {},
            "size": 20000,
            "seed": 0,
            "num_steps": 5000,
            "num_examples_seen": 20000,
            "train_seconds": 1000.0,
            "train_seconds_include": ["loading", "test evaluation"],
            "has_predictions": False,
            "config": {
                "learning_rate": rate,
                "max_steps": 5000,
                "per_device_train_batch_size": 4,
                "dtype": "bfloat16" if name == "full" else "float32",
                "bf16": name != "full",
            },
            "environment": {"device": "L40S", "packages": {"torch": "2.9"}},
        }
        for name, rate in methods.items()
    ]


def test_an_adapter_suite_with_one_seed_and_one_rate_is_flagged_for_its_reasons():
    parity = check_table(build_adapter_suite())
    flags = loud(parity)
    methods = ("dora", "full", "ia3", "lora", "prompt", "vera")
    assert ("blocks", "different precision", ("full",)) in flags
    assert ("warns", "single seed", methods) in flags
    assert ("warns", "training time with other work", methods) in flags
    assert ("warns", "set by hand", ("full", "vera")) in flags
    unstated = {
        flag["detail"].split(" of ")[0]: flag["severity"] for flag in parity["flags"] if "not stated" in flag["what"]
    }
    assert unstated == {"predictions": "blocks", "trials": "blocks", "data": "warns"}
    assert not any(what == "unequal training" for _, what, _ in flags)  # all made 5000 steps of 4


def build_cost_table() -> list[dict[str, Any]]:
    """Shape of litgpt's cost table: one epoch of the one, two of the other, other batches, no scores."""
    full = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    lora = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    shared = {"dtype": "bfloat16", "model_name_or_path": "some-3b"}
    return [
        {"arm": "full", "config": shared | full, "train_seconds": 1800.0},
        {"arm": "lora", "keeps_base": True, "config": shared | lora, "train_seconds": 1200.0},
    ]


def test_a_cost_table_of_one_epoch_against_two_is_flagged_for_its_reasons():
    parity = check_table(build_cost_table())
    unequal = [flag for flag in parity["flags"] if flag["what"] == "unequal training"]
    assert [flag["arms"] for flag in unequal] == [["full", "lora"]]
    assert "num_train_epochs" in unequal[0]["detail"] and "batch size" in unequal[0]["detail"]
    missing = {flag["detail"].split(" of ")[0] for flag in parity["flags"] if flag["what"] == "not stated"}
    assert {"seeds", "predictions", "trials", "data", "hardware"} <= missing
    assert "different precision" not in {what for _, what, _ in loud(parity)}


GLUE = ("MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B")
FROM_MNLI = ("MRPC", "RTE", "STS-B")


def build_glue_rows(task: str) -> list[dict[str, Any]]:
    """Shape of LoRA's GLUE table: three of its rows start from an adapter that had been trained on MNLI."""
    start = "roberta-base with an MNLI adapter" if task in FROM_MNLI else "roberta-base"
    return [
        {"arm": "full", "config": {"model_name_or_path": "roberta-base", "num_train_epochs": 10}},
        {"arm": "lora", "keeps_base": True, "config": {"model_name_or_path": start, "num_train_epochs": 60}},
    ]


def test_rows_that_start_from_another_task_are_flagged_and_the_others_are_not():
    flagged = {
        task for task in GLUE if "different checkpoint" in {f[1] for f in loud(check_table(build_glue_rows(task)))}
    }
    assert flagged == set(FROM_MNLI)
    flags = loud(check_table(build_glue_rows("RTE")))
    assert ("blocks", "different checkpoint", ("full", "lora")) in flags
    assert ("blocks", "unequal training", ("full", "lora")) in flags


def test_a_table_keeps_the_frame_that_it_names_and_the_modes_of_the_plan():
    rows = build_glue_rows("MNLI")
    own = check_table(rows, question={"budget": {"frame": "own_schedule"}})
    assert "unequal training" not in {flag["what"] for flag in own["flags"]}
    floor = {"arm": "words", "config": {}, "tuning": None}
    parity = check_table([*rows, floor], expected={"arms": {"words": Role.CHEAP}})
    trials = next(f for f in parity["flags"] if f["what"] == "not stated" and f["detail"].startswith("trials"))
    assert trials["arms"] == ["full", "lora"]
    steps = next(f for f in parity["flags"] if f["what"] == "unequal training")
    assert "words" not in steps["arms"]
