"""The page to try a model: what it shows is what the network says, on this machine alone, with a real click."""

import gc
import importlib.util
import re
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import hftl
from hftl import cli
from hftl.config import parse_args
from hftl.errors import UserError
from hftl.run import run
from tests import tiny

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs the extra demo-ui"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of gradio and what it uses
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # event loops that it leaves open
]


@pytest.fixture(autouse=True)
def collected():
    """What gradio leaves is collected here, where it may be ignored, and not in the middle of another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return hftl.load(str(tiny.write_tiny_llama(tmp_path_factory.mktemp("language") / "llama")))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    for split, n in (("train", 12), ("test", 6)):
        tiny.write_image_folder(folder / "data" / split, n)
    words = ["--task", "image-classification", "--dataset", f"{folder}/data", "--use_cpu", "--max_steps", "1"]
    words += ["--model_name_or_path", str(tiny.write_tiny_vit(folder / "vit")), "--output_dir", f"{folder}/run"]
    run(parse_args(words, mode="full"))
    return hftl.load(f"{folder}/run")


def test_the_answer_of_the_page_is_that_of_the_network(train_once):
    from hftl.inference.demo import answer_one, describe, read_examples

    predictor = hftl.load(str(train_once("peft", "--max_steps", "3")))
    (examples, *_), (expected,) = read_examples(predictor), predictor.predict([read_examples(predictor)[0][0]])
    found = answer_one(predictor, examples)
    assert len(found) == 3 and sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert max(found, key=found.get) == expected["label"] and max(found.values()) == expected["probability"]
    assert describe(predictor).startswith("run: lora on ")
    with pytest.raises(UserError, match="Write a text"):
        answer_one(predictor, [" "])


def test_a_model_that_writes_and_one_that_looks(language, image):
    from hftl.inference.demo import answer_one, build_page, read_examples

    assert isinstance(answer_one(language, ["what is a word:"]), str)
    ((picture,), *_) = read_examples(image)
    assert sum(answer_one(image, [picture]).values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="Give an image"):
        answer_one(image, [None])
    for models in ([image, image], [image]):  # gradio takes no list of one
        (ask, *_) = (function.fn for function in build_page(models).fns.values())
        assert ask(picture) == (
            [answer_one(image, [picture])] * 2 if len(models) > 1 else answer_one(image, [picture])
        )
    build_page([language])


def test_the_page_leaves_the_numbers_and_the_transparency_of_an_image_alone(image):
    """`RGB`, which is what gradio takes by default, would cut 16 bits off at 255 and lay transparency on black."""
    from hftl.inference.demo import build_page

    (found,) = [block for block in build_page([image]).blocks.values() if type(block).__name__ == "Image"]
    assert found.image_mode is None


def test_two_models_that_read_different_things_are_refused(language, image):
    from hftl.inference.demo import Demo

    with pytest.raises(UserError, match="read different things, so they cannot answer the same input"):
        Demo([language, image])


def test_a_task_that_the_page_cannot_show_is_said(image, monkeypatch):
    from hftl.inference.demo import Demo

    monkeypatch.setattr(image.task, "fits_head", False, raising=False)
    with pytest.raises(UserError, match="answers image-classification. Ask it with `hftl predict`"):
        Demo([image])


def test_a_port_that_is_taken_is_said(train_once, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["demo", str(train_once("peft", "--max_steps", "3")), "--port", port]) == 2
    assert f"Port {port} is taken or not allowed. Name a free one with --port." in capsys.readouterr().err


def test_without_gradio_the_command_says_what_to_install(train_once, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", str(train_once("peft", "--max_steps", "3"))]) == 2
    assert 'pip install "hftl[demo-ui]"' in capsys.readouterr().err


# Who may ask


@pytest.fixture(scope="module")
def served(image):
    """A page with images of the run as examples."""
    from hftl.inference.demo import Demo

    demo = Demo([image])
    yield demo
    demo.close()


def ask(url, **headers):
    """Status, text and cookie of an answer."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(errors="replace"), answer.headers.get("Set-Cookie", "")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace"), ""


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "[::1]:80", "localhost.", "0"]
)
def test_a_page_is_not_served_under_the_name_of_a_stranger(served, host):
    status, text, _ = ask(served.url, Host=host)
    assert status == 400 and "photos" not in text and "file" not in text.lower()


def test_a_page_is_served_to_who_has_the_key_and_its_cookie_does_for_the_rest(served):
    place, _, key = served.url.partition("?key=")
    status, page, cookie = ask(served.url)
    assert status == 200 and "gradio" in page and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert ask(f"{place}config", Cookie=cookie.partition(";")[0])[0] == 200
    assert ask(served.url, Host=f"localhost:{place.rpartition(':')[2].strip('/')}")[0] == 200
    assert len(key) >= 32


@pytest.mark.parametrize(
    "path", ["", "config", "gradio_api/info", "?key=", "?key=wrong", "gradio_api/queue/data?session_hash=a"]
)
def test_another_user_of_the_machine_gets_nothing(served, path):
    place = served.url.partition("?key=")[0]
    for cookie in ("", "hftl-0=x", f"hftl-{place.rpartition(':')[2].strip('/')}=wrong"):
        status, text, _ = ask(place + path, Cookie=cookie)
        assert status == 401 and text.startswith("Open the whole address that hftl demo printed")


def test_the_files_of_a_page_are_its_users_alone_and_go_with_it(image):
    from hftl.inference.demo import Demo

    demo = Demo([image])
    _, config, _ = ask(demo.url.replace("?", "config?"))
    paths = {Path(path) for path in re.findall(r'"path":\s*"(/[^"]+)"', config)}
    folder = Path(demo._files.name)
    assert paths and all(path.is_relative_to(folder) and path.is_file() for path in paths)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    demo.close()
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
def test_a_click_in_a_browser_shows_the_answers_of_two_models(train_once):
    """The command as a user starts it; nothing on the page comes from another machine."""
    pytest.importorskip("playwright.sync_api")
    folders = [train_once(mode, "--max_steps", "3") for mode in ("peft", "full")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hftl", "demo", *map(str, folders), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().split()[0]
            assert url.startswith(f"http://127.0.0.1:{port}/?key=")
            click_through(url, [hftl.load(str(folder)) for folder in folders])
        finally:
            server.terminate()


def click_through(url, predictors):
    """Ask the page with a mouse, and compare what it shows."""
    from playwright.sync_api import sync_playwright

    text, asked = " ".join(tiny.CLASS_WORDS[0]), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.get_by_label("Text").first.fill(text)
        page.get_by_role("button", name="Predict").click()
        headings = page.get_by_test_id("label-output-value")
        headings.nth(1).wait_for()
        shown = [heading.strip() for heading in headings.all_inner_texts()]
        assert shown == [predictor.predict([text])[0]["label"] for predictor in predictors]
        page.get_by_label("Text").first.fill("")
        page.get_by_role("button", name="Predict").click()
        page.get_by_text("Write a text.").wait_for()
        browser.close()
    here = (url.partition("?")[0], "data:", "blob:")
    assert {address for address in asked if not address.startswith(here)} == set()
