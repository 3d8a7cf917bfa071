"""How does a name become text of a Markdown page that stands for itself: no markup, no HTML, no link, no new line?"""

import re

SPECIAL = re.compile(r"([\\`*_\[\]|~#@!$])")


def escape_line(text: str) -> str:
    """One line that a renderer shows as it is."""
    line = " ".join(text.split())
    line = SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    # Addresses become links on their own; a zero-width space keeps them text.
    return re.sub(r"(?i)(https?:|ftp:|www\.)", "\\1\u200b", line)
