"""One typed path for YAML and flags, and a `config.yaml` from which the same run can be started again."""

from pathlib import Path

import pytest
import yaml

from hftl.config import RENAMED, flag_names, parse_args, write_config
from hftl.config.training_flags import SHORT
from hftl.config.yaml_file import read_yaml
from hftl.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "recipes" / "configs").rglob("*.yaml"))
CONFIGS = [path for path in CONFIGS if not path.name.startswith("compare-")]  # tests/compare/test_experiment.py


@pytest.fixture
def write_yaml(tmp_path):
    """Text -> path of a configuration file."""

    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_yaml_overrides_defaults_and_flags_override_yaml(write_yaml):
    path = write_yaml("learning_rate: 1e-4\nseed: 7\nlora_r: 4\n")

    args = parse_args([path, "--seed", "8"])

    assert args.training.learning_rate == 1e-4
    assert args.training.seed == 8
    assert args.model.lora_r == 4
    assert args.model.lora_alpha == 16  # the built-in default


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("learning_rate", "2e-5", 2e-5),  # YAML 1.1 alone would make a string of it
        ("num_train_examples", "100", 100),
        ("warmup_steps", "0.1", 0.1),
        ("text_columns", "[question, passage]", ["question", "passage"]),
        ("text_columns", "question", ["question"]),
        ("load_best_model_at_end", "false", False),
        ("dataloader_pin_memory", "no", False),
        ("label_column", "on", "on"),  # YAML 1.1 alone would make True of it
        ("dataset_revision", "0123456", "0123456"),  # ... and an octal number of it
        ("dataset_config", "1.10", "1.10"),
        ("run_name", "2024-01-01", "2024-01-01"),
        ("train_file", '"a b.csv"', "a b.csv"),
        ("lr_scheduler_kwargs", "{a: 2, b: 1e-6, c: true, d: x}", {"a": 2, "b": 1e-6, "c": True, "d": "x"}),
    ],
)
def test_a_yaml_value_gets_the_type_of_its_flag(write_yaml, key, text, value):
    args = parse_args([write_yaml(f"{key}: {text}\n")])

    found = next(getattr(part, key) for part in (args.data, args.model, args.training) if hasattr(part, key))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text"), [("max_length", "long"), ("seed", "1.5"), ("fp16", "maybe"), ("on_bad_rows", "ignore")]
)
def test_a_value_of_the_wrong_type_is_the_same_error_in_yaml_and_as_a_flag(write_yaml, key, text):
    with pytest.raises(UserError, match=f"--{key}.*{text}") as from_yaml:
        parse_args([write_yaml(f"{key}: {text}\n")])
    with pytest.raises(UserError) as from_flag:
        parse_args([f"--{key}", text])

    assert str(from_yaml.value) == str(from_flag.value)


@pytest.mark.parametrize("text", ["num_train_epochs: null", "num_train_epochs:", "num_train_epochs: ~", ""])
def test_a_null_in_yaml_leaves_the_default(write_yaml, text):
    args = parse_args([write_yaml(text)])

    assert args.training.num_train_epochs == 3.0
    assert "num_train_epochs" not in args.given


def test_an_unknown_yaml_key_names_the_nearest_and_the_file(write_yaml):
    with pytest.raises(UserError, match=r"Unknown key in .*run\.yaml: 'learning_rat'\. Did you mean 'learning_rate'"):
        parse_args([write_yaml("learning_rat: 1e-4\n")])


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--learning_rat", "--learning_rate"),
        ("--learning-rat", "--learning_rate"),
        ("--num_epoch=3", "--num_train_epochs"),
    ],
)
def test_an_unknown_flag_names_the_nearest(flag, nearest):
    with pytest.raises(UserError, match=f"Unknown flag.*Did you mean '{nearest}'"):
        parse_args([flag, "1"])


@pytest.mark.parametrize("flag", ["--learning_ra", "--mod", "--logging_s"])
def test_flags_cannot_be_abbreviated(flag):
    with pytest.raises(UserError, match=f"Unknown flag '{flag}'"):
        parse_args([flag, "1"])


def test_a_flag_may_be_written_with_hyphens_and_with_an_equals_sign():
    args = parse_args(["--learning-rate=1e-3", "--max-length", "64"])

    assert (args.training.learning_rate, args.data.max_length) == (1e-3, 64)
    assert {"learning_rate", "max_length"} <= set(args.given)


def test_words_that_belong_to_no_flag_are_refused():
    with pytest.raises(UserError, match="'train.csv' is neither a flag nor a .yaml file"):
        parse_args(["train.csv"])
    with pytest.raises(UserError, match="Unexpected words on the command line: 9"):
        parse_args(["--seed", "8", "9"])


def test_a_key_given_twice_in_yaml_is_refused(write_yaml):
    with pytest.raises(UserError, match="'seed' is given twice, the second time in line 3"):
        parse_args([write_yaml("seed: 1\nlora_r: 4\nseed: 2\n")])


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch {}]", "!!python/name:os.system", "!Own 1"])
def test_yaml_cannot_name_python_objects(write_yaml, tmp_path, tag):
    touched = tmp_path / "touched"

    with pytest.raises(UserError, match="not valid YAML"):
        parse_args([write_yaml(f"run_name: {tag.format(touched)}\n")])

    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [1, 2", "not valid YAML"),
        (b"- seed\n", "must hold `key: value` lines, found a list"),
        (b"run_name: \xff\n", "not valid YAML"),
        (b"# " + b"x" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_flat_yaml_mapping_is_refused(tmp_path, content, message):
    (tmp_path / "run.yaml").write_bytes(content)

    with pytest.raises(UserError, match=message):
        parse_args([str(tmp_path / "run.yaml")])


def test_two_configuration_files_and_one_in_the_wrong_place_are_refused(write_yaml):
    one, two = write_yaml("seed: 1\n", "one.yaml"), write_yaml("seed: 2\n", "two.yaml")

    with pytest.raises(UserError, match="two.yaml' is out of place: one configuration file, and it comes first"):
        parse_args([one, two])
    with pytest.raises(UserError, match="one.yaml' is out of place"):
        parse_args(["--lora_r", "4", one])


def test_a_missing_configuration_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="There is no configuration file .*absent.yaml"):
        parse_args([str(tmp_path / "absent.yaml")])


def test_a_token_is_refused_wherever_it_is_given_and_not_repeated(write_yaml):
    for argv in (["--hub_token", "hf_secret"], [write_yaml("hub_token: hf_secret\n")]):
        with pytest.raises(UserError, match="Set the environment variable HF_TOKEN instead") as error:
            parse_args(argv)
        assert "hf_secret" not in str(error.value)


def test_a_list_flag_takes_several_words():
    args = parse_args(["--text_columns", "premise", "hypothesis", "--target_modules", "query"])

    assert args.data.text_columns == ["premise", "hypothesis"]
    assert args.model.target_modules == ["query"]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--load_best_model_at_end", "false"], False),
        (["--no_load_best_model_at_end"], None),
        (["--dataloader_drop_last"], True),
        (["--dataloader_drop_last", "yes"], True),
        (["--no_dataloader_pin_memory"], False),
    ],
)
def test_a_boolean_flag_stands_alone_or_takes_a_word(words, value):
    name = words[0].removeprefix("--no_").removeprefix("--")
    if value is None:  # `--no_` belongs to flags that are on by default
        with pytest.raises(UserError, match=f"Unknown flag '--no_{name}'"):
            parse_args(words)
        return
    args = parse_args(words)

    assert getattr(args.training, name) is value
    assert args.given[name] is value


@pytest.mark.parametrize("value", ["num_cycles", "[1]", "{num_cycles: 2}", "2"])
def test_keyword_arguments_must_be_a_json_object(value):
    with pytest.raises(UserError, match="--lr_scheduler_kwargs is .*give a JSON object"):
        parse_args(["--lr_scheduler_kwargs", value])


def test_combinations_that_transformers_refuses_are_user_errors():
    with pytest.raises(UserError, match="load_best_model_at_end"):
        parse_args(["--load_best_model_at_end"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--validation_fraction", "1"], "--validation_fraction is 1.0; give a share between 0 and 1"),
        (["--num_train_examples", "0"], "--num_train_examples is 0; give 1 or more"),
        (["--image_size", "-3"], "--image_size is -3"),
        (["--lora_r", "0"], "--lora_r is 0"),
        (["--problem_type", "ranking"], "invalid choice: 'ranking'.*single_label_classification"),
    ],
)
def test_a_value_out_of_range_is_an_error(words, message):
    with pytest.raises(UserError, match=message):
        parse_args(words)


def test_a_recipe_fixes_the_mode_and_refuses_a_configuration_of_another(write_yaml):
    path = write_yaml("mode: probe\n")

    assert parse_args([], mode="peft").model.mode == "peft"
    assert parse_args([path], mode="probe").model.mode == "probe"
    with pytest.raises(UserError, match="trains mode 'peft', but the configuration says 'probe'.*train --mode probe"):
        parse_args([path], mode="peft")


@pytest.mark.parametrize(
    ("words", "seed"),
    [([], 7), (["--lora_r", "4"], 7), (["--dataset", "x"], 42), (["--train_file=x.csv"], 42), (["other.yaml"], 9)],
)
def test_the_default_configuration_is_used_only_when_neither_data_nor_a_file_are_named(
    write_yaml, monkeypatch, tmp_path, words, seed
):
    default = write_yaml("seed: 7\ndataset: bundled:wordnet\n", "default.yaml")
    write_yaml("seed: 9\n", "other.yaml")
    monkeypatch.chdir(tmp_path)

    assert parse_args(words, default_config=default).training.seed == seed


def test_given_names_what_the_user_set_and_nothing_else(write_yaml):
    args = parse_args([write_yaml("seed: 42\n"), "--lora-r", "16"], mode="peft")

    assert dict(args.given) == {"seed": 42, "lora_r": 16, "mode": "peft"}  # also values that equal the default


def test_set_defaults_leaves_what_the_user_set(write_yaml):
    args = parse_args([write_yaml("learning_rate: 1e-4\n")])

    args.set_defaults({"learning_rate": 0.5, "logging_steps": 50})

    assert (args.training.learning_rate, args.training.logging_steps) == (1e-4, 50)
    assert args.resolved() == {"learning_rate": 1e-4, "logging_steps": 50}


ROUND_TRIPS = [
    "--mode full",
    "--mode peft --target_modules query value --lora_r 4 --learning_rate 3e-4",
    "--label_column on --dataset_revision 0123456 --text_columns null --run_name 007",
    "--label_delimiter | --dataset a/b --dataset_config 1.10 --run_name größe:#1",
    "--fp16 false --no_dataloader_pin_memory --load_best_model_at_end false",
    "--eval_strategy epoch --save_strategy epoch --load_best_model_at_end --metric_for_best_model f1",
    '--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr":1e-06,"x":{"y":[1,true,"z"]}}',
    '--accelerator_config {"split_batches":true} --optim_args a=1,b=2 --debug underflow_overflow',
    '--activation_checkpointing --activation_checkpointing_kwargs {"use_reentrant":false} --report_to none',
    '--fsdp full_shard --fsdp_config {"fsdp_version":2,"transformer_layer_cls_to_wrap":"BertLayer"}',
    "--max_steps -1 --warmup_steps 0.1 --weight_decay 0 --data_seed 3 --use_cpu",
]


@pytest.mark.parametrize("words", ROUND_TRIPS)
def test_a_run_can_be_repeated_from_its_own_config_yaml(tmp_path, words):
    defaults = {"logging_steps": 50, "save_strategy": "no", "learning_rate": 2e-05, "disable_tqdm": False}
    args = parse_args([*words.split(), "--output_dir", str(tmp_path / "run")])
    args.set_defaults(defaults)

    written = write_config(args, tmp_path)
    again = parse_args([str(tmp_path / "config.yaml")])

    assert again.resolved() == written == args.resolved()
    assert not {"output_dir", "use_cpu", "disable_tqdm"} & set(written)
    assert (again.data, again.model) == (args.data, args.model)
    ours, theirs = args.training.to_dict(), again.training.to_dict()
    for name in ("output_dir", "use_cpu", "dataloader_pin_memory", "disable_tqdm"):  # of this place and machine
        ours.pop(name), theirs.pop(name)
    assert theirs == ours


def test_config_yaml_holds_no_place_and_no_token(tmp_path):
    args = parse_args(["--output_dir", "/somewhere", "--resume_from_checkpoint", "true", "--seed", "3"])

    settings = write_config(args, tmp_path)

    assert settings == {"seed": 3}
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == settings


def test_a_flag_overrides_the_config_yaml_of_an_earlier_run(tmp_path):
    write_config(parse_args(["--mode", "full", "--seed", "3"]), tmp_path)

    args = parse_args([str(tmp_path / "config.yaml"), "--seed", "4"])

    assert (args.model.mode, args.training.seed) == ("full", 4)


def test_every_shipped_configuration_parses_and_names_its_data_and_model():
    assert len(CONFIGS) == 8
    for path in CONFIGS:
        args = parse_args([str(path)])
        assert args.data.dataset and args.model.model_name_or_path, path
        assert set(read_yaml(path)) == set(args.given) - {"mode"}
        # Hardware belongs in accelerate_configs, places on the command line.
        assert not {"use_cpu", "output_dir", "fsdp", "deepspeed"} & set(args.given), path


def test_a_typed_duration_replaces_the_other_one_of_the_file(tmp_path):
    """Trainer would obey `max_steps` of the file and ignore `--num_train_epochs`."""
    config = tmp_path / "config.yaml"
    config.write_text("dataset: some/data\nmax_steps: 100\n")
    args = parse_args([str(config), "--num_train_epochs", "2"], mode="full")
    assert args.training.max_steps == -1
    assert args.training.num_train_epochs == 2
    assert "max_steps" not in args.resolved()


def test_a_filled_batch_size_is_not_recorded(tmp_path):
    """It is a process's share: on twice as many processes it would double the effective batch."""
    args = parse_args(["--dataset", "some/data"], mode="full")
    args.set_defaults({"per_device_train_batch_size": 32, "learning_rate": 1e-3})
    assert "per_device_train_batch_size" not in args.resolved()
    assert args.resolved()["learning_rate"] == 1e-3


@pytest.mark.parametrize("words", ["--gradient_checkpointing true", "--gradient-checkpointing=true", ""])
def test_the_old_name_of_activation_checkpointing_asks_for_the_new_one(tmp_path, words):
    """A warning is an error here; transformers 5.23 warns at the old name."""
    (tmp_path / "a.yaml").write_text('gradient_checkpointing: true\ngradient_checkpointing_kwargs: {"a": 1}\n')
    args = parse_args([*([] if words else [str(tmp_path / "a.yaml")]), *words.split(), "--output_dir", str(tmp_path)])
    assert args.training.gradient_checkpointing and len(RENAMED) in (0, 2)
    expected = {RENAMED.get(name, name) for name in ["gradient_checkpointing"]} | {"mode"}
    assert expected <= set(args.given) and not set(RENAMED) & set(args.given)


@pytest.mark.parametrize("value", ["-1e-5", "-.5E+2", "-1.e3"])
@pytest.mark.parametrize("way", ["flag", "yaml"])
def test_a_negative_number_with_an_exponent_is_a_value_and_no_flag(tmp_path, value, way):
    (tmp_path / "a.yaml").write_text(f"learning_rate: {value}\n")
    words = [str(tmp_path / "a.yaml")] if way == "yaml" else ["--learning_rate", value]
    assert parse_args([*words, "--dataset", "some/data"], mode="full").training.learning_rate == float(value)


@pytest.mark.parametrize("name", ["-note", "--max_steps", "-1"])
def test_a_value_of_a_file_that_begins_with_a_dash_is_no_flag(tmp_path, name):
    (tmp_path / "a.yaml").write_text(f"run_name: '{name}'\ndataset: some/data\ntext_columns: ['{name}']\n")
    args = parse_args([str(tmp_path / "a.yaml")], mode="full")
    assert args.training.run_name == name and args.data.text_columns == [name]


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--lr", "1e-3"], "--learning_rate"),
        (["--model", "bundled:minilm-l6"], "--model_name_or_path"),
        (["--train=a.csv"], "--train_file"),
        (["--batch-size", "8"], "--per_device_train_batch_size"),
        (["--epochs", "3"], "--num_train_epochs"),
        (["--lora"], "--mode peft"),
    ],
)
def test_a_flag_by_the_name_that_other_tools_give_it_says_what_to_type(words, flag):
    with pytest.raises(UserError, match=f"^Unknown flag '--[a-z_]+'. Give {flag}[.]$"):
        parse_args(["--dataset", "some/data", *words])


def test_the_names_of_other_tools_lead_to_flags_that_there_are():
    known = set(flag_names().values())
    assert not SHORT.keys() & known and {name.partition(" ")[0] for name in SHORT.values()} <= known


@pytest.mark.parametrize(
    ("name", "flag"), [("mine.csv", "--train_file"), ("rows.jsonl", "--train_file"), ("photos", "--dataset")]
)
def test_data_in_the_place_of_the_configuration_are_told_their_flag(tmp_path, monkeypatch, name, flag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir() if flag == "--dataset" else (tmp_path / name).write_text("a,b\n")
    with pytest.raises(UserError, match=f"is neither a flag nor a .yaml file. If it is the data, give {flag} {name}"):
        parse_args([name])
