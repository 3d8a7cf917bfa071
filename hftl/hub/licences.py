"""Under which licence are the base model and the data of a run? None where nobody says so.

A tuned model carries the licence of what it was tuned from; a name that nobody can vouch for is not made up.
"""

from pathlib import Path

from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx

from hftl.assets import is_bundled
from hftl.hub.stage import is_local as names_place

# As hftl/assets.py and hftl/bundled/README.md have them, under the Hub's names.
BUNDLED_MODELS = {"minilm-l6": "apache-2.0", "efficientnet-lite0": "apache-2.0", "smollm2": "apache-2.0"}
BUNDLED_DATA = {
    "wordnet": "wordnet",
    "wordnet-definitions": "wordnet",
    "wordnet-words": "wordnet",
    "wordnet-lemmas": "wordnet",
    "fashion-mnist": "mit",
}


def find_licence(
    name: str, repo_type: str, *, revision: str | None = None, is_offline: bool, is_local: bool = False
) -> str | None:
    """The licence that a checkpoint or a data set has.

    Args:
        name: Hub id, folder, file or bundled:NAME.
        repo_type: model or dataset.
        revision: of a Hub id; a licence may change after the run.
        is_offline: look into the cache only.
        is_local: it was a place on this machine, whatever is there now; the Hub must not be asked for its name.
    """
    if is_bundled(name):
        known = BUNDLED_MODELS if repo_type == "model" else BUNDLED_DATA
        return known.get(name.partition(":")[2])
    if is_local or names_place(name):
        card = Path(name) / "README.md"
    else:
        try:
            where = {"repo_type": repo_type, "revision": revision or None, "local_files_only": is_offline}
            card = Path(hf_hub_download(name, "README.md", **where))
        except (HfHubHTTPError, LocalEntryNotFoundError, httpx.TransportError, ValueError, OSError):
            return None
    if not card.is_file():
        return None
    try:
        licence = (metadata_load(card) or {}).get("license")
    except ValueError:  # a card whose metadata cannot be read
        return None
    return licence if isinstance(licence, str) else None
