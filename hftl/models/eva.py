"""Where do the matrices of EVA start? In the directions in which the inputs of their layers vary most.

Each layer gets directions in the measure of the variance that they explain there, so ranks move between layers
(Paischer et al. 2024, section 3). The covariance of the inputs is taken whole, in one pass over some training rows.
peft 0.21 approximates it batch by batch until the directions stand still, for which it has no limit: on MiniLM with
rank 16 that took 78 passes in batches of 64 rows, and came to no end in 8 minutes in batches of 512.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

MEMORY = 2**31  # bytes of covariances held at a time; a network with more of them reads the rows several times
SMALLEST_SHARE = 1e-6  # of a layer's variance; a direction with less is rounding

Batches = Callable[[], Iterable[Mapping[str, torch.Tensor]]]


@dataclass(frozen=True)
class Directions:
    """What a layer reads.

    Attributes:
        vectors: float32 [k, D], orthonormal, those with most variance first.
        shares: float64 [k], of the variance of all inputs.
        singular_values: float32 [k], of the centred inputs.
    """

    vectors: torch.Tensor
    shares: torch.Tensor
    singular_values: torch.Tensor


class _Covariance:
    """Of vectors that come batch by batch; shifted by the first mean, so that nothing is lost in float32."""

    def __init__(self) -> None:
        self.count = 0
        self.shift: torch.Tensor | None = None

    def add(self, vectors: torch.Tensor) -> None:
        """Count vectors [N, D]."""
        vectors = vectors.float()
        if self.shift is None:
            self.shift = vectors.mean(0)
            self.total = torch.zeros_like(self.shift)
            self.products = torch.zeros(len(self.shift), len(self.shift), device=vectors.device)
        vectors = vectors - self.shift
        self.count += len(vectors)
        self.total += vectors.sum(0)
        self.products += vectors.T @ vectors

    def find_directions(self, most: int) -> Directions:
        """The first directions, `most` at most, and no more than the vectors span."""
        scatter = (self.products - torch.outer(self.total, self.total / self.count)).double()
        values, vectors = torch.linalg.eigh(scatter)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1).T
        shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        kept = min(most, self.count - 1, int((shares > SMALLEST_SHARE).sum()))
        vectors = vectors[:kept]
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))  # the sign is open: that entry is positive
        return Directions((vectors * largest.sign()).float(), shares[:kept], values[:kept].sqrt().float())


@torch.no_grad()
def initialize_eva(adapted: nn.Module, batches: Batches) -> None:
    """Set the matrices A of a network wrapped in LoRA, and its ranks; the matrices B stay zero.

    Args:
        adapted: the network, wrapped.
        batches: function that gives the same model inputs each time it is called.
    """
    from peft import initialize_lora_eva_weights
    from peft.tuners.lora import LoraLayer

    config = adapted.peft_config["default"]
    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    most = round(config.r * config.eva_config.rho)
    found: dict[str, Directions] = {}
    for group in _group_by_memory(layers):
        covariances = _read_inputs(adapted, {name: layers[name] for name in group}, batches)
        made = {covariance: covariance.find_directions(most) for covariance in set(covariances.values())}
        found |= {name: made[covariance] for name, covariance in covariances.items()}
    shares = {name: directions.shares[: layers[name].out_features] for name, directions in found.items()}
    ranks = share_ranks(shares, config.r * len(found))
    state = {}
    for name, directions in found.items():
        state[name] = directions.vectors[: ranks[name]]
        if config.eva_config.whiten:
            state[name] = state[name] / directions.singular_values[: ranks[name], None].sqrt()
    initialize_lora_eva_weights(adapted, eva_state_dict=state)
    # Full names: those that peft shortens to may fit a layer that was left without a rank.
    kept = [name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]
    config.target_modules = {name.removeprefix("base_model.model.") for name in kept}
    for parameter in adapted.parameters():  # peft makes matrices of a new rank in the type of the layer
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def share_ranks(shares: Mapping[str, torch.Tensor], budget: int) -> dict[str, int]:
    """Name -> number of its directions among the `budget` with the largest shares of their layer's variance."""
    ordered = sorted(((share, name) for name, values in shares.items() for share in values.tolist()), reverse=True)
    chosen = Counter(name for _, name in ordered[:budget])
    return {name: chosen[name] for name in shares}


def _group_by_memory(layers: Mapping[str, Any]) -> list[list[str]]:
    """Names in their order, cut where the covariances would take more than `MEMORY`."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, layer in layers.items():
        needed = 4 * layer.in_features**2
        if groups[-1] and used + needed > MEMORY:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += needed
    return groups


def _read_inputs(adapted: nn.Module, layers: Mapping[str, nn.Module], batches: Batches) -> dict[str, _Covariance]:
    """The covariance of what each layer reads; layers that read the same tensor share one."""
    covariances: dict[str, _Covariance] = {}
    mask: torch.Tensor | None = None
    last: torch.Tensor | None = None
    owner = ""

    def read(name: str, inputs: torch.Tensor) -> None:
        nonlocal last, owner
        if inputs is last:
            covariances.setdefault(name, covariances[owner])
            return
        last, owner = inputs, name
        covariances.setdefault(name, _Covariance()).add(_select(inputs, mask))

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: read(name, inputs[0]))
        for name, layer in layers.items()
    ]
    was_training = adapted.training
    try:
        adapted.eval()
        for batch in batches():
            mask = batch.get("attention_mask")
            adapted.get_base_model()(**batch)
    finally:
        adapted.train(was_training)
        for hook in hooks:
            hook.remove()
    return covariances


def _select(inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The vectors [N, D] of a batch, without those at padding where a position is a token."""
    if mask is not None and inputs.shape[:-1] == mask.shape:
        return inputs[mask.bool()]
    return inputs.reshape(-1, inputs.shape[-1])
