"""Transfer learning with the Hugging Face ecosystem. `import hftl` imports neither torch nor transformers.

The public names: `hftl.train`, `hftl.compare` and `hftl.load` do what the verbs of the command line do;
`hftl.parse_args`, `hftl.RunRecord`, and the function `run` of the module `hftl.training.run`.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hftl.api import compare, load, train
    from hftl.config import parse_args
    from hftl.run_record import RunRecord

__version__ = "0.1.0"  # the only place: pyproject.toml reads it from here
__all__ = ["RunRecord", "__version__", "compare", "load", "parse_args", "train"]

# peft imports bitsandbytes, which on some processors warns of a kernel that it has not got and does without.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# Without `run`: whether `hftl.training.run` were the function or the module would depend on what was imported before.
# `hftl.compare` is a module that can be called, so that it is the same whatever was imported before.
_HOME = {"RunRecord": "hftl.run_record", "parse_args": "hftl.config", "load": "hftl.api", "train": "hftl.api"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name == "compare":
        return importlib.import_module("hftl.compare")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
