"""Fit a linear head on the frozen checkpoint's features: the cheap baseline.

    accelerate launch recipes/probe.py   # bundled data and checkpoint
    accelerate launch recipes/probe.py recipes/configs/fashion-mnist.yaml
    accelerate launch recipes/probe.py --train_file train.csv --model_name_or_path bundled:minilm-l6

Every flag: `python recipes/probe.py --help`. The flow is in hftl/training/run.py.
"""

import sys

from hftl.cli import guarded, run_recipe


def main() -> None:
    """Train mode `probe` on what the command line names."""
    run_recipe(mode="probe")


if __name__ == "__main__":
    sys.exit(guarded(main))
