"""Train a LoRA adapter and the head over a checkpoint whose weights are held in 4 bits (nf4).

    accelerate launch recipes/qlora.py   # bundled data and checkpoint; runs on a CPU, too
    accelerate launch recipes/qlora.py --quantization int8
    accelerate launch recipes/qlora.py --model_name_or_path org/large --gradient_checkpointing --optim paged_adamw_8bit

It needs bitsandbytes: pip install "hftl[quant]". Every flag: `python recipes/qlora.py --help`.
"""

import sys

from hftl.cli import guarded, run_recipe


def main() -> None:
    """Train mode `peft` with `--quantization nf4` on what the command line names."""
    run_recipe(mode="peft", settings={"quantization": "nf4"})


if __name__ == "__main__":
    sys.exit(guarded(main))
