"""The tasks by name. A new one is a file beside this and one line here."""

from hftl.errors import unknown_name
from hftl.tasks.base import Task
from hftl.tasks.causal_lm import CausalLM
from hftl.tasks.image_classification import ImageClassification
from hftl.tasks.text_classification import TextClassification

TASKS: dict[str, type[Task]] = {
    "text-classification": TextClassification,
    "image-classification": ImageClassification,
    "causal-lm": CausalLM,
}


def build_task(name: str) -> Task:
    """The task of that name."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]()
