"""Train a LoRA adapter and the head over a frozen checkpoint.

    accelerate launch recipes/lora.py   # bundled data and checkpoint
    accelerate launch recipes/lora.py recipes/configs/fashion-mnist.yaml
    accelerate launch recipes/lora.py --train_file train.csv --model_name_or_path bundled:minilm-l6

Every flag: `python recipes/lora.py --help`. The flow is in hftl/training/run.py.
"""

import sys

from hftl.cli import guarded, run_recipe


def main() -> None:
    """Train mode `peft` on what the command line names."""
    run_recipe(mode="peft")


if __name__ == "__main__":
    sys.exit(guarded(main))
