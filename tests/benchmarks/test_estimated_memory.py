"""The comparison of predicted and allocated memory, as far as it goes without a GPU."""

import re
import sys

import pytest

from benchmarks import estimated_memory


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tiny_network_takes_what_was_predicted(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["estimated_memory.py", "--cpu"])
    estimated_memory.main()
    ratios = [float(found) for found in re.findall(r"([\d.]+) of the measured", capsys.readouterr().out)]
    assert len(ratios) == 2 and all(0.85 < ratio < 1.15 for ratio in ratios)
