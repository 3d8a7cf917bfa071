"""What a run reads its rows with: the processor, and how long a text may be in this network."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from hftl.errors import UserError
from hftl.models.adapters import adapter_of
from hftl.models.load import apply_overrides, read_config
from hftl.tasks.positions import build_empty, count_positions
from hftl.tasks.processors import explained_loading

MIN_ROOM = 8  # tokens of a text, below which there is nothing to read


def load_processor(args: Any, task: Any, data: Any, place: str | None = None, revision: str = "main") -> Any:
    """The checkpoint's tokenizer or image processor; a tokenizer cuts texts where the network's positions end.

    Args:
        args: the `ModelArguments`, which name the network.
        task: a `Task`.
        data: the `DataArguments`.
        place: folder or Hub id with the processor, where that is not the network's.
        revision: of `place`.

    Raises:
        UserError: it cannot be loaded, or `max_length` is more than the network reads.
    """
    source, revision = (args.model_name_or_path, args.model_revision) if place is None else (place, revision)
    processor = task.load_processor(source, revision, data)
    if isinstance(processor, PreTrainedTokenizerBase):
        _check_shortest(processor, data)
        _fit_length(processor, args, task, data.max_length)
    return processor


def count_room(args: Any, task: Any) -> int | None:
    """Tokens of a text that the network reads, as `config_overrides` change it; None where nothing limits them."""
    config = read_config(args, task)
    apply_overrides(config, args.config_overrides)
    with explained_loading(args.model_name_or_path):
        return count_positions(build_empty(task.auto_model, config))


def _check_shortest(tokenizer: Any, data: Any) -> None:
    """A text needs a token beside those that the tokenizer adds; where there is no room for them it cuts nothing."""
    is_pair = len(data.text_columns or ()) == 2
    added = tokenizer.num_special_tokens_to_add(pair=is_pair)
    if data.max_length and data.max_length < added + 1 + is_pair:
        raise UserError(
            f"--max_length is {data.max_length}, and {added} tokens of {'a pair' if is_pair else 'a text'} are marks "
            f"of the tokenizer, so nothing would be read. Give --max_length {added + 1 + is_pair} or more."
        )


def _fit_length(tokenizer: Any, args: Any, task: Any, max_length: int | None) -> None:
    name, positions, adapter = args.model_name_or_path, count_room(args, task), adapter_of(args)
    if positions is None:
        return
    virtual = args.num_virtual_tokens if adapter is not None and adapter.is_prompt else 0
    room = positions - virtual
    if room < MIN_ROOM and virtual:
        raise UserError(
            f"{name} has {positions} positions, of which {virtual} virtual tokens (--num_virtual_tokens) leave "
            f"{max(0, room)} for a text. Give fewer."
        )
    if max_length and max_length > positions:
        raise UserError(f"--max_length is {max_length}, but {name} reads at most {positions} tokens.")
    if max_length and max_length > room:
        raise UserError(
            f"--max_length is {max_length}, but of the {positions} positions of {name} {virtual} go to virtual "
            f"tokens. Give --max_length {room} or less."
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, room)
