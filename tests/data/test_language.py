"""What a language model learns of a row: every text of it is in the tokens, or is named."""

import json

import datasets
import pytest
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hftl.config import DataArguments
from hftl.data.chats import is_empty
from hftl.data.language import standardize_language
from hftl.data.tokens import choose_encoder, mark_text
from hftl.errors import UserError
from tests import tiny
from tests.tasks import chat_templates


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tiny.write_tiny_llama(tmp_path_factory.mktemp("llama"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 100_000
    return tokenizer


@pytest.fixture
def template(tokenizer, monkeypatch):
    """Change the tokenizer's template for one test."""

    def change(text):
        monkeypatch.setattr(tokenizer, "chat_template", text)
        return tokenizer

    return change


def read(rows, *names):
    """One split of such rows, as a run reads it."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    features = {}
    for name, values in columns.items():
        is_mixed = any(isinstance(value, (list, dict)) for value in values)
        features[name] = datasets.Json() if is_mixed and name != "image" else datasets.Value("string")
    raw = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    args = DataArguments(task="causal-lm", train_file="x.jsonl", text_columns=list(names) or None)
    return standardize_language(datasets.DatasetDict(train=raw), args)["train"]


def learn(row, tokenizer, *names):
    """A row with what is learnt of it in double brackets."""
    (found,) = read([row], *names)
    if fault := found.get("fault"):
        raise UserError(fault)
    (tokens,) = choose_encoder(read([row], *names), tokenizer)(found, tokenizer, True)
    return mark_text({"input_ids": tokens.ids, "labels": tokens.labels}, tokenizer)


USER, CAT = {"role": "user", "content": "what is it"}, {"role": "assistant", "content": "a cat"}
ASKED = "<|user|>what is it<|end|>\n<|assistant|>"
LEARNT = "[[a cat<|end|>]]\n"
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "look", "arguments": {"at": "it"}}}],
}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "looks at things"}}]


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"instruction": "name it", "input": "a paw", "output": " cat"}, "name it\n\na paw[[ cat<|end|>]]"),
        ({"instruction": "name it", "input": "", "output": " cat"}, "name it[[ cat<|end|>]]"),
        ({"Instruction": "name it", "Input": "a paw", "Output": " cat"}, "name it\n\na paw[[ cat<|end|>]]"),
        (
            {"instruction": "name it", "context": "a paw", "response": " cat", "category": "qa"},
            "name it\n\na paw[[ cat<|end|>]]",
        ),
        ({"question": "name it", "context": "a paw", "answer": " cat"}, "name it\n\na paw[[ cat<|end|>]]"),
        ({"system": "be kind", "prompt": "name it", "response": " cat"}, "be kind\n\nname it[[ cat<|end|>]]"),
        ({"system_prompt": "be kind", "question": "name it", "response": " cat"}, "be kind\n\nname it[[ cat<|end|>]]"),
        ({"query": "name it", "response": " cat"}, "name it[[ cat<|end|>]]"),
        ({"input": "name it", "output": " cat"}, "name it[[ cat<|end|>]]"),
        ({"instruction": "name it", "output": " cat", "history": [], "tools": "[]"}, "name it[[ cat<|end|>]]"),
    ],
)
def test_every_column_of_a_prompt_is_read(row, shown, tokenizer):
    assert learn(row, tokenizer) == shown


def test_what_was_chosen_can_be_learnt(tokenizer):
    for prompt in ("what is it", [USER]):
        row = {"prompt": prompt, "chosen": [USER, CAT], "rejected": [USER]}
        assert learn(row, tokenizer, "prompt", "chosen") == ASKED + LEARNT
    assert learn({"chosen": [USER, CAT], "rejected": [USER]}, tokenizer, "chosen") == ASKED + LEARNT


def test_columns_of_a_prompt_can_be_named(tokenizer):
    row = {"b": "a paw", "a": "name it", "c": " cat", "d": "more"}
    assert learn(row, tokenizer, "a", "b", "c") == "name it\n\na paw[[ cat<|end|>]]"
    assert read([row], "a", "b", "c")["unread"][:] == [["d"]]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, CAT]},
        {"conversations": [{"from": "human", "value": "what is it"}, {"from": "gpt", "value": "a cat"}]},
        {"messages": json.dumps([USER, CAT])},
        {"messages": str([USER, CAT])},
        {"conversation": json.dumps([USER, CAT]), "id": "7", "source": "x"},
        {"data": json.dumps({"messages": [USER, CAT]})},
        {"text": json.dumps([USER, CAT], indent=1)},
        {"prompt": [USER], "completion": [CAT]},
        {"prompt": json.dumps([USER]), "completion": json.dumps([CAT])},
        {"prompt": json.dumps([USER]), "completion": "a cat"},
        {"prompt": [USER], "completion": "a cat"},
        {"prompt": "what is it", "completion": [CAT]},
        {"prompt": "what is it", "completion": [USER, CAT]},
        {"messages": [USER, CAT], "system": "", "tools": "[]", "images": []},
    ],
)
def test_chats_of_every_layout_are_learnt_alike(row, tokenizer):
    assert learn(row, tokenizer) == ASKED + LEARNT


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, CAT], "system": "be kind"},
        {"conversations": json.dumps([USER, CAT]), "system_prompt": "be kind"},
        {"messages": [{"role": "system", "content": "be kind"}, USER, CAT], "system": "be kind"},
        {"prompt": [USER], "completion": [CAT], "system": "be kind"},
    ],
)
def test_a_system_column_stands_in_front_of_the_chat(row, tokenizer):
    assert learn(row, tokenizer) == f"<|system|>be kind<|end|>\n{ASKED}{LEARNT}"


@pytest.mark.parametrize("flag", [{"weight": 0}, {"loss": False}, {"train": "false"}])
def test_turns_that_are_not_to_be_learnt_are_read(flag, tokenizer):
    messages = [USER, {"role": "assistant", "content": "a dog"} | flag, {"role": "user", "content": "no"}, CAT]
    shown = f"{ASKED}a dog<|end|>\n<|user|>no<|end|>\n<|assistant|>{LEARNT}"
    assert learn({"messages": messages}, tokenizer) == shown
    (row,) = read([{"messages": messages}])
    (tokens,) = choose_encoder(read([{"messages": messages}]), tokenizer)(row, tokenizer, False)
    text = mark_text({"input_ids": tokens.ids, "labels": tokens.labels}, tokenizer)
    assert "<|assistant|>]]a dog<|end|>[[" in text and "[[" in text.split("a dog")[0]


def test_the_turns_of_a_prompt_are_not_learnt(tokenizer):
    row = {"prompt": [USER, {"role": "assistant", "content": "a dog"}, {"role": "user", "content": "no"}]}
    shown = f"{ASKED}a dog<|end|>\n<|user|>no<|end|>\n<|assistant|>{LEARNT}"
    assert learn(row | {"completion": [CAT]}, tokenizer) == shown


@pytest.mark.parametrize(
    ("text", "call"),
    [
        (chat_templates.MARKED, '<call>{"name": "look", "arguments": {"at": "it"}}</call>'),
        (chat_templates.ARGUMENTS_AS_TEXT, '<call>{"name": "look", "arguments": {"at": "it"}}</call>'),
        (chat_templates.ADDED, '<call>{"name": "look", look{"at": "it"}}</call>'),
    ],
)
def test_calls_are_learnt_in_the_form_that_the_template_writes(text, call, template):
    messages = [USER, CALL, {"role": "tool", "content": "fur", "tool_call_id": "c1"}, CAT]
    shown = learn({"messages": messages, "tools": TOOLS}, template(text))
    assert f"<|assistant|>[[{call}<|end|>]]\n<|tool|>fur<|end|>\n<|assistant|>{LEARNT}" in shown
    assert shown.startswith("<|system|>{") and '"looks at things"' in shown.partition(ASKED)[0]


@pytest.mark.parametrize("text", [chat_templates.MARKED, chat_templates.THINKING])
@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_learnt_under_the_name_that_the_template_reads(text, name, template):
    row = {"messages": [USER, CAT | {name: "it has fur"}]}
    assert learn(row, template(text)) == f"{ASKED}[[<think>it has fur</think>a cat<|end|>]]\n"


def test_a_developer_is_the_system_where_the_template_knows_no_other(template):
    text = chat_templates.NO_SYSTEM.replace("('user',", "('system', 'user',")
    row = {"messages": [{"role": "developer", "content": "be kind"}, USER, CAT]}
    assert learn(row, template(text)) == f"<|system|>be kind<|end|>\n{ASKED}{LEARNT}"


@pytest.mark.parametrize(
    ("text", "row", "message"),
    [
        (tiny.CHAT_TEMPLATE, {"messages": [USER, CALL]}, "leaves out tool_calls"),
        (tiny.CHAT_TEMPLATE, {"messages": [USER, CAT | CALL | {"content": "look at it"}]}, "leaves out tool_calls"),
        (tiny.CHAT_TEMPLATE, {"messages": [USER, CAT], "tools": TOOLS}, "leaves out tools"),
        (tiny.CHAT_TEMPLATE, {"messages": [USER, CAT], "tools": json.dumps(TOOLS)}, "leaves out tools"),
        (tiny.CHAT_TEMPLATE, {"messages": [USER, CAT | {"thinking": "x"}]}, "leaves out thinking"),
        (
            chat_templates.MARKED,
            {"messages": [USER, CAT | {"thinking": "x", "reasoning": "y"}]},
            "leaves out reasoning",
        ),
        (chat_templates.NO_SYSTEM, {"messages": [USER, CAT], "system": "be kind"}, "leaves out content"),
        (chat_templates.NO_SYSTEM, {"messages": [USER, CAT], "system": "it"}, "leaves out content"),
        (
            chat_templates.LAST_WORDS,
            {"messages": [USER, CAT | {"content": "<think>fur</think>a cat"}]},
            "leaves out content",
        ),
        (chat_templates.STRICT, {"messages": [USER, USER, CAT]}, "the chat template refuses it: Roles must alternate"),
        (tiny.CHAT_TEMPLATE, {"messages": [CAT, USER, CAT]}, "begins with the assistant.* 'weight': 0"),
        (tiny.CHAT_TEMPLATE, {"messages": [USER, CAT], "images": ["x.png"]}, "pictures or sounds belong to the row"),
        (tiny.CHAT_TEMPLATE, {"messages": [USER, CAT], "history": [["a", "b"]]}, "earlier turns in history"),
        (
            tiny.CHAT_TEMPLATE,
            {"prompt": "x", "completion": "y", "tools": TOOLS},
            "a value in tools, which a plain text",
        ),
        (tiny.CHAT_TEMPLATE, {"instruction": "x", "output": "y", "history": [["a", "b"]]}, "a value in history"),
        (tiny.CHAT_TEMPLATE, {"conversation": "plain words", "system": "x"}, "a value in system, which a plain text"),
        (
            tiny.CHAT_TEMPLATE,
            {"messages": [{"role": "system", "content": "be rude"}, USER, CAT], "system": "be kind"},
            "its column another one",
        ),
        (tiny.CHAT_TEMPLATE, {"messages": '[{"role": "user", "content": "x'}, "expected a list of messages"),
    ],
)
def test_what_would_be_lost_is_named(text, row, message, template):
    with pytest.raises(UserError, match=message):
        learn(row, template(text))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "tuning by preference .DPO., which hftl does not do"),
        ({"chosen": [USER, CAT], "rejected": [USER, CAT]}, "tuning by preference"),
        ({"messages": [USER, CAT], "conversations": [USER, CAT]}, "several columns could be learnt"),
        ({"prompt": "x", "question": "y", "answer": "z"}, "several columns could be learnt"),
    ],
)
def test_tables_that_could_be_learnt_in_two_ways_are_refused(row, message):
    with pytest.raises(UserError, match=message):
        read([row])


def test_plain_texts_stay_texts(tokenizer):
    rows = [{"text": text} for text in ("a cat", '[{"a": 1}]', "[1] x", '{"role": "x"}', "{% if %}", "['role']")]
    assert read(rows)["text"][:] == [row["text"] for row in rows]
    assert set(read(rows).column_names) == {"row_id", "text"}


def test_one_chat_among_texts_and_one_text_among_chats_are_bad_rows():
    chat, text = {"text": json.dumps([USER, CAT])}, {"text": "a cat"}
    assert [bool(fault) for fault in read([text, text, chat])["fault"][:]] == [False, False, True]
    assert [bool(fault) for fault in read([chat, text, chat])["fault"][:]] == [False, True, False]


def test_fields_that_no_template_reads_are_listed(tokenizer):
    row = {"messages": [USER | {"name": "Ann", "time": "noon"}, CAT], "source": "web", "url": ""}
    (found,) = read([row])
    (tokens,) = choose_encoder(read([row]), tokenizer)(found, tokenizer, True)
    assert found["unread"] == ["source"] and tokens.unread == ("messages.name", "messages.time")


# --- the property


WORDS = st.text("abc é\"'{}\n\\<", min_size=1, max_size=12)
VALUES = st.one_of(WORDS, st.integers(0, 99).map(str))
ARGUMENTS = st.dictionaries(st.sampled_from(["at", "of"]), VALUES, max_size=2)
CALLS = st.builds(lambda name, arguments: {"function": {"name": name, "arguments": arguments}}, WORDS, ARGUMENTS)
MESSAGES = st.builds(
    lambda role, content, extra: {"role": role, "content": content} | extra,
    st.sampled_from(["system", "user", "assistant", "tool", "developer"]),
    WORDS,
    st.fixed_dictionaries(
        {},
        optional={
            "name": WORDS,
            "thinking": WORDS,
            "tool_calls": st.lists(CALLS, max_size=2),
            "weight": st.sampled_from([0, 1]),
        },
    ),
)
SIDES = st.fixed_dictionaries(
    {},
    optional={"system": WORDS, "tools": st.just(json.dumps(TOOLS)), "history": st.just([["a", "b"]]), "note": WORDS},
)
CHATS = st.builds(
    lambda turns, as_text, sides: (
        {"messages": json.dumps([USER, *turns, CAT]) if as_text else [USER, *turns, CAT]} | sides
    ),
    st.lists(MESSAGES, max_size=3),
    st.booleans(),
    SIDES,
)
PAIRS = st.builds(
    lambda prompt, completion, sides: {prompt: "what is it", completion: " a cat"} | sides,
    st.sampled_from(["prompt", "instruction", "question"]),
    st.sampled_from(["completion", "response", "output"]),
    st.builds(lambda sides, more: sides | more, SIDES, st.fixed_dictionaries({}, optional={"context": WORDS})),
)
TEMPLATES = [getattr(chat_templates, name) for name in dir(chat_templates) if name.isupper()] + [tiny.CHAT_TEMPLATE]


def list_texts(value, name):
    """(where, text) of every text in a row but for roles and flags."""
    if isinstance(value, dict):
        return [pair for key, part in value.items() if key not in ("role", "weight") for pair in list_texts(part, key)]
    if isinstance(value, list):
        return [pair for part in value for pair in list_texts(part, name)]
    return [(name, value)] if isinstance(value, str) and not is_empty(value) else []


@pytest.mark.parametrize("rows", [CHATS, PAIRS])
def test_every_text_of_a_row_is_read_or_named(rows, tokenizer, monkeypatch):
    seen = {"read": 0, "refused": 0}

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(row=rows, text=st.sampled_from(TEMPLATES))
    @example(row={"messages": [USER, CALL, CAT]}, text=tiny.CHAT_TEMPLATE)
    @example(row={"instruction": "what is it", "context": "fur", "output": " a cat"}, text=tiny.CHAT_TEMPLATE)
    def check(row, text):
        monkeypatch.setattr(tokenizer, "chat_template", text)
        try:
            (found,) = table = read([row])
            if found.get("fault"):
                raise UserError(found["fault"])
            (tokens,) = choose_encoder(table, tokenizer)(found, tokenizer, True)
        except UserError as error:
            seen["refused"] += 1
            assert len(str(error)) > 20
            return
        seen["read"] += 1
        shown = tokenizer.decode(tokens.ids)
        named = {name.rpartition(".")[2] for name in [*(found.get("unread") or ()), *tokens.unread]}
        content = {
            name: json.loads(value) if name in ("messages", "tools") and isinstance(value, str) else value
            for name, value in row.items()
        }
        for name, value in list_texts(content, ""):
            forms = (value.strip(), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
            is_structure = name in ("type",)
            assert any(form in shown for form in forms) or name in named or is_structure, (name, value, shown)

    check()
    assert min(seen.values()) > 5, seen


def one_row(row):
    return datasets.DatasetDict(train=datasets.Dataset.from_list([row]))


@pytest.mark.parametrize(
    "row", [{"question": "2 + 2?", "answer": 4}, {"prompt": "2 + 2?", "output": 4}, {"input": "2 + 2?", "response": 4}]
)
def test_answers_that_are_integers_are_learnt(row):
    rows = standardize_language(datasets.DatasetDict(train=datasets.Dataset.from_list([row])), DataArguments())[
        "train"
    ]
    assert (rows[0]["prompt"], rows[0]["completion"]) == ("2 + 2?", "4")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 0, "query": "q", "answers": "[1]", "tools": "[]"}, "'query' looks like a prompt, and among 'answers'"),
        ({"question": "q", "answer": 1.5}, "'question' looks like a prompt, and among 'answer' none is known"),
        ({"prompt": "p", "is_good": True}, "'prompt' looks like a prompt, and among 'is_good' none is known"),
        ({"id": "a", "data": ["x", "y"]}, "no column looks like a text or a chat"),
    ],
)
def test_a_prompt_or_an_id_is_not_learnt_alone(row, message):
    with pytest.raises(UserError, match=message):
        standardize_language(one_row(row), DataArguments())


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": "array([{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}], dtype=object)"},
        {"conversations": "({'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'})"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "refusal": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss_weight": 1}]},
    ],
)
def test_chats_as_other_programs_write_them_are_read(row):
    rows = standardize_language(datasets.DatasetDict(train=datasets.Dataset.from_list([row])), DataArguments())[
        "train"
    ]
    found = [(message["role"], message["content"], message["extra"]) for message in rows[0]["messages"]]
    assert found == [("user", "a", None), ("assistant", "b", None)]


@pytest.mark.parametrize("name", ["systemPrompt", "system_instruction", "System_Message"])
def test_a_system_column_is_known_in_every_spelling(name):
    row = {name: "s", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = standardize_language(datasets.DatasetDict(train=datasets.Dataset.from_list([row])), DataArguments())[
        "train"
    ]
    assert rows[0]["messages"][0]["content"] == "s"
