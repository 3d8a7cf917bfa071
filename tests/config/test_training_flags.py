"""Every flag of transformers' `TrainingArguments` does what it says, or is refused by name before anything is read."""

import dataclasses
import math

import pytest
import transformers
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

import hftl.training.tools as tools
from hftl.baselines import run_baseline
from hftl.config import parse_args
from hftl.config.training_flags import FLAGS
from hftl.config.yaml_file import as_words
from hftl.errors import TrainingDiverged, UserError
from hftl.preview.estimate import estimate
from hftl.run_record import RunRecord
from hftl.tasks import build_task
from hftl.training.run import run
from hftl.training.settings import check_arguments, check_training, set_defaults, warn_of_unread
from tests import tiny
from tests.networks import build_network

FIELDS = {item.name: item for item in dataclasses.fields(transformers.TrainingArguments)}
MAY_BE_MISSING = {"dataloader_multiprocessing_context", "activation_checkpointing", "activation_checkpointing_kwargs"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("flags"))


@pytest.fixture
def check(files):
    """Words -> the arguments, checked as a run checks them first."""

    def check_words(*words):
        base = ["--mode", "full", "--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert"]
        args = parse_args([*base, "--use_cpu", "true", *words])
        check_arguments(args)
        return args

    return check_words


def test_the_table_knows_every_field_of_this_transformers():
    assert not FIELDS.keys() - FLAGS.keys(), "say in hftl/config/training_flags.py what becomes of these"
    gone = FLAGS.keys() - FIELDS.keys()
    assert gone <= MAY_BE_MISSING, "these are gone: take them out of hftl/config/training_flags.py"


# Values that users give and that make no sense -> those that the flag accepts.
RANGES = {
    "num_train_epochs": (["0", "-1", "nan", "inf"], ["0.5", "3"]),
    "max_steps": (["0", "-2"], ["-1", "1", "100"]),
    "per_device_train_batch_size": (["0", "-4"], ["1"]),
    "per_device_eval_batch_size": (["0", "-4"], ["1"]),
    "gradient_accumulation_steps": (["0", "-1"], ["1", "7"]),
    "learning_rate": (["-1e-4", "nan", "inf"], ["0", "1e-3"]),
    "warmup_steps": (["-1", "nan", "1.5", "inf"], ["0", "0.1", "10"]),
    "weight_decay": (["nan", "-0.1", "inf"], ["0", "0.1"]),
    "adam_beta1": (["1", "-0.1", "nan", "2"], ["0", "0.99"]),
    "adam_beta2": (["1", "-0.1", "nan"], ["0.999"]),
    "adam_epsilon": (["-1e-8", "nan"], ["1e-6"]),
    "max_grad_norm": (["-1", "nan", "inf"], ["0", "0.5"]),
    "label_smoothing_factor": (["-0.5", "1", "nan"], ["0", "0.1"]),
    "neftune_noise_alpha": (["-5", "nan"], ["0", "5"]),
    "seed": (["-1", str(2**32)], ["0", str(2**32 - 1)]),
    "data_seed": (["-1", str(2**32)], ["0"]),
    "logging_steps": (["0", "-1", "nan", "1.5", "inf"], ["0.1", "1", "50"]),
    "eval_steps": (["0", "-2", "nan", "inf"], ["0.1", "5"]),
    "save_steps": (["0", "-2", "nan", "inf"], ["0.1", "5"]),
    "eval_delay": (["-1", "nan", "inf"], ["0", "2"]),
    "eval_accumulation_steps": (["0", "-1"], ["1"]),
    "save_total_limit": (["0", "-1"], ["1"]),
    "dataloader_num_workers": (["-1"], ["0"]),
    "dataloader_prefetch_factor": (["0", "-2"], []),
    "torch_empty_cache_steps": (["0", "-1"], ["1"]),
    "ddp_timeout": (["0", "-1"], ["60"]),
    "ddp_bucket_cap_mb": (["0", "-1"], ["25"]),
}
BESIDE = {"eval_steps": ["--eval_strategy", "steps"], "save_steps": ["--save_strategy", "steps"]}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_out_of_range_is_refused_by_name_and_one_inside_is_taken(check, name):
    wrong, right = RANGES[name]
    for value in wrong:
        with pytest.raises(UserError, match=f"(?i){name}|cannot convert float infinity"):
            check(f"--{name}", value, *BESIDE.get(name, []))
    for value in right:
        args = check(f"--{name}", value, *BESIDE.get(name, []))
        assert getattr(args.training, name) == float(value)


REFUSED = {
    "do_train": "false",
    "do_eval": "false",
    "do_predict": "false",
    "fp16": "true",
    "fp16_full_eval": "true",
    "bf16_full_eval": "true",
    "average_tokens_across_devices": "false",
    "use_cache": "true",
    "include_num_input_tokens_seen": "true",
    "prediction_loss_only": "true",
    "eval_do_concat_batches": "false",
    "eval_use_gather_object": "true",
    "batch_eval_metrics": "true",
    "include_for_metrics": "inputs",
    "save_on_each_node": "true",
    "enable_jit_checkpoint": "true",
    "ignore_data_skip": "true",
    "dataloader_in_order": "false",
    "remove_unused_columns": "false",
    "label_names": "labels",
    "length_column_name": "size",
    "accelerator_config": '{"split_batches": true}',
    "parallelism_config": "tp",
    "liger_kernel_config": '{"rope": true}',
    "use_liger_kernel": "true",
    "auto_find_batch_size": "true",
    "debug": "underflow_overflow",
    "hub_token": "hf_x",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_flag_that_hftl_decides_itself_is_refused_by_name(check, name):
    with pytest.raises(UserError, match=name.replace("_", "[_-]")) as error:
        check(f"--{name}", REFUSED[name])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"hub_token", "local_rank", "output_dir"}))
def test_the_default_of_a_flag_can_be_typed_or_it_is_refused_in_a_sentence(check, name):
    """Whatever the flag, nothing but a UserError may come of it, and its own default is never out of range."""
    item = FIELDS[name]
    default = item.default_factory() if callable(item.default_factory) else item.default
    if default is None or default == [] or default == "":
        default = "x"
    try:
        check(f"--{name}", *as_words(getattr(default, "value", default)))
    except UserError as error:
        assert default == "x" or name in STATED, str(error)


STATED = {"do_train", "do_eval", "do_predict", "eval_steps", "hub_strategy", "tf32", "warmup_steps"}


SLOW_VALUES = [pytest.param(value, marks=pytest.mark.slow) for value in ("0", "x", "true", '{"a": 1}', "1.5", "1e400")]


@pytest.mark.parametrize("value", ["nan", "-1", *SLOW_VALUES])
def test_no_value_of_any_flag_leads_to_a_traceback(check, value):
    for name in sorted(FIELDS):
        try:
            check(f"--{name}", value)
        except UserError as error:
            assert len(str(error)) < 2000


@pytest.mark.parametrize("optimizer", [name.value for name in OptimizerNames])
def test_an_optimizer_is_there_or_its_package_is_named(check, optimizer):
    try:
        check("--optim", optimizer)
    except UserError as error:
        words = r"torchao|torch_xla|torch_npu|torchdistx|grokadamw|schedulefree|optimi|bitsandbytes|apex|apollo|galore"
        assert f"--optim {optimizer}" in str(error)
        assert "inside of the backward pass" in str(error) or any(word in str(error) for word in words.split("|"))


@pytest.mark.parametrize("schedule", [name.value for name in SchedulerType])
def test_a_schedule_is_complete_or_says_what_it_lacks(check, schedule):
    lacking = {
        "cosine_with_min_lr": "min_lr",
        "cosine_warmup_with_min_lr": "min_lr",
        "warmup_stable_decay": "num_decay_steps",
        "reduce_lr_on_plateau": "requires an eval strategy",
        "greedy": "requires an eval strategy",
    }
    if schedule not in lacking:
        assert check("--lr_scheduler_type", schedule).training.lr_scheduler_type == schedule
        return
    with pytest.raises(UserError, match=f"{schedule}.*{lacking[schedule]}"):
        check("--lr_scheduler_type", schedule)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr_scheduler_kwargs", '{"a": 1}'], "--lr_scheduler_type linear .*unexpected keyword argument 'a'"),
        (["--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", '{"a": 1}'], "constant has no settings"),
        (["--lr_scheduler_type", "constant", "--warmup_steps", "5"], "constant has no warm-up"),
        (["--lr_scheduler_type", "polynomial", "--learning_rate", "1e-8"], "must be smaller than initial lr"),
        (["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"lr_end": -1}'],
         "the learning rate would be multiplied by -"),
        (["--optim_args", "momentum=0.9"], "changes nothing of --optim adamw_torch_fused"),
        (["--optim", "sgd", "--optim_args", "mometum=0.9"], "mometum=0.9 changes nothing of --optim sgd"),
        (["--optim", "sgd", "--optim_args", "momentum"], "give NAME=VALUE"),
        (["--optim", "sgd", "--optim_args", "momentum=x"], "--optim sgd cannot be used: could not convert"),
        (["--optim", "sgd", "--adam_beta1", "0.5"], "--adam_beta1 is not read by --optim sgd"),
        (["--optim_target_modules", "all-linear"], "for galore and apollo, and --optim is adamw"),
        (["--eval_steps", "5"], "--eval_steps counts with --eval_strategy steps only, and that is no"),
        (["--eval_steps", "5", "--eval_strategy", "epoch"], "and that is epoch"),
        (["--save_steps", "5", "--save_strategy", "epoch"], "--save_steps counts with --save_strategy steps only"),
        (["--logging_steps", "5", "--logging_strategy", "epoch"], "--logging_steps counts with"),
        (["--save_strategy", "best"], "add --eval_strategy"),
        (["--save_strategy", "best", "--eval_strategy", "epoch"], "needs --metric_for_best_model"),
        (["--gradient_checkpointing_kwargs", '{"use_reentrant": false}'], "is read with .* true only"),
        (["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"foo": 1}'], "Unknown setting .* 'foo'"),
        (["--fsdp_config", '{"version": 2}'], "is read with --fsdp only"),
        (["--torch_compile_backend", "inducter"], "Did you mean 'inductor'"),
        (["--torch_compile_mode", "fast"], "Unknown mode in --torch_compile_mode: 'fast'"),
        (["--report_to", "wandbb"], "Unknown tracker in --report_to: 'wandbb'. Did you mean 'wandb'"),
        (["--warmup_ratio", "0.1"], "Give --warmup_steps with a share below 1"),
        (["--evaluation_strategy", "epoch"], "It is --eval_strategy now"),
        (["--group_by_length", "true"], "--train_sampling_strategy group_by_length"),
        (["--lora_dropout", "1"], "--lora_dropout is 1.0"),
        (["--lora_alpha", "0"], "--lora_alpha is 0"),
        (["--head_learning_rate", "nan"], "--head_learning_rate is nan"),
        (["--head_learning_rate", "0"], "--head_learning_rate is 0.0"),
    ],
)  # fmt: skip
def test_what_would_not_be_read_is_refused(check, words, message):
    with pytest.raises(UserError, match=message):
        check(*words)


@pytest.mark.parametrize(
    "words",
    [
        "--optim sgd --optim_args momentum=0.9,nesterov=true",
        "--optim adafactor --weight_decay 0.1",
        "--optim_args= --adam_beta1 0.8",
        "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {\"min_lr_rate\":0.1}",
        "--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {\"num_decay_steps\":10} --max_steps 50",
        "--save_strategy no --save_steps 5 --eval_strategy no --eval_steps 5",
        "--do_train true --do_eval true --do_predict true --report_to none --report_to all",
        "--remove_unused_columns true --save_only_model false --fp16 false --ignore_data_skip false",
        "--max_steps 5 --num_train_epochs 3",
    ],
)  # fmt: skip
def test_what_is_right_is_taken(check, words):
    assert check(*words.split()).given


def test_a_tracker_that_is_not_installed_is_named_with_its_package(check, monkeypatch):
    monkeypatch.setattr(tools, "get_available_reporting_integrations", lambda: ["mlflow"])
    for name, package in (("wandb", "wandb"), ("comet_ml", "comet-ml"), ("tensorboard", "tensorboard")):
        with pytest.raises(UserError, match=f"--report_to {name} needs .* pip install {package}"):
            check("--report_to", name)
    check("--report_to", "mlflow")
    with pytest.raises(UserError, match="kubeflow works inside"):
        check("--report_to", "kubeflow")


# --- a training has at least one step ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "num_rows", "message"),
    [
        ("--dataloader_drop_last --per_device_train_batch_size 64", 63, "less than 64 rows .*train has 63"),
        ("--dataloader_drop_last --per_device_train_batch_size 8 --gradient_accumulation_steps 4", 31, "than 32 rows"),
        ("--dataloader_drop_last", 5, "less than 32 rows"),  # the batch that hftl chooses
        ("--load_best_model_at_end --eval_strategy steps --eval_steps 1 --save_steps 1 --max_steps 5 --eval_delay 6",
         50, "--eval_delay is 6, and training ends after 5"),
        ("--dataloader_drop_last --per_device_train_batch_size 64", 64, None),
        ("--per_device_train_batch_size 64", 1, None),
        ("--load_best_model_at_end --eval_strategy epoch --save_strategy epoch --num_train_epochs 3 --eval_delay 2",
         50, None),
    ],
)  # fmt: skip
def test_a_training_without_a_step_is_refused(check, words, num_rows, message):
    from hftl.models.modes import MODES

    network, task = build_network("bert"), build_task("text-classification")
    args = check(*words.split())
    set_defaults(args, MODES["full"], network, task, num_rows)
    if message is None:
        check_training(args, network, task, num_rows)
        return
    with pytest.raises(UserError, match=message):
        check_training(args, network, task, num_rows)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("resnet", "--gradient_checkpointing true", "cannot compute activations again"),
        ("vit", "--neftune_noise_alpha 5", "images have none"),
        ("vit", "--train_sampling_strategy group_by_length", "images have no length"),
        ("vit", "--gradient_checkpointing true", None),
    ],
)
def test_what_a_network_of_images_cannot_do_is_refused(check, name, words, message):
    args, network = check(*words.split()), build_network(name)
    if message is None:
        check_training(args, network, build_task("image-classification"), 100)
        return
    with pytest.raises(UserError, match=message):
        check_training(args, network, build_task("image-classification"), 100)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no"),
        (["--save_steps", "5"], "steps"),
        (["--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "5", "--save_steps", "5"], "steps"),
        (["--save_strategy", "epoch"], "epoch"),
    ],
)
def test_checkpoints_are_written_where_something_asks_for_them(check, words, expected):
    from hftl.models.modes import MODES

    args = check(*words)
    set_defaults(args, MODES["full"], build_network("bert"), build_task("text-classification"), 100)
    assert args.training.save_strategy == expected


def test_the_best_model_is_loaded_where_only_its_evaluation_was_asked_for(files, tmp_path):
    words = f"--train_file {files}/train.csv --model_name_or_path {files}/bert --use_cpu --max_steps 2 --eval_steps 1"
    words += f" --eval_strategy steps --save_steps 1 --load_best_model_at_end --output_dir {tmp_path}/run"
    run(parse_args([*words.split(), "--metric_for_best_model", "loss"], mode="full"))
    assert [path.name for path in sorted((tmp_path / "run").glob("checkpoint-*"))] == ["checkpoint-1", "checkpoint-2"]


def test_weights_alone_are_saved_and_nothing_goes_on_from_them(files, tmp_path):
    words = f"--train_file {files}/train.csv --model_name_or_path {files}/bert --use_cpu --max_steps 2 --save_steps 1"
    words = [*words.split(), "--save_only_model", "true", "--output_dir", f"{tmp_path}/run"]
    run(parse_args(words, mode="full"))
    assert not (tmp_path / "run" / "checkpoint-1" / "optimizer.pt").exists()
    for value in ("true", "auto", f"{tmp_path}/run/checkpoint-1"):
        with pytest.raises(UserError, match="holds the weights alone .--save_only_model."):
            run(parse_args([*words, "--resume_from_checkpoint", value], mode="full"))


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_start_as_they_were_told_to(files, tmp_path, context, monkeypatch):
    started = []
    monkeypatch.setattr("hftl.training.trainer.DataLoader", lambda *args, **kwargs: started.append(kwargs) or _stop())
    words = f"--train_file {files}/train.csv --model_name_or_path {files}/bert --use_cpu --max_steps 1"
    words += f" --dataloader_num_workers 1 --dataloader_multiprocessing_context {context} --output_dir {tmp_path}/run"
    with pytest.raises(KeyboardInterrupt):
        run(parse_args(words.split(), mode="full"))
    assert started[0]["multiprocessing_context"] == context


def _stop():
    raise KeyboardInterrupt


def test_baselines_and_estimates_refuse_the_same(files):
    words = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert", "--use_cpu"]
    for flag, value in (("--seed", "-1"), ("--per_device_train_batch_size", "0"), ("--do_train", "false")):
        with pytest.raises(UserError, match=f"{flag} is"):
            run_baseline(parse_args([*words, flag, value], mode="majority"))
        with pytest.raises(UserError, match=f"{flag} is"):
            estimate(parse_args([*words, flag, value], mode="full"), None)


def test_a_recorded_configuration_with_such_a_flag_still_loads(files, tmp_path):
    """What older versions have accepted: their runs answer as before, they are only not trained again."""
    import hftl

    words = f"--train_file {files}/train.csv --model_name_or_path {files}/bert --use_cpu --max_steps 1"
    run(parse_args([*words.split(), "--output_dir", f"{tmp_path}/run"], mode="full"))
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text() + "do_train: false\nsave_total_limit: 0\nfp16_full_eval: true\n")
    assert math.isfinite(hftl.load(tmp_path / "run").predict(["a text"])[0]["probability"])


@pytest.mark.parametrize(
    ("mode", "words", "names"),
    [
        ("probe", ["--learning_rate", "1", "--max_steps", "7"], "--max_steps, --learning_rate. --mode probe"),
        ("tfidf", ["--num_train_epochs", "3", "--optim", "sgd"], "--num_train_epochs, --optim. --mode tfidf"),
        ("full", ["--lora_r", "3", "--adapter", "dora"], "--adapter, --lora_r. --mode full has no adapter"),
        ("probe", ["--target_modules", "query"], "--target_modules. --mode probe has no adapter"),
    ],
)
def test_what_a_mode_does_not_read_is_named(files, mode, words, names, caplog):
    base = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert", "--use_cpu", "true"]
    warn_of_unread(parse_args([*base, *words], mode=mode))
    assert f"Not read: {names}" in caplog.text


@pytest.mark.parametrize("mode", ["probe", "full", "peft"])
def test_of_a_recorded_configuration_everything_is_read(files, tmp_path, mode, caplog):
    words = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert", "--use_cpu", "true"]
    words += [] if mode == "probe" else ["--max_steps", "1"]
    run(parse_args([*words, "--output_dir", str(tmp_path)], mode=mode))
    warn_of_unread(parse_args([str(tmp_path / "config.yaml")]))
    assert "Not read" not in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("words", [["--weight_decay", "1e9"], ["--optim", "sgd", "--learning_rate", "1e30"]])
def test_a_network_that_answers_no_finite_number_is_not_saved(files, tmp_path, words):
    """The weights are finite, and the loss of every step was: nothing but the answers shows it."""
    words = [*words, "--model_name_or_path", f"{files}/bert", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    words += ["--train_file", f"{files}/train.csv", "--max_steps", "3", "--lr_scheduler_type", "constant"]
    with pytest.raises(TrainingDiverged):
        run(parse_args(words, mode="full"))
    assert RunRecord.read(tmp_path).status == "diverged" and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "is_said"),
    [("--warmup_steps 500 --max_steps 3", True), ("--warmup_steps 7 --num_train_epochs 2", True),
     ("--warmup_steps 10 --max_steps 10", True), ("--warmup_steps 0.5 --max_steps 10", False),
     ("--warmup_steps 1 --max_steps 2", False), ("--max_steps 1", True), ("--max_steps 2", False)],
)  # fmt: skip
def test_a_warm_up_that_is_longer_than_the_training_is_said(check, words, is_said, caplog):
    from hftl.models.modes import MODES

    network, task = build_network("bert"), build_task("text-classification")
    args = check(*words.split(), "--per_device_train_batch_size", "32")
    set_defaults(args, MODES["full"], network, task, 96)
    check_training(args, network, task, 96)
    assert ("never gets to --learning_rate" in caplog.text) == is_said
