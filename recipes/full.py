"""Fine-tune every weight of a checkpoint.

    accelerate launch recipes/full.py   # bundled data and checkpoint
    accelerate launch recipes/full.py recipes/configs/fashion-mnist.yaml
    accelerate launch recipes/full.py --train_file train.csv --model_name_or_path bundled:minilm-l6

Every flag: `python recipes/full.py --help`. The flow is in hftl/training/run.py.
"""

import sys

from hftl.cli import guarded, run_recipe


def main() -> None:
    """Train mode `full` on what the command line names."""
    run_recipe(mode="full")


if __name__ == "__main__":
    sys.exit(guarded(main))
