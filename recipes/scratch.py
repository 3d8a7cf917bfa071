"""Train the checkpoint's network from random weights.

    accelerate launch recipes/scratch.py   # bundled data and checkpoint
    accelerate launch recipes/scratch.py recipes/configs/fashion-mnist.yaml
    accelerate launch recipes/scratch.py --train_file train.csv --model_name_or_path bundled:minilm-l6

Every flag: `python recipes/scratch.py --help`. The flow is in hftl/training/run.py.
"""

import sys

from hftl.cli import guarded, run_recipe


def main() -> None:
    """Train mode `scratch` on what the command line names."""
    run_recipe(mode="scratch")


if __name__ == "__main__":
    sys.exit(guarded(main))
