"""Dropout by sixteen bits: which values it drops, what it scales, and where it takes the place of torch's."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hftl.models import dropout
from hftl.models.dropout import SixteenBitDropout, draw_faster, draw_mask


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_each_lane_drops_at_the_rate_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    mask = draw_mask(torch.empty(4_000_000), rate)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)], rel=2e-4)
    lanes = mask.view(-1, 4)  # of which one number decides
    spread = (rate * (1 - rate) / len(lanes)) ** 0.5
    assert ((lanes == 0).float().mean(0) - rate).abs().max() < 4 * spread + 2**-17
    assert abs(mask.mean().item() - 1) < 4 * (rate / (1 - rate) / mask.numel()) ** 0.5
    kept = (lanes > 0).float() - (1 - rate)
    together = (kept.T @ kept / len(lanes)).fill_diagonal_(0)
    assert together.abs().max() < 5 * rate * (1 - rate) / len(lanes) ** 0.5  # no lane follows another one


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_type_stay(shape, dtype):
    dropped = SixteenBitDropout(0.5)(torch.ones(shape, dtype=dtype))
    assert (dropped.shape, dropped.dtype) == (shape, dtype)
    assert set(dropped.flatten().tolist()) <= {0.0, 2.0}


def test_the_seed_decides_and_evaluation_drops_nothing():
    dropping, values = SixteenBitDropout(0.3), torch.randn(50, 8)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(dropping(values))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert dropping.eval()(values) is values


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_all_and_nothing_are_dropped_as_by_torch(rate, expected):
    assert torch.equal(SixteenBitDropout(rate)(torch.ones(9)), torch.full((9,), expected))


def test_gradients_are_those_of_the_same_mask_also_when_activations_are_computed_again():
    dropping = SixteenBitDropout(0.5)
    gradients = []
    for again in (False, True):
        torch.manual_seed(3)
        values = torch.ones(64, requires_grad=True)
        output = checkpoint(dropping, values, use_reentrant=False) if again else dropping(values)
        output.sum().backward()
        assert torch.equal(values.grad, output.detach())
        gradients.append(values.grad)
    assert torch.equal(*gradients)


def test_it_replaces_what_drops_and_keeps_names_and_weights(monkeypatch):
    monkeypatch.setattr(dropout, "is_made_by", lambda vendor: False)
    network = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), "b": nn.Dropout(0.0)})
    network["c"] = nn.Dropout(0.1, inplace=True)
    network.eval()
    before = dict(network.state_dict())
    draw_faster(network)
    assert type(network["a"][1]) is SixteenBitDropout and network["a"][1].p == 0.1 and not network["a"][1].training
    assert type(network["b"]) is type(network["c"]) is nn.Dropout
    assert network.state_dict().keys() == before.keys()


def test_it_is_left_to_torch_where_torch_draws_on_all_cores(monkeypatch):
    monkeypatch.setattr(dropout, "is_made_by", lambda vendor: vendor == "GenuineIntel")
    network = nn.Sequential(nn.Dropout(0.1))
    draw_faster(network)
    assert type(network[0]) is nn.Dropout
