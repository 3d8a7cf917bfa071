"""Why can a network not read a batch? Some that transformers lists for a task need more than its rows have."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hftl.errors import UserError

MEMORY_OR_DEVICE = ("out of memory", "DefaultCPUAllocator", "Cannot allocate memory", "CUDA error", "CUBLAS", "NCCL")


@contextmanager
def explained_reading(network: nn.Module) -> Iterator[None]:
    """Turn what a network says of its first batch into one error that names it; other errors stay as they are."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        if _find_package(error) not in ("torch", "transformers") or any(w in str(error) for w in MEMORY_OR_DEVICE):
            raise
        inner = network.get_base_model() if hasattr(network, "get_base_model") else network
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{type(inner).__name__} cannot read these rows as they are ({said}). Name another --model_name_or_path, "
            "or correct what its config.json says."
        ) from error


def _find_package(error: BaseException) -> str:
    """Where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] if trace else ""
