"""How many bytes of tensors are alive at once while something is computed? Counted storage by storage.

With fake tensors, which have shapes and no content, a whole training step of any network takes a second and no memory.
It must not know networks.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """A context in which every tensor that an operator returns is counted until it is freed.

    Attributes:
        now: bytes that are alive.
        peak: the most that were.
        largest: bytes of the largest one.
    """

    def __init__(self, existing: Iterable[torch.Tensor] = ()) -> None:
        """Args:
        existing: tensors that are there already.
        """
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: dict[int, weakref.ref] = {}
        for tensor in existing:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def forget(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result
