"""Are the weights under an adapter still those that it was trained on?

A folder may be trained again in place, and an adapter over other weights answers something that nobody has trained.
What is on the Hub is named by its commit instead, and what is bundled is verified by a digest of its own.
"""

import contextlib
import json
import time
from pathlib import Path

import xxhash

from hftl.assets import cache_dir, is_bundled
from hftl.errors import UserError
from hftl.runtime.files import write_atomically

INDEX = "model.safetensors.index.json"
BESIDE = {
    *("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task"),
}  # of a configuration: where it is from, how it is loaded, and the head, which a run makes anew
BLOCK = 1 << 22  # bytes read at once
SETTLED_NS = 2 * 10**9  # a file changed later than so long ago may change again without another time of change


def digest_weights(name: str | None) -> str | None:
    """32 hexadecimal digits of every byte of the weights in a local folder, and of what its configuration computes.

    None for what is no local folder. A file is read once: its digest is kept in the cache beside its size, place on
    the disk and times of change.
    """
    if not name or is_bundled(name) or not Path(name).is_dir():
        return None
    digest = xxhash.xxh3_128()
    for path in _list_weights(Path(name)):
        digest.update(f"{path.name} {_digest_file(path)}\n".encode())
    digest.update(_describe_network(Path(name)).encode())
    return digest.hexdigest()


def check_weights(adapter: str, base: str, recorded: str | None) -> None:
    """Compare the base of an adapter with what its run wrote down.

    Args:
        adapter: its name, for the message.
        base: name of the network under it.
        recorded: what `digest_weights` said in the run; None where that was no local folder.

    Raises:
        UserError: the folder is gone, or holds other weights.
    """
    if recorded is None:
        return
    found = digest_weights(base)
    if found is None:
        raise UserError(
            f"{adapter} is an adapter over the weights in the folder {base}, which is not there. Start the command "
            "in the folder of the training if that path is a relative one, or put the base back."
        )
    if found != recorded:
        raise UserError(
            f"{adapter} was trained over other weights than {base} holds now (digest {recorded[:12]} then, "
            f"{found[:12]} now), so its answers would be wrong. Put the weights of then back, or train the adapter "
            "again; `hftl merge RUN OUT`, run while the base is there, makes a model that needs none."
        )


def _list_weights(folder: Path) -> list[Path]:
    """The files that `from_pretrained` reads: one, or the shards of an index."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):  # loading will say what is wrong
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        return [path for name in sorted(names) if (path := folder / name).is_file()]
    return sorted(folder.glob("*.safetensors"))


def _describe_network(folder: Path) -> str:
    """The configuration without what changes no answer of the body: the activation counts, a version does not."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # loading will say what is wrong
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return json.dumps({key: value for key, value in config.items() if key not in BESIDE}, sort_keys=True)
    return ""


def _digest_file(path: Path) -> str:
    status = path.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    state = f"{path.resolve()} {status.st_dev} {status.st_ino} {status.st_size} {times}"
    kept = cache_dir() / "digests" / xxhash.xxh3_128_hexdigest(state.encode())
    with contextlib.suppress(OSError):
        if len(found := kept.read_text(encoding="ascii")) == 32:
            return found
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if max(times) < time.time_ns() - SETTLED_NS:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time in the next run, nothing else
            write_atomically(kept, digest.hexdigest().encode())
    return digest.hexdigest()
