"""What does a configuration file say, as words of a command line? It must not know which keys there are."""

import json
from pathlib import Path
from typing import Any

import yaml

from hftl.errors import UserError

MAX_YAML_BYTES = 1_000_000


class _StrictLoader(yaml.SafeLoader):
    """Safe loading where a value is the text as written, like a word of the command line, or null.

    YAML 1.1 would read the column `on` as true, the revision 0123456 as an octal number, and 2e-5 as a text.
    A key given twice is refused instead of keeping the last. So are references (`*name`): a dozen lines of them stand
    for a file of terabytes, and no configuration needs them.
    """

    yaml_implicit_resolvers = {
        first: [resolver for resolver in resolvers if resolver[0].endswith(":null")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise UserError(
                f"The reference *{event.anchor} in line {event.start_mark.line + 1} is not read; write out the value."
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"The key in line {key.start_mark.line + 1} is a {key.id}; expected a word.")
            if key.value in seen:
                raise UserError(
                    f"The key {key.value!r} is given twice, the second time in line {key.start_mark.line + 1}."
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A flat YAML mapping, safely loaded: key -> text, None, a list or, for `*_kwargs`, a dictionary of texts."""
    if not path.is_file():
        raise UserError(f"There is no configuration file {str(path)!r}.")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"{path} is larger than {MAX_YAML_BYTES:,} bytes: not a configuration.")
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=_StrictLoader) or {}  # noqa: S506 - a SafeLoader
    # ValueError: not UTF-8, or `!!int x`. AttributeError, KeyError, TypeError: other tags on what does not fit them.
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply for a configuration.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, found a {type(content).__name__}.")
    return content


def as_words(value: Any) -> list[str]:
    """A value of `read_yaml` as it would be typed on the command line."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return [json.dumps(_typed(value)) if isinstance(value, dict) else str(value)]


def as_flag(name: str, value: Any) -> list[str]:
    """A flag with such a value; `=` keeps one that begins with `-` from being read as another flag."""
    words = as_words(value)
    return [f"--{name}={words[0]}"] if len(words) == 1 else [f"--{name}", *words]


def _typed(value: Any) -> Any:
    """Texts inside a dictionary as what they are in JSON: no parser types them later."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return value
