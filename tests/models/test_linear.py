"""Linear layers by oneDNN: the same numbers, only where no gradient is wanted, and counted in FLOPs."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import hftl
from hftl.config import parse_args
from hftl.cost.flops import count_flops
from hftl.inference.predictor import Predictor
from hftl.models import linear
from hftl.models.dropout import SixteenBitDropout
from hftl.models.linear import is_onednn_faster, linear_by_onednn
from hftl.training import head_init as head_start
from hftl.training.run import run
from hftl.training.trainer import FineTuningTrainer
from tests import tiny

OPERATOR = "mkldnn::_linear_pointwise"
CPU = torch.device("cpu")


@pytest.fixture
def used(monkeypatch):
    """Function: the result of a call inside, and whether oneDNN computed it. On every processor."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(linear, "is_onednn_faster", lambda: True)

    def call(function, *values):
        with profile(activities=[ProfilerActivity.CPU]) as events, linear_by_onednn(CPU):
            result = function(*values)
        return result, OPERATOR in {event.key for event in events.key_averages()}

    return call


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(256,), (4, 64)])
def test_the_numbers_are_those_of_torch(used, bias, rows):
    layer, values = nn.Linear(128, 96, bias=bias), torch.randn(*rows, 128)
    with torch.no_grad():
        found, by_onednn = used(layer, values)
        expected = layer(values)
    assert by_onednn and found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_slice_that_is_not_contiguous_is_read_right(used):
    layer, values = nn.Linear(128, 128), torch.randn(2, 300, 128)
    with torch.inference_mode():
        found, by_onednn = used(layer, values[:, ::2])
        assert by_onednn
        torch.testing.assert_close(found, layer(values[:, ::2]), rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_not_contiguous_is_left_to_torch(used):
    weight, values = torch.randn(128, 128).T, torch.randn(256, 128)
    found, by_onednn = used(functional.linear, values, weight)
    assert not by_onednn and torch.equal(found, values @ weight.T)


def test_a_network_on_another_device_is_not_watched(monkeypatch):
    monkeypatch.setattr(linear, "is_onednn_faster", lambda: True)
    with linear_by_onednn(torch.device("cuda")):
        assert torch.overrides._get_current_function_mode_stack() == []


def test_where_gradients_are_wanted_torch_computes(used):
    layer, values = nn.Linear(128, 128), torch.randn(256, 128)
    found, by_onednn = used(layer, values)
    assert not by_onednn and found.requires_grad


@pytest.mark.parametrize(
    "change",
    [
        lambda layer, values: (layer, values[:2]),
        lambda layer, values: (layer.double(), values.double()),
        lambda layer, values: (torch.autocast("cpu", torch.bfloat16)(layer), values),
        lambda layer, values: (layer.bfloat16(), values.bfloat16()),
    ],
    ids=["small", "double", "autocast", "bfloat16"],
)
def test_what_does_not_gain_is_left_to_torch(used, change):
    with torch.no_grad():
        _, by_onednn = used(*change(nn.Linear(128, 128), torch.randn(256, 128)))
    assert not by_onednn


def test_flops_are_counted_alike(used):
    layer, values = nn.Linear(128, 96), torch.randn(256, 128)
    with torch.no_grad():
        plain = count_flops(lambda: layer(values))
        by_onednn = count_flops(lambda: used(layer, values))
    assert plain == by_onednn == 2 * 256 * 128 * 96


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [("AuthenticAMD", {"avx512f"}, True), ("AuthenticAMD", {"avx2"}, False), ("GenuineIntel", {"avx512f"}, False)],
)
def test_it_is_chosen_for_processors_whose_registers_mkl_does_not_use(monkeypatch, vendor, flags, expected):
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(linear, "is_made_by", lambda name: name == vendor)
    monkeypatch.setattr(linear, "has_instructions", lambda *names: bool(flags & set(names)))
    assert is_onednn_faster.__wrapped__() is expected


def test_outside_and_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setattr(linear, "is_onednn_faster", lambda: False)
    with linear_by_onednn(CPU), torch.no_grad():
        assert torch.overrides._get_current_function_mode_stack() == []
        assert functional.linear(torch.ones(1, 2), torch.ones(3, 2)).tolist() == [[2.0, 2.0, 2.0]]


def test_scores_features_and_answers_are_computed_so_and_training_drops_fast(monkeypatch, tmp_path):
    """Each place that asks a network asks it inside, and what a run trains has the fast dropout."""
    monkeypatch.setattr(linear, "is_onednn_faster", lambda: True)
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 1)
    monkeypatch.setattr("hftl.models.dropout.is_made_by", lambda vendor: False)
    tiny.write_tiny_bert(tmp_path / "bert")
    tiny.write_jsonl(tmp_path / "train.jsonl", tiny.make_texts(60))
    seen = {}

    def watch(owner, name):
        function = getattr(owner, name)

        def watched(*args, **kwargs):
            with profile(activities=[ProfilerActivity.CPU]) as events:
                result = function(*args, **kwargs)
            seen[name] = OPERATOR in {event.key for event in events.key_averages()}
            return result

        monkeypatch.setattr(owner, name, watched)

    watch(FineTuningTrainer, "prediction_step")
    watch(head_start, "compute_features")
    watch(Predictor, "run_batches")

    class Look(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen["dropout"] = {type(module) for module in model.modules() if isinstance(module, nn.Dropout)}

    flags = "--mode full --head_init probe --use_cpu --max_steps 1"
    words = [*flags.split(), "--train_file", str(tmp_path / "train.jsonl"), "--output_dir", str(tmp_path / "run")]
    run(parse_args([*words, "--model_name_or_path", str(tmp_path / "bert")]), callbacks=[Look()])
    hftl.load(tmp_path / "run").predict(["a cat"])
    names = ("prediction_step", "compute_features", "run_batches")
    assert seen == dict.fromkeys(names, True) | {"dropout": {SixteenBitDropout}}
