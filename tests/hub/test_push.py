"""The upload: one commit, private, once; what each failure says, that the run stays as it was, and how it goes on."""

import hashlib
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi

from hftl import cli
from hftl.config import parse_args
from hftl.errors import PublishError, UserError
from hftl.hub import retries
from hftl.hub.push import Publication, push_run, take_publication
from hftl.run_record import RunRecord
from hftl.training.run import run
from hftl.training.settings import check_arguments
from tests.hub.conftest import list_flags
from tests.hub.hub_server import Fault
from tests.report.fake_results import build_results

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # peft's hints
    pytest.mark.filterwarnings("ignore:.*has been moved.*"),
]
SENT = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def logged_in(hub, monkeypatch):
    """The server, with a token that may write in the environment."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds between our tries; nobody waits for them, nor for those of the client."""
    seconds: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=seconds.append))
    clock = SimpleNamespace(sleep=lambda _: None, time=time.time)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    return seconds


@pytest.fixture
def open_gate(monkeypatch):
    """The gate has tests of its own, and takes seconds."""
    monkeypatch.setattr("hftl.hub.push.pass_gate", lambda *_, **__: "gate passed")


def read_all(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def commits(hub, repo_id: str = "org/x", revision: str = "main") -> list[str]:
    return [commit.title for commit in hub.repos[repo_id].history(revision)]


def files(hub, repo_id: str = "org/x", revision: str = "main") -> set[str]:
    return set(hub.repos[repo_id].find(revision).files) - {".gitattributes"}


# What is sent


def test_a_push_is_one_private_commit_with_a_tag(logged_in, copy_run, open_gate, capsys):
    folder = copy_run("text-full")
    before = read_all(folder)
    assert cli.main(["push", str(folder), "--repo_id", "org/x"]) == 0
    assert "pushed to org/x at " in capsys.readouterr().out
    assert files(logged_in) == SENT
    assert len(commits(logged_in)) == 2 and commits(logged_in)[0].startswith("Push a full run of hftl (run-")
    assert logged_in.repos["org/x"].is_private
    (tag,) = [ref for ref in logged_in.repos["org/x"].refs if ref.startswith("refs/tags/run-")]
    assert logged_in.repos["org/x"].refs[tag] == logged_in.repos["org/x"].find("main").oid
    after = read_all(folder)
    assert {name: value for name, value in after.items() if name != "push.json"} == before
    assert logged_in.token not in (folder / "push.json").read_text()


def test_the_same_push_again_makes_no_commit(logged_in, copy_run, open_gate):
    folder = copy_run("text-full")
    for _ in range(2):
        push_run(folder, Publication("org/x"))
    assert len(commits(logged_in)) == 2


def test_a_dry_run_lists_files_and_card_and_asks_no_network(hub, copy_run, capsys, open_gate):
    folder = copy_run("text-full")
    before = read_all(folder)
    assert cli.main(["push", str(folder), "--repo_id", "org/x", "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "94,180  model.safetensors" in output and "## Use it" in output and "bytes in 5 files would go" in output
    assert hub.requests == [] and read_all(folder) == before


def test_a_repository_is_public_only_if_asked_for(logged_in, copy_run, open_gate):
    folder = copy_run("text-full")
    push_run(folder, Publication("org/x", public=True))
    assert not logged_in.repos["org/x"].is_private
    with pytest.raises(UserError, match="org/x exists and is public. Add --public"):
        push_run(folder, Publication("org/x"))


def test_runs_go_to_branches_and_subfolders_of_one_repository(logged_in, make_run, copy_run, open_gate):
    full, scratch = copy_run("text-full"), copy_run("text-scratch")
    push_run(full, Publication("org/x"))
    push_run(scratch, Publication("org/x", revision="scratch"))
    push_run(scratch, Publication("org/x", subfolder="seeds/one"))
    assert files(logged_in, revision="scratch") == SENT
    assert len(commits(logged_in, revision="scratch")) == 2  # the branch began without the files of main
    assert files(logged_in) == SENT | {f"seeds/one/{name}" for name in SENT}
    card = logged_in.repos["org/x"].find("main").files["seeds/one/README.md"].content.decode()
    assert 'from_pretrained("org/x", subfolder="seeds/one")' in card


def test_a_pull_request_leaves_main_as_it_is(logged_in, copy_run, open_gate, capsys):
    HfApi().create_repo("org/x", private=True)
    assert cli.main(["push", str(copy_run("text-full")), "--repo_id", "org/x", "--create_pr"]) == 0
    assert files(logged_in) == set() and files(logged_in, revision="refs/pr/1") == SENT
    assert "/discussions/1" in capsys.readouterr().out


def test_a_base_of_this_machine_goes_to_a_repository_of_its_own(logged_in, copy_run, open_gate):
    push_run(copy_run("text-peft"), Publication("org/x", include_base=True))
    assert "adapter_model.safetensors" in files(logged_in) and "model.safetensors" not in files(logged_in)
    assert files(logged_in, "org/x-base") == SENT
    assert logged_in.repos["org/x-base"].is_private
    config = json.loads(logged_in.repos["org/x"].find("main").files["adapter_config.json"].content)
    assert config["base_model_name_or_path"] == "org/x-base"
    assert f"refs/tags/{config['revision']}" in logged_in.repos["org/x-base"].refs


def test_a_merged_adapter_is_a_whole_network(logged_in, copy_run, open_gate):
    push_run(copy_run("text-peft"), Publication("org/x", merge=True))
    assert files(logged_in) == SENT


def test_what_an_earlier_push_left_and_would_disturb_is_taken_away(logged_in, copy_run, open_gate):
    push_run(copy_run("text-full"), Publication("org/x"))
    HfApi().upload_file(repo_id="org/x", path_or_fileobj=b"mine", path_in_repo="notes.txt")
    push_run(copy_run("text-peft"), Publication("org/x", include_base=True))
    assert "adapter_model.safetensors" in files(logged_in)
    assert "model.safetensors" not in files(logged_in)  # transformers would load it and not the adapter
    assert "notes.txt" in files(logged_in)


@pytest.mark.parametrize("content", [b"weights", None])
def test_a_repository_with_other_content_is_refused(logged_in, copy_run, open_gate, capsys, content):
    api = HfApi()
    api.create_repo("org/x", private=True)
    card = b"---\ntags: [other]\n---\n# Mine"
    path = "model.safetensors" if content else "README.md"
    api.upload_file(repo_id="org/x", path_or_fileobj=content or card, path_in_repo=path)
    assert cli.main(["push", str(copy_run("text-full")), "--repo_id", "org/x"]) == 2
    assert f"org/x holds files that hftl did not push: {path}" in capsys.readouterr().err
    assert files(logged_in) == {path}


# Faults of the Hub

FAULTS = {
    "401": (Fault(status=401), "The token is not valid. Log in with `hf auth login`"),
    "403": (Fault(status=403), "This token may not write there"),
    "404": (Fault(status=404, code="RepoNotFound"), "There is no such repository"),
    "409": (Fault(status=409), "409"),
    "429": (Fault(status=429, retry_after=3), "429"),
    "500": (Fault(status=500), "500"),
    "cut": (Fault(cut="request"), "RemoteProtocolError"),
}
PLACES = {
    "commit": ("POST", "/commit/"),
    "create": ("POST", "/api/repos/create"),
    "look": ("GET", "/api/models/org/x"),
}


@pytest.mark.parametrize(
    ("fault", "place"),
    [(fault, place) for fault in FAULTS for place in PLACES if (fault, place) != ("404", "look")],  # it is made then
)
def test_a_failure_keeps_the_run_says_what_was_sent_and_can_be_resumed(
    fault, place, logged_in, copy_run, open_gate, waits, capsys
):
    folder = copy_run("text-full")
    before = read_all(folder)
    logged_in.fail(*PLACES[place], FAULTS[fault][0], times=60)
    assert cli.main(["push", str(folder), "--repo_id", "org/x"]) == 5
    message = capsys.readouterr().err
    assert FAULTS[fault][1] in message
    assert "Not sent: README.md" in message and f"`hftl push {folder} --resume` goes on" in message
    assert logged_in.token not in message
    after = read_all(folder)
    assert {name: value for name, value in after.items() if name != "push.json"} == before
    is_retried = fault in {"409", "429", "500", "cut"}
    assert waits == ([1, 2, 4, 8, 16] if is_retried and fault != "429" else [4] * 5 if is_retried else [])
    if place == "commit":
        assert "Sent: model.safetensors. Not sent: README.md" in message and files(logged_in) == set()
    logged_in._rules.clear()
    assert cli.main(["push", str(folder), "--resume"]) == 0
    assert files(logged_in) == SENT
    assert len(logged_in.seen("PUT", "^/lfs/")) == 1  # the weights once


def test_a_repository_that_was_made_though_the_answer_was_lost_is_used(logged_in, copy_run, open_gate, waits):
    logged_in.fail("POST", "/api/repos/create", Fault(cut="answer"))
    push_run(copy_run("text-full"), Publication("org/x"))
    assert files(logged_in) == SENT and waits == [1]


def test_a_slow_hub_is_waited_for(logged_in, copy_run, open_gate):
    logged_in.fail("POST", "/commit/", Fault(delay_seconds=1.0))
    push_run(copy_run("text-full"), Publication("org/x"))
    assert files(logged_in) == SENT


def test_a_silent_hub_is_given_up(logged_in, copy_run, open_gate, waits, monkeypatch):
    monkeypatch.setattr(retries, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(retries, "WAITS", (1,))
    logged_in.fail("POST", "/commit/", Fault(delay_seconds=2.0), times=2)
    with pytest.raises(PublishError, match="ReadTimeout"):
        push_run(copy_run("text-full"), Publication("org/x"))


def test_short_trouble_is_waited_out_as_long_as_the_hub_asks(logged_in, copy_run, open_gate, waits):
    logged_in.fail("POST", "/commit/", Fault(status=429, retry_after=7))
    logged_in.fail("POST", "/commit/", Fault(status=503))
    push_run(copy_run("text-full"), Publication("org/x"))
    assert files(logged_in) == SENT and waits == [8, 2]


@pytest.mark.parametrize("more", [{}, {"create_pr": True}])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(logged_in, copy_run, open_gate, waits, more):
    HfApi().create_repo("org/x", private=True)
    logged_in.fail("POST", "/commit/", Fault(cut="answer"))
    push_run(copy_run("text-full"), Publication("org/x", **more))
    assert len(logged_in.repos["org/x"].commits) == 2 and len(waits) == 1
    assert len(logged_in.repos["org/x"].pull_requests) == (1 if more else 0)


def test_weights_that_cannot_be_sent_are_named(logged_in, copy_run, open_gate, waits):
    logged_in.fail("PUT", "^/lfs/", Fault(status=500), times=99)
    with pytest.raises(PublishError, match="Sent: nothing. Not sent: README.md, config.json, model.safetensors"):
        push_run(copy_run("text-full"), Publication("org/x"))


def test_a_tag_that_cannot_be_set_says_that_the_files_are_there(logged_in, copy_run, open_gate):
    logged_in.fail("POST", "/tag/", Fault(status=403))
    with pytest.raises(PublishError, match="All 5 files are there .* but the commit has no tag yet"):
        push_run(copy_run("text-full"), Publication("org/x"))


def test_what_is_committed_in_between_is_looked_at_again(logged_in, copy_run, open_gate, waits):
    """412: another commit came first. It is no reason to overwrite what it brought, nor to give up."""
    push_run(copy_run("text-full"), Publication("org/x"))
    logged_in.fail("POST", "/commit/", Fault(status=412))
    push_run(copy_run("text-scratch"), Publication("org/x"))
    assert len(commits(logged_in)) == 3 and waits == [1]


def test_an_adapter_and_the_network_merged_from_it_have_tags_of_their_own(logged_in, copy_run, open_gate, capsys):
    """A tag that is there stays where it is: the merged network would be announced under that of the adapter."""
    run = copy_run("text-peft")
    for flag in ("--include_base", "--merge"):
        assert cli.main(["push", str(run), "--repo_id", "org/x", flag]) == 0
        commit, tag = re.search(r"pushed to org/x at (\w+), tag (\S+)", capsys.readouterr().out).groups()
        assert HfApi().model_info("org/x", revision=tag).sha == commit


# What was local and looks like an id of the Hub once it has moved


def rename(run: Path, base: str = "org/local-base", source: str = "org/patients.csv") -> Path:
    """A run that was made beside its base and data, under relative names, and is pushed from elsewhere."""
    record = RunRecord.read(run)
    record.model["name"], record.data["source"] = base, source
    record.write(run)
    return run


@pytest.mark.parametrize(
    ("kind", "flags"), [("text-full", {}), ("text-scratch", {}), ("image-full", {}), ("lm-full", {})]
)
def test_the_hub_is_not_asked_for_names_of_files_and_folders_that_have_moved(
    kind, flags, logged_in, copy_run, open_gate, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with_licence = b"---\nlicense: wtfpl\n---\n"
    for name, kind_of in (("org/local-base", "model"), ("org/patients.csv", "dataset")):
        HfApi().create_repo(name, repo_type=kind_of)
        HfApi().upload_file(path_or_fileobj=with_licence, path_in_repo="README.md", repo_id=name, repo_type=kind_of)
    logged_in.requests.clear()
    push_run(rename(copy_run(kind)), Publication("org/x", **flags))
    asked = [str(request) for request in logged_in.requests if re.search("local-base|patients", str(request))]
    card = read_file(logged_in, "README.md").decode()
    assert not asked and "wtfpl" not in card and "datasets:" not in card


@pytest.mark.parametrize("flags", [{}, {"include_base": True}, {"merge": True}])
def test_a_base_that_has_moved_is_not_taken_for_one_of_the_hub(flags, logged_in, copy_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((PublishError, UserError), match="is on this machine only|which is not there"):
        push_run(rename(copy_run("text-peft")), Publication("org/x", **flags))


# What others do to the repository meanwhile


@pytest.fixture
def meanwhile(logged_in, monkeypatch):
    """Function: what a colleague does once this push has looked at the repository, before it commits."""

    def arrange(function):
        real, done = HfApi.create_commit, []

        def create_commit(self, *args, **kwargs):
            if not done:
                done.append(1)
                with monkeypatch.context() as patch:
                    patch.setattr(HfApi, "create_commit", real)
                    function()
            return real(self, *args, **kwargs)

        monkeypatch.setattr(HfApi, "create_commit", create_commit)

    return arrange


def read_file(hub, path: str, repo_id: str = "org/x") -> bytes:
    return hub.repos[repo_id].find("main").files[path].content


def upload(path: str, content: bytes, repo_id: str = "org/x") -> None:
    HfApi().upload_file(repo_id=repo_id, path_or_fileobj=content, path_in_repo=path)


def test_weights_that_a_colleague_commits_meanwhile_are_not_overwritten(
    logged_in, copy_run, open_gate, waits, meanwhile, capsys
):
    folder = copy_run("text-full")
    push_run(folder, Publication("org/x"))
    meanwhile(lambda: upload("model.safetensors", b"of a colleague"))
    assert cli.main(["push", str(copy_run("text-scratch")), "--repo_id", "org/x"]) == 2
    assert "somebody changed model.safetensors in org/x" in capsys.readouterr().err
    assert read_file(logged_in, "model.safetensors") == b"of a colleague"


def test_an_adapter_pushed_meanwhile_does_not_end_beside_a_whole_model(
    logged_in, copy_run, open_gate, waits, meanwhile, capsys
):
    full, adapter = copy_run("text-full"), copy_run("text-peft")
    meanwhile(lambda: push_run(adapter, Publication("org/x", include_base=True)))
    assert cli.main(["push", str(full), "--repo_id", "org/x"]) == 2
    assert "adapter_model.safetensors" in files(logged_in) and "model.safetensors" not in files(logged_in)
    assert cli.main(["push", str(full), "--repo_id", "org/x"]) == 0  # knowing of it, it is replaced
    assert files(logged_in) == SENT


def test_files_of_others_that_come_meanwhile_stay_beside_the_push(logged_in, copy_run, open_gate, waits, meanwhile):
    push_run(copy_run("text-full"), Publication("org/x"))
    meanwhile(lambda: upload("notes.txt", b"mine"))
    push_run(copy_run("text-scratch"), Publication("org/x"))
    assert files(logged_in) == SENT | {"notes.txt"} and waits == [1]
    history = logged_in.repos["org/x"].history("main")
    assert len(history) == 4 and "notes.txt" in history[1].files  # committed on the head that was looked at again


def test_foreign_files_that_come_meanwhile_stop_the_push(logged_in, copy_run, open_gate, waits, meanwhile, capsys):
    meanwhile(lambda: upload("README.md", b"# A page of its own"))
    assert cli.main(["push", str(copy_run("text-full")), "--repo_id", "org/x"]) == 2
    assert "org/x holds files that hftl did not push: README.md" in capsys.readouterr().err
    assert files(logged_in) == {"README.md"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "tf_model.h5", "model.fp16.safetensors"])
def test_weights_of_others_beside_those_of_a_push_stop_it(logged_in, copy_run, open_gate, capsys, name):
    push_run(copy_run("text-full"), Publication("org/x"))
    upload(name, b"weights")
    assert cli.main(["push", str(copy_run("text-scratch")), "--repo_id", "org/x"]) == 2
    assert f"org/x holds {name}, which hftl did not push" in capsys.readouterr().err


def test_a_pull_request_does_not_put_two_kinds_of_weights_side_by_side(logged_in, copy_run, open_gate, capsys):
    push_run(copy_run("text-full"), Publication("org/x"))
    adapter, place = copy_run("text-peft"), ["--create_pr", "--repo_id"]
    record = RunRecord.read(adapter)
    record.model |= {
        "name": "org/bert",
        "revision": "a" * 40,
        "weights": None,
    }  # which no base beside it has to go with
    record.write(adapter)
    assert cli.main(["push", str(adapter), *place, "org/x"]) == 0
    proposed = files(logged_in, revision="refs/pr/1")
    assert "adapter_model.safetensors" in proposed and "model.safetensors" not in proposed
    HfApi().create_repo("org/foreign", private=True)
    upload("model.safetensors", b"weights", "org/foreign")
    assert cli.main(["push", str(adapter), *place, "org/foreign"]) == 2
    assert "org/foreign holds model.safetensors, which hftl did not push" in capsys.readouterr().err


EDITS = {
    "a section": lambda card: card.replace("## Cost", "## Who may use it\n\nNobody.\n\n## Cost"),
    "the licence": lambda card: card.replace("library_name:", "license: mit\nlibrary_name:"),
    "words at the end": lambda card: card + "\nAsk Ada first.\n",
    "all of it": lambda card: "---\ntags: [hftl]\n---\n# My own page\n",
    "one letter": lambda card: card.replace("Limits", "Limit5"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_card_that_was_edited_by_hand_is_kept_and_that_is_said(logged_in, copy_run, open_gate, caplog, edit):
    push_run(copy_run("text-full"), Publication("org/x"))
    edited = EDITS[edit](read_file(logged_in, "README.md").decode()).encode()
    upload("README.md", edited)
    push_run(copy_run("text-scratch"), Publication("org/x"))
    assert read_file(logged_in, "README.md") == edited
    assert "README.md in org/x was edited by hand since hftl wrote it, so it is kept" in caplog.text
    assert len(commits(logged_in)) == 4  # the weights of the second run are there


def test_a_card_that_is_edited_meanwhile_is_kept(logged_in, copy_run, open_gate, waits, meanwhile, caplog):
    push_run(copy_run("text-full"), Publication("org/x"))
    edited = read_file(logged_in, "README.md") + b"\nAsk Ada first.\n"
    meanwhile(lambda: upload("README.md", edited))
    push_run(copy_run("text-scratch"), Publication("org/x"))
    assert read_file(logged_in, "README.md") == edited and "is kept" in caplog.text


def test_a_card_that_nobody_touched_is_replaced_without_a_word(logged_in, copy_run, open_gate, caplog):
    push_run(copy_run("text-full"), Publication("org/x"))
    push_run(copy_run("text-scratch"), Publication("org/x"))
    assert b"trained from random weights" in read_file(logged_in, "README.md") and "is kept" not in caplog.text


def test_a_pull_request_proposes_the_card_that_was_edited(logged_in, copy_run, open_gate):
    push_run(copy_run("text-full"), Publication("org/x"))
    edited = read_file(logged_in, "README.md") + b"\nAsk Ada first.\n"
    upload("README.md", edited)
    push_run(copy_run("text-scratch"), Publication("org/x", create_pr=True))
    assert read_file(logged_in, "README.md") == edited
    assert b"random weights" in logged_in.repos["org/x"].find("refs/pr/1").files["README.md"].content


def test_the_gate_stands_in_front_of_the_network(logged_in, copy_run, capsys):
    folder = copy_run("text-full")
    (folder / ".env").write_text("HF_TOKEN=1")
    assert cli.main(["push", str(folder), "--repo_id", "org/x"]) == 5
    assert "stray file: the file .env" in capsys.readouterr().err
    assert logged_in.requests == [] or not logged_in.seen("POST", "")


# Flags


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give the folder of a run, or --report"),
        (["RUN"], "Give --repo_id ORG/NAME"),
        (["RUN", "--repo_id", "x"], "--repo_id is 'x'; give ORG/NAME"),
        (["RUN", "--repo_id", "org/x", "--token", "hf_a"], "--token would end in lists of processes"),
        (["RUN", "--repo_id", "org/x", "--pubic"], "Did you mean '--public'"),
        (["RUN", "--repo_id", "org/x", "--create_pr", "--revision", "b"], "--create_pr proposes a change of main"),
        (["RUN", "--repo_id", "org/x", "--create_pr", "--include_base"], "--include_base makes a repository"),
        (["RUN", "--repo_id", "org/x", "--subfolder", "../x"], "--subfolder is '../x'; give a path in the repository"),
        (["RUN", "--resume"], "No push of .* was begun"),
        (["--report", "nothing", "--repo_id", "org/x"], "There is no results.json in nothing"),
        (["nothing", "--repo_id", "org/x"], "nothing is not a run folder"),
    ],
)
def test_mistyped_flags_say_what_to_type(words, message, logged_in, make_run, capsys):
    words = [word.replace("RUN", str(make_run("text-full"))) for word in words]
    assert cli.main(["push", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert logged_in.requests == []


def test_without_a_token_or_offline_nothing_is_computed(hub, make_run, monkeypatch):
    with pytest.raises(UserError, match="There is no token of the Hub. Log in with `hf auth login`"):
        push_run(make_run("text-full"), Publication("org/x"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push_run(make_run("text-full"), Publication("org/x"))


# At the end of a run


def words_of_a_run(files: Path, out: Path, *more: str) -> list[str]:
    words = [*list_flags(files, "text"), "--use_cpu", "--max_steps", "1", "--output_dir", str(out)]
    return [*words, "--model_name_or_path", f"{files}/bert", "--push_to_hub", "--hub_model_id", "org/x", *more]


def test_a_run_is_pushed_when_it_is_whole(logged_in, published_files, tmp_path, open_gate):
    out = tmp_path / "run"
    run(parse_args(words_of_a_run(published_files, out, "--hub_revision", "first"), mode="full"))
    assert files(logged_in, revision="first") == SENT and files(logged_in) == set()
    assert "push_to_hub" not in (out / "config.yaml").read_text()  # run again, it does not overwrite what was pushed
    assert len(logged_in.seen("POST", "/commit/")) == 1  # Trainer itself sends nothing


def test_a_push_that_fails_at_the_end_of_a_run_leaves_the_run_complete(
    logged_in, published_files, tmp_path, open_gate, capsys
):
    out = tmp_path / "run"
    logged_in.fail("POST", "/api/repos/create", Fault(status=403))
    words = words_of_a_run(published_files, out, "--mode", "peft")
    assert cli.main(["train", *words]) == 5
    assert f"`hftl push {out} --resume` goes on with it" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["status"] == "completed"
    assert (out / "adapter_model.safetensors").is_file() and (out / "predictions.parquet").is_file()
    assert cli.main(["push", str(out), "--resume"]) == 0
    assert "adapter_model.safetensors" in files(logged_in)
    assert "model.safetensors" in files(logged_in, "org/x-base")  # the base is on this machine only


def test_whatever_goes_wrong_with_a_push_at_the_end_the_run_is_whole(
    logged_in, published_files, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise ZeroDivisionError(f"odd {logged_in.token}")

    monkeypatch.setattr("hftl.hub.push.pass_gate", fail)
    with pytest.raises(PublishError, match=r"is complete in .*odd hf_\[redacted") as error:
        run(parse_args(words_of_a_run(published_files, tmp_path / "run"), mode="full"))
    assert logged_in.token not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--push_to_hub"], "--hub_model_id is None; give ORG/NAME"),
        (["--push_to_hub", "--hub_model_id", "x"], "--hub_model_id is 'x'"),
        (["--hub_model_id", "org/x"], "--hub_model_id is for --push_to_hub, which is not given"),
        (
            ["--push_to_hub", "--hub_model_id", "org/x", "--hub_strategy", "every_save"],
            "--hub_strategy can only be end",
        ),
        (["--push_to_hub", "--hub_model_id", "org/x", "--hub_always_push"], "--hub_always_push is for pushes while"),
        (["--push_to_hub", "--hub_model_id", "org/x"], "There is no token of the Hub"),
    ],
)
def test_a_push_that_cannot_work_is_refused_before_training(words, message, hub, published_files):
    args = parse_args([*list_flags(published_files, "text"), "--model_name_or_path", "x", *words], mode="full")
    check_arguments(args)
    with pytest.raises(UserError, match=message):
        take_publication(args)


def test_flags_of_trainer_mean_what_they_say(logged_in, published_files):
    base = [*list_flags(published_files, "text"), "--push_to_hub", "--hub_model_id", "org/x"]
    local = ["--model_name_or_path", f"{published_files}/bert"]

    def take(mode, *more):
        return take_publication(parse_args([*base, *more], mode=mode))

    assert take("full", *local) == Publication("org/x")
    assert take("full", *local, "--hub_private_repo", "false").public
    assert not take("full", *local, "--hub_private_repo", "true").public
    assert take("full", *local, "--hub_revision", "b").revision == "b"
    assert take("peft", *local).include_base and not take("peft", "--model_name_or_path", "org/bert").include_base
    assert take_publication(parse_args([*list_flags(published_files, "text"), *local], mode="full")) is None


# Reports


SECRET_ROW = "the patient Ada Lovelace"


@pytest.fixture
def report(tmp_path) -> Path:
    """A comparison whose results name paths of many kinds of machines, and whose one failure quotes a row."""
    folder = tmp_path / "campaign"
    folder.mkdir()
    results = build_results()
    results["command"] = "hftl compare /gpfs/alice/a.yaml --output_dir=~/alice/out"
    results["question"]["data"] = r"\\server\alice\my data\train.csv"
    results["question"]["checkpoint"] = "s3://alice:password@bucket/alice/base"
    results["arms"][0]["settings"] = {"train_file": "/lustre/alice smith/train.csv", "pretrain_file": "../alice/a.txt"}
    error = f"UserError: row 5 of '/nfs/my alice/x.csv' says {SECRET_ROW}"
    results["failures"] = [{"arm": "full", "size": 64, "seed": 1, "status": "failed", "error": error}]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "report.html").write_text("<p>by hand in /home/alice</p>")
    (folder / "secret.env").write_text("A=1")
    return folder


def read_page(hub) -> dict[str, bytes]:
    return {path: file.content for path, file in hub.repos["spaces/org/page"].find("main").files.items()}


def test_a_report_becomes_a_static_space(logged_in, report, capsys):
    assert cli.main(["push", "--report", str(report), "--repo_id", "org/page"]) == 0
    names = files(logged_in, "spaces/org/page")
    assert {"README.md", "index.html", "report.md", "results.json", "figures/learning-curves.png"} <= names
    front = logged_in.repos["spaces/org/page"].find("main").files["README.md"].content.decode()
    assert "sdk: static" in front and "app_file: index.html" in front
    assert logged_in.repos["spaces/org/page"].is_private
    assert cli.main(["push", "--report", str(report), "--repo_id", "org/page"]) == 0  # again: no other content
    assert len(commits(logged_in, "spaces/org/page")) == 2
    assert "pushed to spaces/org/page at" in capsys.readouterr().out


@pytest.mark.parametrize(
    "token",
    ["hf_" + "a" * 34, "hf_oauth_" + "aB3-_" * 6, "hf_jwt_eyJhbGciOiJIUzI1NiJ9.e30.abc", "api_org_" + "a" * 34],
)
def test_a_report_with_a_token_in_it_is_not_published(logged_in, report, capsys, token):
    results = json.loads((report / "results.json").read_text()) | {"command": f"hftl {token}"}
    (report / "results.json").write_text(json.dumps(results))
    assert cli.main(["push", "--report", str(report), "--repo_id", "org/page"]) == 5
    assert "token: results.json holds a token" in capsys.readouterr().err and logged_in.requests == []


def test_a_published_report_names_files_and_no_folder_user_or_password(logged_in, report, capsys):
    assert cli.main(["push", "--report", str(report), "--repo_id", "org/page"]) == 0
    sent = read_page(logged_in)
    for path in ("index.html", "report.md", "results.json"):
        text = sent[path].decode()
        assert "train.csv" in text or path == "results.json"
        found = [
            word
            for word in ("alice", "gpfs", "lustre", "nfs", "server", "bucket/", "smith", "password")
            if word in text.lower()
        ]
        assert found == [], path
    published = json.loads(sent["results.json"])
    assert published["question"]["data"] == "train.csv" and published["question"]["checkpoint"] == "base"
    assert published["command"] == "hftl compare a.yaml --output_dir=out"
    assert published["arms"][0]["settings"] == {"train_file": "train.csv", "pretrain_file": "a.txt"}
    assert "alice" in (report / "results.json").read_text()  # what lies here stays


@pytest.mark.parametrize("is_shared", [False, True])
def test_rows_that_an_error_quotes_are_published_only_if_asked_for(logged_in, report, is_shared):
    words = ["push", "--report", str(report), "--repo_id", "org/page", *(["--share_rows"] if is_shared else [])]
    assert cli.main(words) == 0
    sent = read_page(logged_in)
    for path in ("index.html", "report.md", "results.json"):
        assert (SECRET_ROW in sent[path].decode()) is is_shared, path
    (failure,) = json.loads(sent["results.json"])["failures"]
    assert failure["error"] == (f"UserError: row 5 of 'x.csv' says {SECRET_ROW}" if is_shared else "UserError")


def test_labels_with_a_slash_stay_labels_in_a_published_report(logged_in, report):
    results = json.loads((report / "results.json").read_text())
    names = ["/m/01g317", "T-shirt/top"]
    results["per_class"] = {"size": 64, "rows": [{"arm": "full", "label": name, "f1": 0.5} for name in names]}
    (report / "results.json").write_text(json.dumps(results))
    assert cli.main(["push", "--report", str(report), "--repo_id", "org/page"]) == 0
    published = json.loads(read_page(logged_in)["results.json"])
    assert [row["label"] for row in published["per_class"]["rows"]] == names


def test_a_card_of_a_space_that_was_edited_is_kept(logged_in, report, caplog):
    for _ in range(2):
        assert cli.main(["push", "--report", str(report), "--repo_id", "org/page"]) == 0
        card = read_page(logged_in)["README.md"].decode()
        if "emoji" not in card:
            edited = card.replace("pinned: false", "pinned: true\nemoji: x").encode()
            api = HfApi()
            api.upload_file(repo_id="org/page", repo_type="space", path_or_fileobj=edited, path_in_repo="README.md")
    assert b"emoji" in read_page(logged_in)["README.md"]
    assert "README.md in org/page was edited by hand" in caplog.text


def test_a_dry_run_of_a_report_lists_its_files(hub, report, capsys):
    assert cli.main(["push", "--report", str(report), "--repo_id", "org/page", "--dry_run"]) == 0
    assert "index.html" in capsys.readouterr().out and hub.requests == []
