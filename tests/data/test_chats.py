"""Cells that hold chats: every layout says the same, and what a language model cannot be given is named."""

import json

import pytest

from hftl.data.chats import looks_like_chat, read_chat, read_tools
from hftl.errors import UserError

TURNS = [("user", "what is it"), ("assistant", "a cat")]


def show(cell):
    return [(message["role"], message["content"]) for message in read_chat(cell)]


def turn(role="assistant", content="a cat", **fields):
    return {"role": role, "content": content, **fields}


PLAIN = [turn("user", "what is it"), turn()]
SHAREGPT = [{"from": "human", "value": "what is it"}, {"from": "gpt", "value": "a cat"}]


@pytest.mark.parametrize(
    "cell",
    [
        PLAIN,
        SHAREGPT,
        [{"from": "user", "value": "what is it"}, {"from": "chatgpt", "value": "a cat"}],
        [{"role": "User", "content": "what is it"}, {"role": "ASSISTANT", "content": "a cat"}],
        [{"role": "prompter", "text": "what is it"}, {"role": "model", "text": "a cat"}],
        [
            turn("user", [{"type": "text", "text": "what "}, {"type": "text", "text": "is it"}]),
            turn(content=["a cat"]),
        ],
        [turn("user", "what is it", name=None, tool_calls=None), turn(tool_calls=[], function_call=None)],
        [turn("user", [{"type": "text", "text": "what is it", "image_url": None}]), turn()],
        {"role": ["user", "assistant"], "content": ["what is it", "a cat"]},
        {"messages": PLAIN},
        json.dumps(PLAIN),
        str(PLAIN),
        json.dumps({"conversations": SHAREGPT}, indent=1),
        [json.dumps(message) for message in PLAIN],
    ],
)
def test_every_layout_of_a_chat_says_the_same(cell):
    assert show(cell) == TURNS
    assert [message["is_learnt"] for message in read_chat(cell)] == [True, True]
    assert [message["extra"] for message in read_chat(cell)] == [None, None]


@pytest.mark.parametrize(
    ("spelled", "role"),
    [("observation", "tool"), ("function", "tool"), ("function_response", "tool"), ("developer", "developer")],
)
def test_roles_have_several_spellings(spelled, role):
    assert read_chat([{"from": spelled, "value": "x"}])[0]["role"] == role


CALL = {"type": "function", "function": {"name": "look", "arguments": {"word": "cat", "n": 3}}}


@pytest.mark.parametrize(
    "message",
    [
        turn(content=None, tool_calls=[CALL]),
        turn(content="", tool_calls=json.dumps([CALL])),
        {"role": "assistant", "tool_calls": [CALL["function"]]},
        turn(content=None, function_call={"name": "look", "arguments": '{"word": "cat", "n": 3}'}),
        {"from": "function_call", "value": '{"name": "look", "arguments": {"word": "cat", "n": 3}}'},
        turn(
            content=None, tool_calls=[{"function": {"name": "look", "arguments": {"word": "cat", "n": 3, "m": None}}}]
        ),
    ],
)
def test_every_layout_of_a_call_says_the_same(message):
    (read,) = read_chat([message])
    assert read["role"] == "assistant" and read["content"] == ""
    assert json.loads(read["extra"]) == {"tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("fields", "is_learnt"),
    [
        ({"weight": 0}, False),
        ({"weight": 1.0}, True),
        ({"weight": "0"}, False),
        ({"loss": False}, False),
        ({"train": True}, True),
        ({"training": "false"}, False),
        ({"weight": 0, "train": False}, False),
        ({"weight": None}, True),
    ],
)
def test_flags_say_whether_a_turn_is_learnt(fields, is_learnt):
    (message,) = read_chat([turn(**fields)])
    assert message["is_learnt"] is is_learnt and message["extra"] is None


def test_other_fields_of_a_message_are_kept():
    read = read_chat([turn("user", "x", name="Ann"), turn(reasoning_content="because"), turn("tool", "y", lang="en")])
    assert [json.loads(message["extra"]) for message in read] == [
        {"name": "Ann"},
        {"reasoning_content": "because"},
        {"lang": "en"},
    ]
    (message,) = read_chat(
        [turn(content=[{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "x"}])]
    )
    assert message["content"] == "x" and json.loads(message["extra"]) == {"reasoning_content": "because"}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([], r"the chat is '\[\]'; expected a list of messages"),
        (None, "the chat is 'None'"),
        ("hello", "the chat is 'hello'"),
        ('[{"role": "user", "content": "x"', "expected a list of messages"),
        ("[{'role': 'user', 'content': 'x'}\n {'role': 'assistant', 'content': 'y'}]", "expected a list of messages"),
        ([["hello", "world"]], "no object; expected role and content"),
        ([{"role": "robot", "content": "x"}], "the role 'robot'; expected a role of system"),
        ([{"content": "x"}], "the role 'None'"),
        ([turn(content=3)], "the content '3'; expected a text"),
        (
            [turn(content=[{"type": "image_url", "image_url": "x.png"}])],
            "a part of type 'image_url'.* reads text alone",
        ),
        ([turn(content=[{"type": "image"}, {"type": "text", "text": "x"}])], "a part of type 'image'"),
        ([turn(content=[{"type": "tool_use", "name": "x"}])], "a part of type 'tool_use'"),
        ([turn(images=["x.png"])], "'images', and a language model reads text alone"),
        ([turn(value="another")], "two contents; leave one"),
        ([turn(mask=1)], "the flag 'mask'.* write 'weight': 1"),
        ([turn(weight=0.5)], "weight '0.5'; expected 0 or 1"),
        ([turn(weight=0, train=True)], "contradict each other"),
        ([{"from": "function_call", "value": "look"}], "a call is 'look'; expected an object with name and arguments"),
        ([turn(tool_calls=[{"id": "x"}])], "a call is .* expected an object with name"),
    ],
)
def test_what_is_no_chat_is_told(cell, message):
    with pytest.raises(UserError, match=message):
        read_chat(cell)


@pytest.mark.parametrize(
    "cell",
    [[{"name": "look"}], '[{"name": "look"}]', {"name": "look"}, ['{"name": "look"}'], [{"name": "look", "x": None}]],
)
def test_every_layout_of_tools_says_the_same(cell):
    assert read_tools(cell) == [{"type": "function", "function": {"name": "look"}}]


@pytest.mark.parametrize("cell", [None, "", "[]", [], " ", "null", "None"])
def test_no_tools_are_none(cell):
    assert read_tools(cell) is None


@pytest.mark.parametrize("cell", ["look", "{", [3], "[1]"])
def test_tools_that_cannot_be_read_are_told(cell):
    with pytest.raises(UserError, match="the tools are .*; expected a JSON list of objects"):
        read_tools(cell)


def test_plain_texts_are_no_chats():
    for text in ("[1] Smith et al.", "{", "[]", '{"a": 1}', "role: user", '["role"]', "[{role}]", '{"text": "x"}', ""):
        assert not looks_like_chat(text), text
    for cell in (json.dumps(PLAIN), str(PLAIN), json.dumps({"messages": PLAIN}), '[{"from": "human", "value": "x"}]'):
        assert looks_like_chat(cell), cell
