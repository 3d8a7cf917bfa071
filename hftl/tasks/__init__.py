"""The tasks by name. A new one is a file beside this and one line here."""

from collections.abc import Mapping

from hftl.errors import unknown_name
from hftl.metrics import PROBLEM_SCORES
from hftl.metrics.base import Score
from hftl.tasks.base import Task
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


_SCORES: Mapping[str, Mapping[str, Score]] = PROBLEM_SCORES | {
    problem_type: scores
    for task in TASKS.values()
    for problem_type, scores in {task.name: task.scores, **task.scores_by_problem}.items()
    if scores
}


def scores_of(problem_type: str) -> Mapping[str, Score]:
    """Every score of a `LabelInfo.problem_type`, the leading one first."""
    return _SCORES[problem_type]


def leading_score(problem_type: str) -> str:
    """The score that a model is judged by where nobody says otherwise."""
    return next(iter(scores_of(problem_type)))
