"""The tasks by name. A new one is a file beside this and one line here."""

from hftl import metrics
from hftl.errors import unknown_name
from hftl.metrics.rows import ROW_SCORES
from hftl.tasks.base import Score, Task
from hftl.tasks.causal_lm import CausalLM
from hftl.tasks.image_classification import ImageClassification
from hftl.tasks.masked_lm import MaskedLM
from hftl.tasks.object_detection import ObjectDetection
from hftl.tasks.question_answering import QuestionAnswering
from hftl.tasks.semantic_segmentation import SemanticSegmentation
from hftl.tasks.seq2seq import Seq2Seq
from hftl.tasks.text_classification import TextClassification
from hftl.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "text-classification": TextClassification,
    "image-classification": ImageClassification,
    "causal-lm": CausalLM,
    "token-classification": TokenClassification,
    "semantic-segmentation": SemanticSegmentation,
    "object-detection": ObjectDetection,
    "seq2seq": Seq2Seq,
    "masked-lm": MaskedLM,
    "question-answering": QuestionAnswering,
}


def build_task(name: str) -> Task:
    """The task of that name."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]()


SCORES: dict[str, dict[str, Score]] = {
    problem_type: dict(scores)
    for task in TASKS.values()
    for problem_type, scores in {task.name: task.scores, **task.scores_by_problem}.items()
    if scores
}
"""Problem type -> its scores, of those that tasks know; the others are of `hftl.metrics`."""


def scores_of(problem_type: str) -> dict[str, Score]:
    """Every score of a `LabelInfo.problem_type`: of the task that has it, else as `hftl.metrics` knows it."""
    if problem_type in SCORES:
        return dict(SCORES[problem_type])
    names = metrics.PROBLEM_METRICS[problem_type]
    return {name: Score(metrics.greater_is_better(name), ROW_SCORES.get(name)) for name in names}


def leading_score(problem_type: str) -> str:
    """The score that a model is judged by where nobody says otherwise."""
    if problem_type in SCORES:
        return next(iter(SCORES[problem_type]))
    return metrics.BEST_METRIC[problem_type][0]


def greater_is_better(name: str) -> bool:
    """Whether a greater value of the score means a better model, whatever the task."""
    known = next((scores[name].greater_is_better for scores in SCORES.values() if name in scores), None)
    return metrics.greater_is_better(name) if known is None else known
