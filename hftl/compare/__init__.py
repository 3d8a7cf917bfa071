"""Which way of training wins on the user's data, from how many labels on, by how much and at what cost?"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """`hftl.compare(...)` beside `hftl.compare.stats`: a module whose class has a call, as Python documents it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from hftl.api import compare

        return compare(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
