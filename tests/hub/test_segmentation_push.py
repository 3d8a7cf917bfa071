"""A segmentation model passes the gate: a fresh process loads what would go up and gives the answers of the run."""

import pytest

from hftl.hub.push import Publication, push_run
from tests.tasks.test_semantic_segmentation import files, train  # noqa: F401 - a fixture


@pytest.mark.slow
def test_a_segmentation_model_passes_the_gate(files, tmp_path):  # noqa: F811
    train(files, "scratch", tmp_path / "run")
    lines: list[str] = []
    push_run(tmp_path / "run", Publication("org/squares"), dry_run=True, say=lines.append)
    text = "\n".join(lines)
    assert "pipeline_tag: image-segmentation" in text and "mean_iou" in text
