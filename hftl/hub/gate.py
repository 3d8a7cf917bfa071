"""May these files be published? Static checks first; then a fresh process loads them and answers the rows of the run.

Whatever the run folder was when it was saved, others get what is in it now. Nothing here talks to the Hub, unless the
base of an adapter has to be fetched.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

from hftl.data.labels import LabelInfo
from hftl.errors import PublishError, UserError
from hftl.hub import load_check
from hftl.hub.files import (
    ADAPTER_CONFIG,
    Problem,
    check_digests,
    check_names,
    check_texts,
    check_weights,
)
from hftl.hub.stage import Staged, has_local_base, lay_out_cache
from hftl.run_record import CANARY_FILE
from hftl.tasks import build_task

logger = logging.getLogger(__name__)

# Of a logit, in units of the logits' spread. Two programs agree to about 1e-6 in float32 on one machine; GPUs round
# convolutions to 10 bits (TF32), and frozen weights in 16 or fewer bits are multiplied in as many.
TOLERANCE, COARSE_TOLERANCE = 1e-3, 5e-2
LOAD_SECONDS = 3600
COMMIT = re.compile("[0-9a-f]{40}")
BASE_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def pass_gate(staged: Staged, work: Path, *, is_offline: bool) -> str:
    """Check all of it.

    Args:
        staged: what would go up.
        work: an empty folder.
        is_offline: whether a base that is not in the cache is a problem, because it cannot be fetched.

    Returns:
        One sentence for the user.

    Raises:
        PublishError: with everything that is wrong.
    """
    problems = check_statically(staged)
    if problems:
        raise blocked(staged, problems, "The files were not loaded.")
    if staged.base is not None and staged.base.folder is None:
        _fetch_base(staged, is_offline=is_offline)
    (answer,) = run_jobs([write_job(staged, work)], work)
    if answer["problems"]:
        raise blocked(staged, name_problems(staged, answer["problems"]))
    return (
        f"gate passed: {len(staged.files)} files load with plain transformers{' and peft' if staged.base else ''} and "
        f"answer {answer['num_rows']} rows as the run did (they differ by {answer['difference']:.1g} of the spread)"
    )


def blocked(staged: Staged, problems: list[Problem], more: str = "") -> PublishError:
    """The error that lists what is wrong."""
    listed = "".join(f"\n  - {problem}" for problem in problems)
    return PublishError(f"{staged.run} is not published:{listed}\n{more}".rstrip() + "\nNothing was sent.")


def check_statically(staged: Staged) -> list[Problem]:
    """Everything that can be seen without loading a network."""
    run, folder = staged.run, staged.folder
    problems = check_names(run) + check_digests(run, staged.record.files)
    inside = [*folder.iterdir(), *(staged.base.folder.iterdir() if staged.base and staged.base.folder else ())]
    others = [path for path in run.iterdir() if path.is_file() and not (folder / path.name).exists()]
    problems += check_texts(inside)
    problems += [problem for problem in check_texts(others) if problem.check == "token"]
    problems += _check_base(staged)
    config = _read_json(folder / "config.json", problems)
    problems += _check_labels(staged, config)
    for path in sorted(folder.glob("*.safetensors")):
        problems += check_weights(path, config.get("dtype") or "float32")
    return problems


def _read_json(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(Problem("configuration", f"{path.name} cannot be read: {error}"))
        return {}


def _check_base(staged: Staged) -> list[Problem]:
    """An adapter is worth nothing without exactly its base."""
    base, name = staged.base, staged.record.model["name"]
    if base is None:
        return []
    if base.folder is None and has_local_base(staged.record):
        choice = "--merge folds the adapter into it, --include_base sends it as well"
        return [Problem("base model", f"{name} is on this machine only, so nobody could load the adapter; {choice}")]
    problems: list[Problem] = []
    config = _read_json(staged.folder / ADAPTER_CONFIG, problems)
    written = config.get("base_model_name_or_path"), config.get("revision")
    if base.folder is None and not COMMIT.fullmatch(base.revision):
        problems.append(Problem("base model", f"no commit of {name} is recorded, so that it could change"))
    if written != (base.name, base.revision):
        found = f"{ADAPTER_CONFIG} names {written[0]} at {written[1]}, the run was on {base.name} at {base.revision}"
        problems.append(Problem("base model", found))
    return problems


def _check_labels(staged: Staged, config: dict[str, Any]) -> list[Problem]:
    names = staged.record.data["label_names"]
    if not names:
        return []
    found = config.get("id2label") or {}
    if [found.get(str(index)) for index in range(len(names))] != names or len(found) != len(names):
        return [Problem("label map", f"config.json has {list(found.values())[:5]}, the run {names[:5]}")]
    if config.get("label2id") != {name: index for index, name in enumerate(names)}:
        return [Problem("label map", "label2id of config.json is not the reverse of id2label")]
    return []


def _fetch_base(staged: Staged, *, is_offline: bool) -> None:
    """The base in the cache of this machine, at the commit that others will get."""
    name, revision = staged.base.name, staged.base.revision
    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    if is_offline or constants.HF_HUB_OFFLINE:
        raise UserError(f"{name} at {revision} is not in the cache, so the gate cannot load the adapter offline.")
    try:
        snapshot_download(name, revision=revision, allow_patterns=BASE_FILES)
    except Exception as error:  # of the client, of the network, of the disk: the base cannot be had
        raise PublishError(f"The base {name} at {revision} cannot be fetched: {error}\nNothing was sent.") from error


def write_job(staged: Staged, work: Path) -> Path:
    """What `load_check.py` needs to know, beside a Hub cache that holds nothing but what would go up."""
    cache = work / "hub"
    cache.mkdir(parents=True)
    lay_out_cache(staged, cache)
    task, data = build_task(staged.record.task), staged.record.data
    job = {
        "repo_id": staged.repo_id,
        "subfolder": staged.subfolder,
        "cache": str(cache),
        "auto_model": task.auto_model,
        "base": staged.base.name if staged.base else None,
        "base_revision": staged.base.revision if staged.base else None,
        "quantization": staged.base.quantization if staged.base else None,
        "base_tokens": staged.base.num_tokens if staged.base else None,
        "canary": str((staged.run / CANARY_FILE).absolute()),
        "outputs": task.outputs,
        "is_last": task.is_answer_last,
        "num_logits": task.count_outputs(LabelInfo(data["problem_type"], tuple(data["label_names"]))),
        "tolerance": choose_tolerance(staged),
    }
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return work / "job.json"


def run_jobs(jobs: list[Path], work: Path) -> list[dict[str, Any]]:
    """The answers of one fresh process to jobs, in their order."""
    script = shutil.copy(load_check.__file__, work / "load_check.py")  # beside nothing that it could import by mistake
    theirs = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    environment |= {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-W", "ignore", script, *map(str, jobs)],
        env=environment, cwd=work, capture_output=True, text=True, timeout=LOAD_SECONDS,
    )  # fmt: skip
    answers = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"problems"')]
    if len(answers) < len(jobs):
        end = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        answers.append({"problems": [f"loading: the process that loads the files died: {end[0]}"]})
    return answers


def choose_tolerance(staged: Staged) -> float:
    """How far logits may be from those of the run."""
    settings, environment = staged.record.config, staged.record.environment
    is_coarse = settings.get("dtype", "float32") != "float32" or settings.get("quantization", "none") != "none"
    is_elsewhere = environment.get("device", "cpu") != "cpu"
    return COARSE_TOLERANCE if (is_coarse or is_elsewhere) and not staged.is_merged else TOLERANCE


def name_problems(staged: Staged, texts: list[str]) -> list[Problem]:
    """What the process found, with what may be the reason."""
    problems = []
    for text in texts:
        check, _, found = text.partition(": ")
        reason = _suspect(staged) if check == "answers" else ""
        problems.append(Problem(check, found + reason))
    return problems


def _suspect(staged: Staged) -> str:
    """Why answers may be other ones."""
    quantization = staged.record.config.get("quantization", "none")
    if staged.is_merged and quantization != "none":
        return f"; the adapter was trained over weights in {quantization} and merged into full ones: leave out --merge"
    if staged.base is not None:
        return f"; the base was read as {staged.base.name} at {staged.base.revision}"
    return ""
