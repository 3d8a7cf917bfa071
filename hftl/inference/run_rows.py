"""The rows that a run was trained and scored with, if they still are those.

Must not take the names of labels from the data: what a network's outputs mean is in the record of its run.
"""

from hftl.errors import UserError
from hftl.examples import Examples, load_examples
from hftl.inference.source import ModelSource

LOOKED_AT = ("train", "validation")  # what decides which numbers stand for which labels, and what is asked


def load_run_rows(source: ModelSource, advice: str) -> Examples:
    """Load the rows of a run again, in its splits and with its labels.

    Args:
        source: of a run folder, with its record.
        advice: what to do where they are others now.

    Raises:
        UserError: the data are gone, or are others than those of the run.
    """
    record, labels = source.record, source.labels
    examples = load_examples(source.data, source.task, record.seed)
    then, now = record.data.get("fingerprints") or {}, examples.fingerprints
    changed = [name for name in LOOKED_AT if name in then and then[name] != now.get(name)]
    if examples.labels.problem_type != labels.problem_type:
        what = f"labels were {labels.problem_type} and are {examples.labels.problem_type}"
    elif missing := sorted(set(labels.names) ^ set(examples.labels.names)):
        what = f"labels differ in {', '.join(map(repr, missing[:3]))}{' and others' if len(missing) > 3 else ''}"
    elif changed or examples.labels.names != labels.names:
        what = f"rows of {' and '.join(changed)} are others" if changed else "labels are in another order"
    else:
        return examples
    data = f"The data of {source.name} ({record.data.get('source')})"
    raise UserError(f"{data} are not those that it was trained with: {what}. {advice}")
