"""What exactly would a push send? The files of the run, or merged, or with their base.

Must not talk to the Hub.
"""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from hftl.assets import is_bundled, resolve_model
from hftl.errors import UserError
from hftl.hub.files import ADAPTER_CONFIG, CARD, list_files
from hftl.hub.seal import seal
from hftl.inference.merge import merge_run
from hftl.models.modes import MODES
from hftl.models.weights import check_weights
from hftl.run_record import CANARY_FILE, RECORD_FILE, RunRecord
from hftl.runtime.files import compute_sha256

QUANTIZATION = (
    *("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"),
    "llm_int8_skip_modules",
)
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
AGAIN = "Train it again with `hftl train {folder}/config.yaml`."


@dataclass(frozen=True)
class Base:
    """The model under an adapter, as others will find it.

    Attributes:
        name: its id on the Hub.
        revision: a commit, or the tag of a base that goes up with the adapter.
        folder: of a base that goes up; None where it is on the Hub already.
        quantization: settings of bitsandbytes that the adapter was trained over.
        num_tokens: rows of its embedding, where the adapter brings rows for tokens that were added; else None.
    """

    name: str
    revision: str
    folder: Path | None = None
    quantization: dict[str, Any] | None = None
    num_tokens: int | None = None


@dataclass(frozen=True)
class Staged:
    """All that a push would send, and what it is compared with.

    Attributes:
        record: of the run.
        run: its folder.
        repo_id: of the repository.
        subfolder: in it, or "".
        folder: with the files, links to those of the run where they are the same.
        base: of an adapter; None where the weights are whole.
        is_merged: whether the weights are those of the run with its adapter folded in.
    """

    record: RunRecord
    run: Path
    repo_id: str
    subfolder: str
    folder: Path
    base: Base | None = None
    is_merged: bool = False

    @property
    def files(self) -> dict[str, Path]:
        """Path in the repository -> file."""
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        return {f"{prefix}{path.name}": path for path in sorted(self.folder.iterdir())}


def read_run(folder: Path) -> RunRecord:
    """The record of a run that can be published.

    Raises:
        UserError: it is no run, did not complete, trained nothing, or has nothing to compare with.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is not a run folder: it has no run.json.")
    record = RunRecord.read(folder)
    if record.status != "completed":
        raise UserError(f"The run in {folder} is not complete ({record.status}), so there is nothing to publish.")
    if not record.model.get("num_trainable_parameters") or record.mode not in MODES:
        raise UserError(f"{folder} is a run of mode {record.mode}, which trains no network, so none can be published.")
    if not record.files or CANARY_FILE not in record.files:
        version = record.environment.get("packages", {}).get("hftl", "an older version")
        raise UserError(
            f"{folder} has no rows and digests to check the model by; hftl {version} did not keep them. "
            + AGAIN.format(folder=folder)
        )
    return record


def check_repo_id(repo_id: str | None, flag: str = "--repo_id") -> str:
    """The id, if it is one.

    Raises:
        UserError: it is not of the form ORG/NAME.
    """
    try:
        validate_repo_id(repo_id or "")
    except HFValidationError as error:
        raise UserError(f"{flag} is {repo_id!r}; give ORG/NAME, such as me/my-model. {error}") from error
    if not repo_id or "/" not in repo_id:
        raise UserError(f"{flag} is {repo_id!r}; give ORG/NAME: your user name or organization, then the name.")
    return repo_id


def is_local(name: str) -> bool:
    """Whether a checkpoint is on this machine only: whatever cannot be an id of the Hub, or is there."""
    return is_bundled(name) or not HUB_ID.fullmatch(name) or Path(name).exists()


def has_local_base(record: RunRecord) -> bool:
    """Whether the checkpoint was on this machine only when the run began, wherever its folder is by now.

    A folder that was moved must not become the Hub's model of the same name.
    """
    return record.model.get("weights") is not None or is_local(record.model["name"])


def has_local_data(record: RunRecord) -> bool:
    """Whether the data were files of this machine, wherever they are by now."""
    return "dataset" not in record.config or record.data.get("is_local", False) or is_local(record.data["source"])


def is_vocabulary_own(record: RunRecord) -> bool:
    """Whether the tokenizer was made from the texts of this run, or of the run that its base comes from."""
    seen: set[Path] = set()
    while not record.config.get("tokenizer_vocab_size"):
        folder = Path(record.model["name"])
        if folder in seen or not (folder / RECORD_FILE).is_file():
            return False
        seen.add(folder)
        try:
            record = RunRecord.read(folder)
        except UserError:  # of another version
            return False
    return True


def stage(
    run: Path, record: RunRecord, target: tuple[str, str], work: Path, *, merge: bool, include_base: bool
) -> Staged:
    """Lay out what would go up in new folders of `work`.

    Args:
        run: folder of the run.
        record: of it.
        target: repository and subfolder.
        work: an empty folder.
        merge: fold the adapter into the weights first.
        include_base: send the base as well, into a repository of its own.

    Raises:
        UserError: a flag does not fit the run, the adapter cannot be merged, or its base was trained again.
    """
    repo_id, subfolder = target
    is_adapter = (run / ADAPTER_CONFIG).is_file()
    if merge and include_base:
        raise UserError("--merge makes the base a part of the weights, so that --include_base has nothing to add.")
    for flag, is_given in (("--merge", merge), ("--include_base", include_base)):
        if is_given and not is_adapter:
            raise UserError(f"{flag} is for adapters; {run} holds a whole network (mode {record.mode}).")
    if include_base and not has_local_base(record):
        raise UserError(
            f"--include_base is for a base that only this machine has; {record.model['name']} is on the Hub, and the "
            "adapter names it with its commit."
        )
    folder = work / "model"
    needs_base = merge or include_base or Path(record.model["name"]).is_dir()
    if is_adapter and needs_base:  # of a base that is not needed here the gate says what it thinks
        check_weights(str(run), record.model["name"], record.model.get("weights"))
    if merge:
        merge_run(run, folder)
        (folder / "merge.json").unlink()
        return Staged(record, run, repo_id, subfolder, folder, is_merged=True)
    folder.mkdir()
    for path in list_files(run):
        (folder / path.name).symlink_to(path.absolute())
    if not is_adapter:
        return Staged(record, run, repo_id, subfolder, folder)
    quantization = _take_quantization(folder / "config.json")
    base = Base(
        record.model["name"], record.model.get("revision") or "",
        quantization=quantization, num_tokens=_count_tokens(folder / ADAPTER_CONFIG),
    )  # fmt: skip
    if include_base:
        base = _add_base(folder / "config.json", base, repo_id, work)
        _rewrite(folder / ADAPTER_CONFIG, {"base_model_name_or_path": base.name, "revision": base.revision})
    return Staged(record, run, repo_id, subfolder, folder, base)


def _take_quantization(config: Path) -> dict[str, Any] | None:
    """Move it out of the configuration, which would say that the weights of the base are stored in so few bits."""
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError):
        return None  # the gate will say so
    if found is None:
        return None
    _rewrite(config, {"quantization_config": None})
    return {name: found[name] for name in QUANTIZATION if found.get(name)}


def _count_tokens(adapter: Path) -> int | None:
    """Rows of the base's embedding: those that the adapter adds follow them."""
    rows = json.loads(adapter.read_text(encoding="utf-8")).get("trainable_token_indices")
    numbers = [number for part in rows.values() for number in part] if isinstance(rows, dict) else rows
    return min(numbers) if numbers else None


def _add_base(config: Path, base: Base, repo_id: str, work: Path) -> Base:
    name = base.name
    folder = work / "base"
    folder.mkdir()
    source = Path(resolve_model(name))
    for path in list_files(source):
        if not path.name.startswith("adapter"):
            (folder / path.name).symlink_to(path.absolute())
    (folder / "config.json").unlink(missing_ok=True)  # ours has the labels, so that `pipeline` finds them
    shutil.copyfile(config, folder / "config.json")
    if base.num_tokens is not None:
        _rewrite(folder / "config.json", {"vocab_size": base.num_tokens})
    weights = "".join(compute_sha256(path) for path in sorted(folder.glob("*.safetensors")))
    revision = f"weights-{weights[:12]}"
    card = f"---\nlibrary_name: transformers\ntags: [hftl]\n---\n# The base of [{repo_id}](https://hf.co/{repo_id})\n"
    (folder / CARD).write_text(seal(card), encoding="utf-8")
    return replace(base, name=f"{repo_id}-base", revision=revision, folder=folder)


def _rewrite(config: Path, values: dict[str, Any]) -> None:
    """Other values in a copy; what becomes None is left out."""
    content = json.loads(config.read_text(encoding="utf-8")) | values
    content = {name: value for name, value in content.items() if value is not None or name not in values}
    config.unlink()  # a link to the file of the run, which stays as it is
    config.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def lay_out_cache(staged: Staged, cache: Path) -> None:
    """A Hub cache that holds what would go up under its names, and the base from the cache of this machine."""
    _add_to_cache(cache, staged.repo_id, "main", staged.files)
    base = staged.base
    if base is None:
        return
    if base.folder is not None:
        _add_to_cache(cache, base.name, base.revision, {path.name: path for path in base.folder.iterdir()})
        return
    name = repo_folder_name(repo_id=base.name, repo_type="model")
    if (there := Path(constants.HF_HUB_CACHE) / name).is_dir():
        (cache / name).symlink_to(there.absolute())


def _add_to_cache(cache: Path, repo_id: str, revision: str, files: dict[str, Path]) -> None:
    commit = "0" * 40
    folder = cache / repo_folder_name(repo_id=repo_id, repo_type="model")
    for path, file in files.items():
        (folder / "snapshots" / commit / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / commit / path).symlink_to(file.absolute())
    (folder / "refs").mkdir()
    (folder / "refs" / revision).write_text(commit)


def describe(staged: Staged) -> list[tuple[str, int]]:
    """Every file that would go up, with its bytes."""
    files: dict[str, Any] = staged.files
    listed = [(path, file.stat().st_size) for path, file in files.items()]
    if staged.base is not None and staged.base.folder is not None:
        inside = sorted(staged.base.folder.iterdir())
        listed += [(f"{staged.base.name}: {path.name}", path.stat().st_size) for path in inside]
    return listed
