"""Chats, prompts and texts in every layout: each word is read in its place, and learnt if it should be, or a reason.

Every word is unlike all others, so that what a tokenizer and its template make of a row can be read back.
"""

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tests.faults.readings import VERBS, Reader, Refused, fuzz, own_caches

TEMPLATE = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    '<call>{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}</call>'
    "{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHARE_GPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}
WORD = re.compile(r"w\d+")


@dataclass
class Turn:
    """One message: what is said, thought and called, in words."""

    role: str
    words: list[str]
    reasoning: list[str] = field(default_factory=list)
    call: list[str] = field(default_factory=list)
    weight: int | None = None

    @property
    def is_learnt(self) -> bool:
        return self.role == "assistant" and self.weight != 0

    @property
    def all_words(self) -> list[str]:
        return [*self.reasoning, *self.words, *self.call]


@dataclass
class Row:
    turns: list[Turn]
    tools: list[str]

    @property
    def seen(self) -> list[str]:
        return [*self.tools, *(word for turn in self.turns for word in turn.all_words)]

    @property
    def learnt(self) -> list[str]:
        return [word for turn in self.turns if turn.is_learnt for word in turn.all_words]


@dataclass
class Chats:
    """Rows, the layout of their columns, the file, and the template that has to write them."""

    rows: list[Row]
    layout: str
    kind: str
    style: dict[str, Any]
    template: str
    excuses: list[str]

    def tabulate(self) -> list[dict[str, Any]]:
        return [LAYOUTS[self.layout](row, self.style) for row in self.rows]

    def write(self, folder: Path) -> Path:
        path = folder / f"rows.{self.kind}"
        table = self.tabulate()
        if self.kind == "csv":
            names = list(table[0])
            lines = [names, *([str(row[name]) for name in names] for row in table)]
            path.write_text("".join(",".join(map(quote, line)) + "\n" for line in lines), encoding="utf-8")
        elif self.kind == "parquet":
            pq.write_table(pa.Table.from_pylist(table), path)
        elif self.kind == "json":
            path.write_text(json.dumps(table), encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
        return path


def quote(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def as_message(turn: Turn, style: dict[str, Any]) -> dict[str, Any]:
    role, content = ("from", "value") if style["keys"] == "sharegpt" else ("role", "content")
    spoken = SHARE_GPT[turn.role] if style["keys"] == "sharegpt" else turn.role
    said: Any = " ".join(turn.words)
    if not turn.words and turn.call:
        said = style["empty"]
    elif style["parts"]:
        said = [{"type": "text", "text": said}]
    message = {role: spoken, content: said}
    if turn.reasoning:
        message["reasoning_content"] = " ".join(turn.reasoning)
    if turn.call:
        arguments: Any = {"query": turn.call[1]}
        arguments = json.dumps(arguments) if style["arguments"] == "text" else arguments
        call = {"name": turn.call[0], "arguments": arguments}
        message["tool_calls"] = [{"type": "function", "function": call} if style["nested"] else call]
    if turn.weight is not None:
        message["weight"] = turn.weight
    return message


def as_tools(row: Row, style: dict[str, Any]) -> Any:
    tools = [
        {"type": "function", "function": {"name": name, "description": about, "parameters": {"type": "object"}}}
        for name, about in zip(row.tools[::2], row.tools[1::2], strict=True)
    ]
    return json.dumps(tools) if style["tools"] == "text" else tools


def as_chat(row: Row, style: dict[str, Any]) -> dict[str, Any]:
    turns = row.turns
    beside = {}
    if style["system"] == "column":
        beside["system"] = " ".join(turns[0].words) if turns[0].role == "system" else ""
        turns = turns[1:] if turns[0].role == "system" else turns
    if style["has_tools"]:
        beside["tools"] = as_tools(row, style)
    messages: Any = [as_message(turn, style) for turn in turns]
    if style["as_text"]:
        messages = json.dumps({"messages": messages} if style["is_wrapped"] else messages)
    return {style["column"]: messages, **beside}


def split_pair(row: Row) -> tuple[list[str], str, str]:
    """System, prompt and completion."""
    system = [" ".join(turn.words) for turn in row.turns if turn.role == "system"]
    return system, " ".join(row.turns[-2].words), " ".join(row.turns[-1].words)


def as_pair(row: Row, style: dict[str, Any]) -> dict[str, Any]:
    system, prompt, completion = split_pair(row)
    beside = {"system": system[0] if system else ""} if style["system"] == "column" else {}
    return {**beside, style["pair"][0]: prompt, style["pair"][1]: completion}


def as_instruction(row: Row, style: dict[str, Any]) -> dict[str, Any]:
    _, prompt, completion = split_pair(row)
    first, *rest = prompt.split()
    about, answer = style["instruction"]
    return {"instruction": first, about: " ".join(rest), answer: completion}


def as_text(row: Row, style: dict[str, Any]) -> dict[str, Any]:
    return {style["text"]: " ".join(row.seen)}


LAYOUTS = {"chat": as_chat, "pair": as_pair, "instruction": as_instruction, "text": as_text}


@st.composite
def chats(draw):
    layout = draw(st.sampled_from(("chat", "chat", "chat", "chat", "pair", "instruction", "text")))
    style = {
        "keys": draw(st.sampled_from(("openai", "openai", "sharegpt"))),
        "column": draw(st.sampled_from(("messages", "conversations", "conversation", "chat"))),
        "empty": draw(st.sampled_from(("", None))),
        "parts": draw(st.integers(0, 5)) == 0,
        "arguments": draw(st.sampled_from(("text", "object"))),
        "nested": draw(st.integers(0, 3)) > 0,
        "tools": draw(st.sampled_from(("text", "list"))),
        "system": draw(st.sampled_from(("turn", "turn", "column"))),
        "as_text": draw(st.integers(0, 3)) == 0,
        "is_wrapped": draw(st.booleans()),
        "pair": draw(st.sampled_from((("prompt", "completion"), ("question", "answer"), ("instruction", "response")))),
        "instruction": draw(st.sampled_from((("input", "output"), ("context", "response")))),
        "text": draw(st.sampled_from(("text", "content", "body"))),
        "has_tools": False,
    }
    kind = draw(st.sampled_from(("jsonl", "jsonl", "json", "parquet", "csv")))
    may_call = layout == "chat" and draw(st.integers(0, 2)) == 0
    may_weigh = layout == "chat" and draw(st.integers(0, 2)) == 0
    may_think = layout == "chat" and draw(st.integers(0, 3)) == 0
    has_system = layout != "instruction" and draw(st.booleans())
    has_tools = may_call or layout == "chat" and draw(st.integers(0, 4)) == 0
    style["has_tools"] = has_tools
    count = iter(range(10, 10_000))
    rows = []
    for place in range(draw(st.integers(3, 6))):
        rows.append(draw_row(draw, count, layout, place, (has_system, may_call, may_weigh, may_think, has_tools)))
    if style["parts"]:
        style["empty"] = None
    if layout == "chat" and kind == "csv":
        style |= {"as_text": True, "tools": "text"}
    if style["system"] == "turn" and layout == "pair":
        for row in rows:
            row.turns = row.turns[-2:]
    template = draw(st.sampled_from(("full", "full", "plain")))
    table = Chats(rows, layout, kind, style, template, [])
    excuse(table)
    return table


def draw_row(draw, count, layout, place, options):
    has_system, may_call, may_weigh, may_think, has_tools = options

    def words(least: int = 1) -> list[str]:
        return [f"w{next(count)}" for _ in range(draw(st.integers(least, 3)))]

    turns = [Turn("system", words())] if has_system and draw(st.integers(0, 3)) else []
    for _ in range(draw(st.integers(1, 2)) if layout == "chat" else 1):
        turns.append(Turn("user", words(2)))
        if may_call and (place == 0 or draw(st.booleans())):
            turns.append(Turn("assistant", words() if draw(st.booleans()) else [], call=[*words()[:1], *words()[:1]]))
            turns.append(Turn("tool", words()))
        thoughts = words() if may_think and (place == 0 or draw(st.booleans())) else []
        weight = draw(st.sampled_from((0, 1, None))) if may_weigh else None
        turns.append(Turn("assistant", words(), reasoning=thoughts, weight=weight))
    tools = [f"w{next(count)}" for _ in range(2)] if has_tools else []
    return Row(turns, tools)


def excuse(table: Chats) -> None:
    rows = table.rows
    has_more = any(row.tools or turn.call or turn.reasoning for row in rows for turn in row.turns)
    if table.template == "plain" and has_more and table.layout == "chat":
        table.excuses.append("the template leaves something out")
    if any(not row.learnt for row in rows):
        table.excuses.append("nothing of a row is to be learnt")


def check(table: Chats, verbs: tuple[str, ...] = VERBS, trains_in: Path | None = None) -> str:
    """The property: every word that was said is read and the right ones are learnt, or one sentence says why not."""
    with tempfile.TemporaryDirectory() as place, own_caches(Path(place) / "caches"):
        path = table.write(Path(place))
        reader = Reader(
            ["--train_file", path],
            task="causal-lm",
            read=lambda columns: next(values for name, values in columns.items() if name != "row_id"),
            decode=lambda kept, *_: {"completion": [""] * len(kept)},
            checkpoint=CHECKPOINT[-1] / table.template,
        )
        try:
            found = reader.train()
            assert len(found["train"]) == len(table.rows)
            report = reader.audit() if "audit" in verbs else None
            prepared = reader.prepare()["train"]
        except Refused as refusal:
            assert table.excuses, refusal
            return f"refused: {refusal}"
        assert report is None or sum(report["num_rows"].values()) == len(table.rows)
        assert_words([prepared[row_id] for row_id in sorted(prepared)], table, reader.processor)
        if "evaluate" in verbs:
            assert_words(reader.evaluate_prepared(path), table, reader.processor)
        if "predict" in verbs:
            assert_asked(reader.predict(path), table, reader.processor)
        if trains_in is not None:
            reader.train_for_real(
                CHECKPOINT[-1] / table.template, trains_in, len(table.rows), (path, path, len(table.rows))
            )
    return "read"


def assert_asked(inputs: list[dict[str, Any]], table: Chats, tokenizer: Any) -> None:
    """Prediction reads a row up to its answer, with all that stands beside it."""
    assert len(inputs) == len(table.rows)
    for row, found in zip(table.rows, inputs, strict=True):
        words = WORD.findall(tokenizer.decode(found["input_ids"]))
        assert words == row.seen[: len(words)] and words[: len(row.tools)] == row.tools, (words, row.seen)
        assert set(row.turns[-2].words) <= set(words) or table.layout == "text", (words, row.seen)


def assert_words(rows: list[dict[str, Any]], table: Chats, tokenizer: Any) -> None:
    assert len(rows) == len(table.rows)
    for found, meant in zip(rows, table.rows, strict=True):
        seen = WORD.findall(tokenizer.decode(found["input_ids"]))
        assert seen == meant.seen, (seen, meant.seen)
        learnt = WORD.findall(tokenizer.decode([token if token >= 0 else 0 for token in found["labels"]]))
        wanted = meant.learnt if table.layout != "text" else meant.seen
        missed = wanted[:1] if table.layout == "text" else []  # of a text the first token is given
        assert learnt in (wanted, wanted[len(missed) :]), (learnt, wanted)


def write_checkpoint(folder: Path) -> Path:
    """Tokenizers that read 600 tokens, with a template that writes everything and with a plain one."""
    for name, template in (("full", TEMPLATE), ("plain", tiny.CHAT_TEMPLATE)):
        tiny.write_tiny_llama(folder / name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
        tokenizer.chat_template, tokenizer.model_max_length = template, 600
        tokenizer.save_pretrained(folder / name)
        config = transformers.AutoConfig.from_pretrained(folder / name)
        config.max_position_embeddings = 600
        config.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module", autouse=True)
def checkpoint(tmp_path_factory):
    """The tokenizers that all examples share."""
    CHECKPOINT.append(write_checkpoint(tmp_path_factory.mktemp("llama")))


CHECKPOINT: list[Path] = []


@fuzz(60)
@given(chats(), st.sampled_from(VERBS))
def test_chats_are_read_as_they_were_meant_or_refused(table, verb):
    check(table, (verb,))


@fuzz(4)
@given(chats().filter(lambda table: not table.excuses))
def test_chats_are_trained_on_and_answered(tmp_path_factory, table):
    check(table, (), tmp_path_factory.mktemp("run"))


@pytest.mark.exhaustive
@fuzz(2000, always_the_same=False)
@given(chats())
def test_many_chats_are_read_as_they_were_meant_or_refused(table):
    check(table)
