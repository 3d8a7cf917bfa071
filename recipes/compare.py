"""Compare ways of training on one data set: which wins, from how many labels on, and at what cost.

    python recipes/compare.py                                        # bundled text, about ten minutes on two cores
    python recipes/compare.py recipes/configs/compare-wordnet.yaml --dry-run
    python recipes/compare.py my-experiment.yaml --output_dir runs/my-comparison

The flow is in hftl/compare/study.py; what is compared is in the YAML file.
"""

import sys

from hftl.cli import compare, guarded


def main() -> None:
    """Do what `hftl compare` does."""
    compare(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(guarded(main))
