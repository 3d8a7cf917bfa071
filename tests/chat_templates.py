"""Chat templates that differ in what they read, as those of checkpoints do."""

MARKED = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content | trim }}</think>{% endif %}{{ m.content | trim }}"
    "{% for call in m.tool_calls or [] %}"
    '<call>{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}</call>'
    "{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Calls, tools and reasoning; arguments are an object."""

ARGUMENTS_AS_TEXT = MARKED.replace("call.function.arguments | tojson", "call.function.arguments")
"""Puts the arguments of a call into the text as they are, so that an object would be shown as Python shows it."""

ADDED = MARKED.replace(
    '"arguments": {{ call.function.arguments | tojson }}', "{{ call.function.name + call.function.arguments }}"
)
"""Adds the arguments to a text, at which an object fails."""

THINKING = MARKED.replace("reasoning_content", "thinking")
"""Another name for reasoning."""

LAST_WORDS = MARKED.replace("m.content | trim", "m.content.split('</think>')[-1] | trim")
"""Leaves out what a message thinks inside of its content."""

STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant.') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Refuses what does not alternate, as those of Llama 2, Gemma and Mistral do."""

NO_SYSTEM = (
    "{% for m in messages if m.role in ('user', 'assistant') %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Says nothing and leaves out other roles."""
