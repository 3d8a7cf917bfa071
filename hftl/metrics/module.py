"""A metric as a module of `evaluate`, which touches neither network nor disk. The only importer of `evaluate`."""

from typing import Any

import evaluate

from hftl.metrics.base import Metric


class Module(evaluate.Metric):
    """What `load_metric` returns: `add_batch` and `compute` of `evaluate`, around the formula."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = list(self.metric.inputs.values())
        return evaluate.MetricInfo(description=self.metric.__doc__, citation="", features=features)

    def _compute(self, **columns: Any) -> dict[str, Any]:
        return self.metric.compute(**columns)

    def _build_data_dir(self) -> str:
        # evaluate 0.4.6 creates a folder in the user's cache even with keep_in_memory=True, where it is never used.
        return ""
