"""A page to try a model by hand: one input, the answer of one model, or of two beside each other. Needs Gradio."""

import os
import secrets
import tempfile
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from hftl.data.labels import MULTI, REGRESSION
from hftl.data.pixels import read_rgb
from hftl.errors import UserError
from hftl.inference.doorkeeper import PARAMETER, Doorkeeper
from hftl.inference.predictor import Predictor
from hftl.records import CANARY_FILE

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing is sent anywhere

HOST = "127.0.0.1"  # this machine alone; of its users the one who has the key, see `doorkeeper`
NUM_CLASSES = 5  # shown, the most probable first
EVERY_LABEL = 1e-9  # a threshold that all labels pass, so that their probabilities are seen
TITLE = "hftl demo"


class Demo:
    """A page that is served until `close`."""

    def __init__(self, predictors: Sequence[Predictor], *, port: int | None = None) -> None:
        """Args:
            predictors: one, or two that read the same kind of input.
            port: of this machine; None: the first free one from 7860 on.

        Raises:
            UserError: gradio is missing, the port is taken, the models read different things, or answer what this page
                cannot show.
        """
        _check_models(predictors)
        self._files = tempfile.TemporaryDirectory(prefix="hftl-demo-")  # which nobody else may open
        os.environ["GRADIO_TEMP_DIR"] = self._files.name  # images are kept there, those of the run among them
        key = secrets.token_urlsafe(24)
        self._page = build_page(predictors)
        try:
            _, url, _ = self._page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=["settings"],
                app_kwargs={"middleware": [(Doorkeeper, (), {"key": key})]},
                theme=_gradio().themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )  # fonts of the machine: those of gradio come from the network
        except OSError as error:
            self._files.cleanup()
            where = f"Port {port} is" if port else "The ports from 7860 to 7959 are"
            raise UserError(f"{where} taken or not allowed. Name a free one with --port.") from error
        self.url = f"{url}?{PARAMETER}={key}"

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        self._page.block_thread()

    def close(self) -> None:
        """Stop serving, and forget the images."""
        self._page.close(verbose=False)
        self._files.cleanup()


def build_page(predictors: Sequence[Predictor]) -> Any:
    """The `gradio.Blocks`: inputs, a button, an answer a model, and rows of the first run to begin with."""
    gr = _gradio()
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}")
        inputs = _build_inputs(predictors[0])
        button = gr.Button("Predict", variant="primary")
        with gr.Row():
            answers = [_build_answer(predictor) for predictor in predictors]

        def ask(*values: Any) -> Any:
            try:
                found = [answer_one(predictor, values) for predictor in predictors]
            except UserError as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from error
            return found if len(found) > 1 else found[0]  # gradio does not take a list of one

        private = {"api_visibility": "private", "concurrency_limit": 1}  # one network answers one question at a time
        button.click(ask, inputs, answers, **private)
        if predictors[0].task.modality != "image":
            inputs[-1].submit(ask, inputs, answers, **private)
        if examples := read_examples(predictors[0]):
            gr.Examples(examples, inputs, label="Rows of the run", cache_examples=False, api_visibility="private")
    return page


def answer_one(predictor: Predictor, values: Sequence[Any]) -> Any:
    """What a model says of one input, for its part of the page: probabilities by label, a number or a text.

    Args:
        predictor: the model.
        values: what the user gave: a text, a text and its pair, or an image.

    Raises:
        UserError: something is empty.
    """
    if any(value is None or (isinstance(value, str) and not value.split()) for value in values):
        raise UserError("Give an image." if predictor.task.modality == "image" else "Write a text.")
    row = values[0] if len(values) == 1 else tuple(values)
    (answer,) = predictor.predict([row], top_k=NUM_CLASSES, threshold=EVERY_LABEL)
    if "labels" in answer:
        return dict(zip(answer["labels"], answer["probabilities"], strict=True))
    if "label" not in answer:
        return answer["value" if "value" in answer else "completion"]
    ranks = ["", *(f"_{rank}" for rank in range(2, NUM_CLASSES + 1))]
    return {answer[f"label{rank}"]: answer[f"probability{rank}"] for rank in ranks if f"label{rank}" in answer}


def read_examples(predictor: Predictor) -> list[list[Any]]:
    """Inputs of the rows that a run keeps to be checked by; none for other models, and for those that write text."""
    record = predictor.source.record
    folder = record.folder if record else None
    if folder is None or predictor.task.modality == "language" or not (folder / CANARY_FILE).is_file():
        return []
    rows = pq.read_table(folder / CANARY_FILE).to_pydict()
    if predictor.task.modality == "image":
        return [[read_rgb({"bytes": data}, None)] for data in rows["image"]]
    names = [name for name in ("text", "text_pair") if name in rows]
    return [list(row) for row in zip(*(rows[name] for name in names), strict=True)]


def _build_inputs(predictor: Predictor) -> list[Any]:
    gr = _gradio()
    if predictor.task.modality == "image":
        return [gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", height=280)]
    names = {"language": ["Prompt"]}.get(predictor.task.modality, ["Text", "Pair"][: predictor.source.num_inputs or 1])
    return [gr.Textbox(label=name, lines=3, max_lines=12) for name in names]


def _build_answer(predictor: Predictor) -> Any:
    gr, title = _gradio(), describe(predictor)
    if predictor.task.modality == "language":
        return gr.Textbox(label=title, lines=4, interactive=False)
    problem_type = predictor.source.labels.problem_type
    if problem_type == REGRESSION:
        return gr.Number(label=title, interactive=False)
    return gr.Label(label=title, num_top_classes=NUM_CLASSES, show_heading=problem_type != MULTI)


def describe(predictor: Predictor) -> str:
    """A model in a line: its name, and of a run how it was trained."""
    source, name = predictor.source, predictor.source.name.rstrip("/").rpartition("/")[2]
    if source.record is None:
        return name
    return f"{name}: {source.record.adapter or source.record.mode} on {source.record.model['name']}"


def _check_models(predictors: Sequence[Predictor]) -> None:
    for predictor in predictors:
        if not predictor.task.fits_head and predictor.task.modality != "language":
            raise UserError(
                f"hftl demo shows labels, numbers and written texts, and {predictor.source.name} answers "
                f"{predictor.task.name}. Ask it with `hftl predict`."
            )
    kinds = {(predictor.task.modality, predictor.source.num_inputs or 1) for predictor in predictors}
    if len(kinds) > 1:
        names = " and ".join(predictor.source.name for predictor in predictors)
        raise UserError(f"{names} read different things, so they cannot answer the same input. Name one of them.")


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise UserError('hftl demo needs Gradio: pip install "hftl[demo-ui]"') from error
    return gradio
