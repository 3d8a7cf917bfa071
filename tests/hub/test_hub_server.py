"""The test server against the installed huggingface_hub, transformers, peft and datasets, none of them changed."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    constants,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # the one that the client itself uses
from peft import LoraConfig, get_peft_model

from tests import tiny
from tests.hub.hub_server import Fault, serve

WEIGHTS = bytes(range(256)) * 40
TEXT = "the cat is in the rain"


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def folder(tmp_path) -> Path:
    """One file that goes into git and one that goes to LFS."""
    (tmp_path / "run" / "nested").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "nested" / "model.safetensors").write_bytes(WEIGHTS)
    return tmp_path / "run"


@pytest.fixture
def pushed(api, folder):
    """The commit that put the folder into org/model."""
    api.create_repo("org/model")
    return api.upload_folder(repo_id="org/model", folder_path=folder, commit_message="first")


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that the client would have waited between its tries; it waits none."""
    seconds: list[float] = []
    clock = SimpleNamespace(sleep=seconds.append, time=time.time)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)
    return seconds


def read(api: HfApi, path: str, revision: str | None = None) -> bytes:
    return Path(api.hf_hub_download("org/model", path, revision=revision)).read_bytes()


# Accounts and repositories


def test_whoami_names_the_account_of_a_token_and_refuses_an_unknown_one(hub, api):
    assert api.whoami()["name"] == "tester"
    assert [one["name"] for one in api.whoami()["orgs"]] == ["org"]
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as refused:
        api.whoami(token="hf_unknown")
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_a_repository_is_created_once_described_and_deleted(hub, api, kind):
    options = {"repo_type": kind} | ({"space_sdk": "static"} if kind == "space" else {})
    url = api.create_repo("org/new", private=True, **options)
    assert (url.repo_id, url.repo_type) == ("org/new", kind)
    assert api.create_repo("org/new", exist_ok=True, **options) == url
    with pytest.raises(HfHubHTTPError, match="already created") as refused:
        api.create_repo("org/new", **options)
    assert refused.value.response.status_code == 409
    info = api.repo_info("org/new", repo_type=kind)
    assert (info.private, info.sha, len(info.siblings)) == (True, next(iter(hub.repos.values())).find("main").oid, 1)
    api.delete_repo("org/new", repo_type=kind)
    assert not api.repo_exists("org/new", repo_type=kind)


def test_a_name_without_a_namespace_belongs_to_the_account(hub, api):
    assert api.create_repo("mine").repo_id == "tester/mine"
    assert list(hub.repos) == ["tester/mine"]


def test_a_private_repository_is_not_found_by_others(hub, api):
    api.create_repo("org/model", private=True)
    for token in (False, hub.stranger_token):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("org/model", token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download("org/model", ".gitattributes", token=token)
    assert api.hf_hub_download("org/model", ".gitattributes", token=hub.read_token)


def test_a_gated_repository_shows_its_files_and_gives_them_to_members_only(hub, api, pushed):
    hub.repos["org/model"].gated = "manual"
    assert "config.json" in api.list_repo_files("org/model", token=hub.stranger_token)
    for token, status in ((False, 401), (hub.stranger_token, 403)):
        with pytest.raises(GatedRepoError) as refused:
            api.hf_hub_download("org/model", "config.json", token=token)
        assert refused.value.response.status_code == status
    assert read(api, "config.json") == b"{}"


def test_only_a_member_with_a_writing_token_may_write(hub, api, pushed, folder):
    api.auth_check("org/model", write=True)
    for token, status in ((False, 401), (hub.read_token, 403), (hub.stranger_token, 403)):
        refusals = (
            lambda token: api.create_repo("org/other", token=token),
            lambda token: api.upload_folder(repo_id="org/model", folder_path=folder, token=token),
            lambda token: api.auth_check("org/model", write=True, token=token),
        )
        for refused_call in refusals:
            with pytest.raises(HfHubHTTPError) as refused:
                refused_call(token)
            assert refused.value.response.status_code == status
    assert len(hub.repos["org/model"].commits) == 2
    assert list(hub.repos) == ["org/model"]


# Uploads and history


def test_a_folder_comes_back_byte_for_byte(hub, api, pushed, folder):
    assert api.list_repo_files("org/model") == [".gitattributes", "config.json", "nested/model.safetensors"]
    assert read(api, "config.json") == b"{}"
    snapshot = Path(api.snapshot_download("org/model"))
    assert snapshot.name == pushed.oid
    for path in ("config.json", "nested/model.safetensors"):
        assert (snapshot / path).read_bytes() == (folder / path).read_bytes()
    entries = {entry.path: entry for entry in api.get_paths_info("org/model", ["config.json", "nested"])}
    assert entries["config.json"].size == 2
    assert [entry.path for entry in api.list_repo_tree("org/model", "nested")] == ["nested/model.safetensors"]


def test_weights_go_to_lfs_without_the_token_and_text_goes_into_the_commit(hub, api, pushed):
    (upload,) = hub.seen("PUT", "^/lfs/")
    assert (upload.num_bytes, upload.has_token, upload.status) == (len(WEIGHTS), False, 200)
    assert hub.seen("POST", "/info/lfs/verify$")[0].has_token
    assert not hub.seen("GET", "xet")
    files = {sibling.rfilename: sibling for sibling in api.model_info("org/model", files_metadata=True).siblings}
    assert files["config.json"].lfs is None
    assert (
        files["nested/model.safetensors"].lfs.sha256
        == hub.repos["org/model"].find("main").files["nested/model.safetensors"].sha256
    )
    read(api, "nested/model.safetensors")
    assert not hub.seen("GET", "^/lfs/")[0].has_token


def test_bytes_that_are_no_text_and_large_files_go_to_lfs_whatever_their_name(hub, api):
    api.create_repo("org/model")
    operations = [
        CommitOperationAdd("image", b"\x89PNG\0"),
        CommitOperationAdd("long.txt", b"a" * (10 * 1024**2 + 1)),
        CommitOperationAdd("short.txt", b"a"),
    ]
    api.create_commit("org/model", operations, commit_message="three")
    files = hub.repos["org/model"].find("main").files
    assert [files[one.path_in_repo].is_lfs for one in operations] == [True, True, False]


def test_the_same_folder_again_makes_no_commit_and_sends_no_weights(hub, api, pushed, folder):
    again = api.upload_folder(repo_id="org/model", folder_path=folder)
    assert again.oid == pushed.oid
    assert len(hub.seen("PUT", "^/lfs/")) == 1
    assert len(hub.seen("POST", "/commit/")) == 1


def test_old_revisions_still_resolve(api, pushed, folder):
    (folder / "config.json").write_text('{"a": 1}')
    second = api.upload_folder(repo_id="org/model", folder_path=folder, commit_message="second")
    assert read(api, "config.json") == b'{"a": 1}'
    assert read(api, "config.json", pushed.oid) == b"{}"
    assert read(api, "config.json", pushed.oid[:7]) == b"{}"
    history = api.list_repo_commits("org/model")
    assert [commit.title for commit in history] == ["second", "first", "initial commit"]
    assert [commit.commit_id for commit in history[:2]] == [second.oid, pushed.oid]


def test_files_are_deleted_and_copied_in_one_commit(api, pushed):
    operations = [
        CommitOperationCopy("nested/model.safetensors", "model.safetensors"),
        CommitOperationDelete("nested/"),
        CommitOperationDelete("config.json"),
    ]
    api.create_commit("org/model", operations, commit_message="move")
    assert api.list_repo_files("org/model") == [".gitattributes", "model.safetensors"]
    assert read(api, "model.safetensors") == WEIGHTS


def test_a_commit_with_one_impossible_operation_changes_nothing(hub, api, pushed):
    operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("missing.txt")]
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.create_commit("org/model", operations, commit_message="half")
    assert hub.repos["org/model"].find("main").oid == pushed.oid


def test_a_commit_on_an_old_parent_is_refused(api, pushed):
    api.upload_file(repo_id="org/model", path_or_fileobj=b"1", path_in_repo="a.txt", parent_commit=pushed.oid)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refused:
        api.upload_file(repo_id="org/model", path_or_fileobj=b"2", path_in_repo="a.txt", parent_commit=pushed.oid)
    assert refused.value.response.status_code == 412
    assert read(api, "a.txt") == b"1"


def test_a_branch_moves_and_a_tag_stays(api, pushed):
    api.create_branch("org/model", branch="with/slash", revision=pushed.oid)
    api.create_tag("org/model", tag="v1", revision="with/slash")
    api.upload_file(repo_id="org/model", path_or_fileobj=b"branch", path_in_repo="config.json", revision="with/slash")
    assert read(api, "config.json", "with/slash") == b"branch"
    assert read(api, "config.json", "v1") == read(api, "config.json") == b"{}"
    refs = api.list_repo_refs("org/model")
    assert [ref.name for ref in refs.branches] == ["main", "with/slash"]
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", pushed.oid)]
    for create in (
        lambda: api.create_branch("org/model", branch="with/slash"),
        lambda: api.create_tag("org/model", tag="v1"),
    ):
        with pytest.raises(HfHubHTTPError, match="already exists") as refused:
            create()
        assert refused.value.response.status_code == 409
    api.delete_branch("org/model", branch="with/slash")
    api.delete_tag("org/model", tag="v1")
    assert not api.revision_exists("org/model", "with/slash")
    assert not api.revision_exists("org/model", "v1")


def test_a_pull_request_leaves_main_as_it_is_and_resolves_by_its_ref(hub, api, pushed):
    proposed = api.upload_file(
        repo_id="org/model",
        path_or_fileobj=b"better",
        path_in_repo="config.json",
        create_pr=True,
        token=hub.stranger_token,
    )
    assert (proposed.pr_revision, proposed.pr_num) == ("refs/pr/1", 1)
    assert read(api, "config.json") == b"{}"
    assert read(api, "config.json", "refs/pr/1") == b"better"
    api.upload_file(repo_id="org/model", path_or_fileobj=b"best", path_in_repo="config.json", revision="refs/pr/1")
    assert read(api, "config.json", "refs/pr/1") == b"best"
    (ref,) = api.list_repo_refs("org/model", include_pull_requests=True).pull_requests
    assert ref.ref == "refs/pr/1"
    opened = api.create_pull_request("org/model", "Another one")
    assert (opened.num, opened.status, opened.target_branch) == (2, "draft", "refs/heads/main")


def test_what_is_missing_has_the_error_of_its_kind(api, pushed):
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("org/other", "config.json")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download("org/model", "config.json", revision="v9")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("org/model", "missing.json")
    assert try_to_load_from_cache("org/model", "missing.json") is _CACHED_NO_EXIST  # the client need not ask again
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(repo_id="org/model", path_or_fileobj=b"1", path_in_repo="a.txt", revision="v9")
    assert not api.file_exists("org/model", "missing.json")


def test_ranges_of_a_file_can_be_read(hub, pushed):
    files = HfFileSystem(endpoint=hub.endpoint, token=hub.token, skip_instance_cache=True)
    with files.open("org/model/nested/model.safetensors", block_size=16) as file:
        file.seek(1000)
        assert file.read(10) == WEIGHTS[1000:1010]
    assert hub.seen("GET", "^/lfs/")[-1].status == 206


def test_what_the_server_does_not_know_is_an_error_and_not_an_empty_answer(api):
    with pytest.raises(HfHubHTTPError, match="unknown to this test server") as refused:
        list(api.list_models())
    assert refused.value.response.status_code == 501


# Cards


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("tags: [", "YAML"),
        ("- a\n- b", "mapping"),
        ("base_model: /home/me/run", "base_model"),
        ("datasets: [bundled:x]", "datasets"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_refused(hub, api, pushed, metadata, message):
    card = f"---\n{metadata}\n---\n# Model".encode()
    with pytest.raises(ValueError, match=message):
        api.upload_file(repo_id="org/model", path_or_fileobj=card, path_in_repo="README.md")
    hub.fail("POST", "/api/validate-yaml", Fault(status=200))  # as for a client that does not ask first
    with pytest.raises(BadRequestError, match=message):
        api.upload_file(repo_id="org/model", path_or_fileobj=card, path_in_repo="README.md")
    assert "README.md" not in api.list_repo_files("org/model")


def test_a_card_without_metadata_is_a_warning(api, pushed):
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(repo_id="org/model", path_or_fileobj=b"# Model", path_in_repo="README.md")


def test_a_card_describes_its_repository(api, pushed):
    card = b"---\nbase_model: org/base\nlibrary_name: peft\ntags: [lora]\n---\n# Model\n"
    api.upload_file(repo_id="org/model", path_or_fileobj=card, path_in_repo="README.md")
    info = api.model_info("org/model")
    assert (info.card_data.base_model, info.library_name) == ("org/base", "peft")
    assert info.tags == ["lora", "base_model:org/base"]


# Faults


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=401), HfHubHTTPError),
        (Fault(status=403), HfHubHTTPError),
        (Fault(status=403, code="GatedRepo"), GatedRepoError),
        (Fault(status=404, code="RepoNotFound"), RepositoryNotFoundError),
        (Fault(status=404, code="RevisionNotFound"), RevisionNotFoundError),
        (Fault(status=404, code="EntryNotFound"), EntryNotFoundError),
        (Fault(status=409), HfHubHTTPError),
        (Fault(status=429, retry_after=3), HfHubHTTPError),
        (Fault(status=500), HfHubHTTPError),
        (Fault(status=503), HfHubHTTPError),
    ],
)
def test_a_fault_has_the_clients_own_exception_as_often_as_asked(hub, api, pushed, fault, error):
    hub.fail("POST", "/commit/main$", fault, times=2)
    for _ in range(2):
        with pytest.raises(error) as refused:
            api.upload_file(repo_id="org/model", path_or_fileobj=b"1", path_in_repo="a.txt")
        assert refused.value.response.status_code == fault.status
    assert hub.repos["org/model"].find("main").oid == pushed.oid
    api.upload_file(repo_id="org/model", path_or_fileobj=b"1", path_in_repo="a.txt")
    assert [one.status for one in hub.seen("POST", "/commit/main$")] == [200, fault.status, fault.status, 200]


def test_the_client_waits_as_long_as_retry_after_says(hub, api, pushed, waits):
    hub.fail("GET", "/tree/", Fault(status=429, retry_after=7))
    hub.fail("GET", "/tree/", Fault(status=503))
    assert "config.json" in api.list_repo_files("org/model")
    assert waits == [8.0, 2]  # one second more than told; then the second step of its own schedule


def test_a_slow_answer_runs_into_the_clients_timeout(hub, api, pushed):
    hub.fail("GET", "/api/models/org/model$", Fault(delay_seconds=30))
    with pytest.raises(httpx.ReadTimeout):
        api.model_info("org/model", timeout=0.1)
    assert api.model_info("org/model", timeout=10).sha == pushed.oid


def test_a_server_in_trouble_is_no_missing_file(hub, api, pushed, waits):
    hub.fail("HEAD", "/resolve/", Fault(status=503), times=99)
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download("org/model", "config.json")


def test_the_client_sends_weights_again_when_their_upload_was_cut(hub, api, folder, waits):
    hub.fail("PUT", "^/lfs/", Fault(cut="request"), times=2)
    api.create_repo("org/model")
    api.upload_folder(repo_id="org/model", folder_path=folder)
    assert [one.status for one in hub.seen("PUT", "^/lfs/")] == [None, None, 200]
    assert read(api, "nested/model.safetensors") == WEIGHTS
    assert len(waits) == 2


def test_weights_that_the_storage_lost_are_noticed_and_never_committed(hub, api, folder):
    api.create_repo("org/model")
    hub.fail("PUT", "^/lfs/", Fault(status=200), times=2)
    with pytest.raises(RuntimeError, match="Error while uploading 'nested/model.safetensors'"):
        api.upload_folder(repo_id="org/model", folder_path=folder)
    hub.fail("POST", "/lfs/verify$", Fault(status=200))
    with pytest.raises(BadRequestError, match="pointed to a file that does not exist"):
        api.upload_folder(repo_id="org/model", folder_path=folder)
    assert api.list_repo_files("org/model") == [".gitattributes"]


def test_the_storage_refuses_bytes_that_are_not_what_their_name_says(hub):
    assert httpx.put(f"{hub.endpoint}/lfs/{'0' * 64}", content=WEIGHTS).status_code == 400


def test_a_cut_commit_is_an_error_and_pushing_again_completes_it(hub, api, folder):
    hub.fail("POST", "/commit/", Fault(cut="request"))
    api.create_repo("org/model")
    with pytest.raises(httpx.TransportError):
        api.upload_folder(repo_id="org/model", folder_path=folder)
    assert api.list_repo_files("org/model") == [".gitattributes"]
    api.upload_folder(repo_id="org/model", folder_path=folder)
    assert read(api, "nested/model.safetensors") == WEIGHTS
    assert len(hub.seen("PUT", "^/lfs/")) == 1  # the weights had arrived


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, api, folder):
    hub.fail("POST", "/commit/", Fault(cut="answer"))
    api.create_repo("org/model")
    with pytest.raises(httpx.TransportError):
        api.upload_folder(repo_id="org/model", folder_path=folder)
    again = api.upload_folder(repo_id="org/model", folder_path=folder)
    assert again.oid == hub.repos["org/model"].find("main").oid
    assert len(hub.repos["org/model"].commits) == 2


def test_a_cut_download_goes_on_where_it_ended(hub, api, pushed, waits, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what arrived of an unfinished chunk is dropped
    hub.fail("GET", "^/lfs/", Fault(cut="answer"))
    assert read(api, "nested/model.safetensors") == WEIGHTS
    assert [one.status for one in hub.seen("GET", "^/lfs/")] == [200, 206]


def test_no_token_is_kept_in_the_log(hub, api, pushed):
    assert any(one.has_token for one in hub.requests)
    assert hub.token not in repr(hub.requests)


# transformers, peft and datasets, in a process of their own

LIBRARIES = """
import json, sys
import datasets, numpy as np, peft, torch, transformers

text, answers = sys.argv[1], {}

def logits(network, **inputs):
    with torch.no_grad():
        return network.eval()(**inputs)[0].flatten().tolist()

tokenizer = transformers.AutoTokenizer.from_pretrained("org/bert", revision="v1")
inputs = tokenizer(text, return_tensors="pt")
network = transformers.AutoModel.from_pretrained("org/bert", revision="v1")
answers["bert"] = logits(network, **inputs)
network.push_to_hub("org/again", private=True)
tokenizer.push_to_hub("org/again", revision="side")
answers["again"] = logits(transformers.AutoModel.from_pretrained("org/again"), **inputs)
answers["tokens"] = transformers.AutoTokenizer.from_pretrained("org/again", revision="side")(text)["input_ids"]
answers["adapter"] = logits(peft.PeftModel.from_pretrained(network, "org/adapter"), **inputs)
image = np.full((32, 32, 3), 100, np.uint8)
pixels = transformers.AutoImageProcessor.from_pretrained("org/vit")(image, return_tensors="pt")
answers["vit"] = logits(transformers.AutoModelForImageClassification.from_pretrained("org/vit"), **pixels)
rows = datasets.load_dataset("org/rows")
answers["rows"] = {split: rows[split].to_list() for split in rows}
print(json.dumps(answers))
"""


def run_libraries(hub, home: Path) -> dict:
    """The answers of a process that knows the server by its environment alone."""
    command = [sys.executable, "-W", "ignore", "-c", LIBRARIES, TEXT]
    environment = hub.client_environment(home, hub.token)
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def compute_logits(network: torch.nn.Module, **inputs: torch.Tensor) -> list[float]:
    with torch.no_grad():
        return network.eval()(**inputs)[0].flatten().tolist()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What was pushed by this process, as a second one loads it: expected and actual answers, and the server."""
    folder = tmp_path_factory.mktemp("pushed")
    tiny.write_tiny_bert(folder / "bert")
    tiny.write_tiny_vit(folder / "vit")
    rows = pd.DataFrame(tiny.make_texts(6))
    (folder / "rows" / "data").mkdir(parents=True)
    rows[:4].to_parquet(folder / "rows" / "data" / "train.parquet")
    rows[4:].to_parquet(folder / "rows" / "data" / "test.parquet")
    network = transformers.AutoModel.from_pretrained(folder / "bert")
    inputs = transformers.AutoTokenizer.from_pretrained(folder / "bert")(TEXT, return_tensors="pt")
    expected = {"bert": compute_logits(network, **inputs), "tokens": inputs["input_ids"][0].tolist()}
    adapted = get_peft_model(network, LoraConfig(init_lora_weights=False, target_modules=["query"]))
    adapted.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()  # peft's card names the base model by its folder, which is refused
    expected["adapter"] = compute_logits(adapted, **inputs)
    pixels = transformers.AutoImageProcessor.from_pretrained(folder / "vit")(
        np.full((tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3), 100, np.uint8), return_tensors="pt"
    )
    vit = transformers.AutoModelForImageClassification.from_pretrained(folder / "vit")
    expected["vit"] = compute_logits(vit, **pixels)
    expected["rows"] = {"train": rows[:4].to_dict("records"), "test": rows[4:].to_dict("records")}
    with pytest.MonkeyPatch.context() as patch, serve() as hub:
        hub.connect_client(patch, folder / "home")
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        for name in ("bert", "vit", "adapter", "rows"):
            kind = "dataset" if name == "rows" else "model"
            api.create_repo(f"org/{name}", repo_type=kind, private=name == "bert")
            api.upload_folder(repo_id=f"org/{name}", folder_path=folder / name, repo_type=kind)
        api.create_tag("org/bert", tag="v1")
        api.delete_file("model.safetensors", "org/bert")  # main has no weights: only the tag can be loaded
        home = tmp_path_factory.mktemp("libraries")
        yield SimpleNamespace(expected=expected, actual=run_libraries(hub, home), hub=hub, home=home)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "vit", "adapter", "tokens", "rows"])
def test_another_process_loads_by_name_what_was_pushed(loaded, name):
    assert loaded.actual[name] == loaded.expected[name]


@pytest.mark.slow
def test_what_push_to_hub_sent_loads_with_equal_logits(loaded):
    assert loaded.actual["again"] == loaded.expected["bert"]
    assert loaded.hub.repos["org/again"].is_private
    assert set(loaded.hub.repos["org/again"].refs) == {"refs/heads/main", "refs/heads/side"}


@pytest.mark.slow
def test_the_libraries_keep_their_files_in_their_home_and_their_token_from_the_storage(loaded):
    assert list(loaded.home.rglob("model.safetensors"))
    assert not any(request.has_token for request in loaded.hub.seen("GET", "^/lfs/"))
    assert not [request for request in loaded.hub.requests if request.status in (500, 501)]
