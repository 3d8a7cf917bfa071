"""`--auto_batch` finds what fits, leaves the run as it was, and changes no result."""

import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from hftl import cli
from hftl.config import parse_args
from hftl.cost import headroom
from hftl.errors import OutOfResources
from hftl.run_record import RunRecord
from hftl.tasks import build_task
from hftl.training import auto_batch_size as auto_batch
from hftl.training.auto_batch_size import Probe, fit_batch, search
from hftl.training.run import run
from tests.networks import SINGLE, build_network
from tests.training.test_multiprocess import SETTINGS, as_words, write_texts
from tests.training.test_trainer import build_collator, build_rows

CPU = torch.device("cpu")
RESULTS = ("loss", "grad_norm", "learning_rate")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Flags of a run whose step has eight rows, without an output folder."""
    folder = tmp_path_factory.mktemp("auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(folder / "cache"))
        yield as_words(write_texts(folder) | SETTINGS | {"mode": "full", "per_device_train_batch_size": 8})


@pytest.fixture
def small_memory(monkeypatch):
    """Function: a BERT that has no memory for more rows than that while training."""
    forward = transformers.BertForSequenceClassification.forward

    def limit(rows):
        @functools.wraps(forward)  # Trainer reads the names of its arguments
        def run_out(self, input_ids=None, **kwargs):
            if self.training and len(input_ids) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(self, input_ids=input_ids, **kwargs)

        monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", run_out)

    return limit


def train(words, folder, *more):
    return run(parse_args([*words, "--output_dir", str(folder), *map(str, more)]))


def test_the_result_is_that_of_the_batch_asked_for_and_goes_on_as_it_was_divided(
    words, tmp_path, small_memory, monkeypatch
):
    whole = train(words, tmp_path / "whole")
    small_memory(2)
    fitted = train(words, tmp_path / "fitted", "--auto_batch", "true")

    found = fitted.environment["auto_batch"]
    assert (found["micro_batch"], found["gradient_accumulation_steps"], found["source"]) == (2, 4, "probe")
    assert whole.environment["auto_batch"] is None and fitted.cost["num_steps"] == whole.cost["num_steps"]
    logs = [[[e[k] for k in RESULTS] for e in r.history if "loss" in e] for r in (whole, fitted)]
    losses, norms, rates = (np.array(logs)[..., place] for place in range(len(RESULTS)))
    for values in (losses, rates):
        np.testing.assert_allclose(values[1], values[0], atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)  # a sum of squares in another order
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "fitted"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-6, rtol=1e-6, msg=name)

    monkeypatch.setattr(auto_batch, "search", None)  # a run that goes on does not ask again
    resumed = train(words, tmp_path / "fitted", "--auto_batch", "true", "--resume_from_checkpoint", "true")
    assert resumed.environment["auto_batch"] == {
        "micro_batch": 2, "gradient_accumulation_steps": 4, "source": "checkpoint",
    }  # fmt: skip
    third = load_file(tmp_path / "fitted" / "model.safetensors")
    assert all(torch.equal(third[name], value) for name, value in second.items())


def test_the_probe_leaves_weights_buffers_and_chance_as_they_were(monkeypatch):
    """ResNet has buffers that a step moves."""
    network, rows = build_network("resnet"), build_rows("resnet")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    moved = []

    def try_one(probe):
        probe.step(4)
        torch.rand(1), np.random.rand(), random.random()
        moved.extend(name for name, value in network.state_dict().items() if not torch.equal(value, before[name]))
        return {"micro_batch": 4}

    monkeypatch.setattr(auto_batch, "search", try_one)
    training = SimpleNamespace(
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "device": CPU, "world_size": 1},
        **{"resume_from_checkpoint": None, "fp16": False, "bf16": False, "gradient_checkpointing": False, "seed": 0},
        **{"label_smoothing_factor": 0.0, "torch_compile": False},
    )
    monkeypatch.setattr(
        auto_batch.Trainer, "get_optimizer_cls_and_kwargs", lambda args, model: (torch.optim.AdamW, {"lr": 0.1})
    )
    model, data = SimpleNamespace(auto_batch=True, mode="full"), SimpleNamespace(task="image-classification")
    args = SimpleNamespace(training=training, model=model, data=data, given=set())
    fit_batch(args, network, rows, build_collator("resnet"), build_task("image-classification"), SINGLE)

    assert any("running_mean" in name for name in moved) and any("weight" in name for name in moved)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert not network.training and all(parameter.grad is None for parameter in network.parameters())
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (4, 3)


def fake_memory(monkeypatch, headroom_bytes, per_row, start=1000):
    """A process of `start` bytes whose steps take `per_row` more for each row; returns the sizes that were tried."""
    tried, peak = [], [start]

    def step(size):
        tried.append(size)
        peak[0] = start + per_row * size

    def measure(function):
        peak[0] = start
        function()
        return peak[0]

    monkeypatch.setattr(auto_batch, "measure_headroom", lambda device: headroom_bytes)
    monkeypatch.setattr(auto_batch, "_measure_peak", measure)
    return step, tried


@pytest.mark.parametrize(
    ("headroom_bytes", "best", "tried"),
    [(10_000, 8, [1, 2, 4, 8]), (500, 4, [1, 2, 4]), (300, 2, [1, 2]), (50, 0, [1])],
)
def test_on_a_cpu_a_size_that_would_not_fit_is_not_tried(monkeypatch, headroom_bytes, best, tried):
    step, seen = fake_memory(monkeypatch, headroom_bytes, per_row=100)
    found = search(Probe(step, [1, 2, 4, 8], CPU))
    assert (found["micro_batch"], seen) == (best, tried)
    assert found["memory_limit_bytes"] == 1000 + int(0.9 * headroom_bytes)


def test_on_an_accelerator_a_size_must_leave_the_margin_and_the_reserve(monkeypatch):
    step, seen = fake_memory(monkeypatch, 500, per_row=100)
    assert search(Probe(step, [1, 2, 4, 8], torch.device("cuda")))["micro_batch"] == 4
    assert seen == [1, 2, 4, 8]
    assert search(Probe(step, [1, 2, 4, 8], torch.device("cuda"), reserve=100))["micro_batch"] == 2


def test_another_error_in_the_probe_is_not_taken_for_memory(monkeypatch):
    def fail(size):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        search(Probe(fail, [1], CPU))


def test_several_processes_take_the_smallest(words, tmp_path, monkeypatch, small_memory):
    small_memory(4)
    monkeypatch.setattr(auto_batch, "gather", lambda tensor: torch.cat([tensor, torch.ones_like(tensor)]))
    record = train(words, tmp_path / "run", "--auto_batch", "true", "--max_steps", 1, "--save_strategy", "no")
    assert record.environment["auto_batch"]["micro_batch"] == 1


def test_where_not_even_one_row_fits_the_run_ends_with_code_4(words, tmp_path, small_memory):
    small_memory(0)
    with pytest.raises(OutOfResources, match="not even one row.*--gradient_checkpointing.*--mode peft"):
        train(words, tmp_path / "run", "--auto_batch", "true")
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_later_ends_with_code_4_and_the_checkpoint_is_intact(
    words, tmp_path, monkeypatch, capsys
):
    calls = []
    real = transformers.Trainer.training_step

    def run_out(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", run_out)
    flags = [*words, "--output_dir", str(tmp_path / "run"), "--save_steps", "2"]
    assert cli.main(["train", *flags]) == 4
    message = capsys.readouterr().err
    assert "--auto_batch true" in message and "Checkpoints saved before are intact" in message
    monkeypatch.undo()
    record = train(flags, tmp_path / "run", "--resume_from_checkpoint", "true")
    assert record.status == "completed" and record.cost["num_steps"] == 11


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode", "probe"], "--auto_batch is for training, and --mode probe has no training steps"),
        (["--mode", "full", "--fsdp", "full_shard"], "--fsdp splits a network among several processes"),
    ],
)
def test_where_it_would_measure_something_else_it_is_refused(flags, message, capsys):
    assert cli.main(["train", "--dataset", "bundled:wordnet", "--model_name_or_path", "bundled:minilm-l6",
                     "--auto_batch", "true", *flags]) == 2  # fmt: skip
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("version", "limit"), [(2, "1000"), (2, "max"), (1, "1000")])
def test_the_limit_of_a_container_is_read(tmp_path, monkeypatch, version, limit):
    group = tmp_path / ("job" if version == 2 else "memory/job")
    group.mkdir(parents=True)
    files = headroom.FILES[0 if version == 2 else 1]
    for name, content in zip((*files[:2], "memory.stat"), (limit, "700", f"anon 5\n{files[2]} 100"), strict=True):
        (group / name).write_text(content)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job\n" if version == 2 else "4:memory:/job\n")
    monkeypatch.setattr(headroom, "CGROUPS", tmp_path)
    monkeypatch.setattr(headroom, "MEMBERSHIP", membership)
    expected = 400 if limit == "1000" else headroom.psutil.virtual_memory().available
    assert headroom.measure_headroom(CPU) == pytest.approx(expected, rel=0.2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert headroom.measure_headroom(CPU) == pytest.approx(expected // 2, rel=0.2)


@pytest.mark.parametrize(("kind", "used"), [("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")])
def test_the_limit_of_the_process_is_read(monkeypatch, kind, used):
    process = headroom.psutil.Process()
    taken = getattr(process.memory_info(), used)
    limits = {getattr(headroom.psutil, kind): (taken + 2**25, -1)}
    monkeypatch.setattr(headroom.psutil.Process, "rlimit", lambda self, name: limits.get(name, (-1, -1)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each process has its own
    assert headroom.measure_headroom(CPU) == pytest.approx(2**25, abs=2**24)
    limits.clear()
    assert headroom.measure_headroom(CPU) > 2**26


@pytest.mark.parametrize("advice", [(), ("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2)])
def test_a_run_that_was_not_fitted_is_divided_further_when_it_goes_on(words, tmp_path, small_memory, caplog, advice):
    """Out of memory after a checkpoint, the advice is `--auto_batch true`: the division that failed is not kept."""
    whole = train(words, tmp_path / "run", "--max_steps", 11)
    small_memory(2)
    flags = ("--auto_batch", "true", "--resume_from_checkpoint", "true", *advice)
    record = train(words, tmp_path / "run", *flags)
    found = record.environment["auto_batch"]
    assert (found["micro_batch"], found["gradient_accumulation_steps"], found["source"]) == (2, 4, "probe")
    assert "The run took 8 rows at once before" in caplog.text
    losses = [[e["loss"] for e in r.history if "loss" in e] for r in (whole, record)]
    assert len(losses[0]) == 11
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-6, rtol=1e-6)


def test_a_run_that_was_not_fitted_goes_on_as_it_was_where_it_fits(words, tmp_path):
    small = ("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2)
    train(words, tmp_path / "run", *small)
    record = train(words, tmp_path / "run", "--auto_batch", "true", "--resume_from_checkpoint", "true")
    assert record.environment["auto_batch"]["micro_batch"] == 4


def test_the_record_is_read_back(words, tmp_path):
    train(words, tmp_path / "run", "--auto_batch", "true", "--max_steps", 1, "--save_strategy", "no")
    found = RunRecord.read(tmp_path / "run").environment["auto_batch"]
    assert found["micro_batch"] == 8 and 0 < found["peak_memory_bytes"] < found["memory_limit_bytes"]
