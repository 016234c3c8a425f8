"""`robustcli view`: what it lists, that it neither writes nor leaves its folder, and how it looks."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from robustcli.cli.launch import launch
from robustcli.report.sweep import write, write_page
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError
from robustcli.view.listing import find, inside
from robustcli.view.server import serve

from ..browser import WIDTHS, chromium, errors, sized

uvicorn = pytest.importorskip("uvicorn", reason="the extra `view` is not installed")
browser = pytest.fixture(scope="module")(chromium)
ODD = '<script>alert(1)</script> & "quoted" שלום'
SECRET = "what stands outside"
Get = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all kinds: judged, failed, stopped, damaged, a sweep, and links that lead out."""
    place = tmp_path_factory.mktemp("runs")
    root = place / "outputs"
    words = ["dataset=digits", "evaluation.limit=8", "attacks=none", "attack=pgd", "attack.steps=1", "diagnostics=off"]
    words += ["models={one: digits, two: digits}", "evaluation.resamples=10", "evaluation.eps_curve=[]", "seed=7"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTCLI_CACHE", str(place / "cache"))
        assert launch("evaluate", [*words, f"hydra.run.dir={root / 'evaluate' / 'a'}"]) == 0
    for number, end in enumerate((None, ValueError(f"it broke {ODD}"), KeyboardInterrupt())):
        try:
            with Run.open("train-mat", {}, root / "sweep" / str(number), [f"seed={number}", f"note={ODD}"]) as run:
                run.write_report("# Report", f"<p>the report of {number}</p>")
                if end is not None:
                    raise end
                run.finish(0.5)
        except (ValueError, KeyboardInterrupt):
            pass
    write(root / "sweep")
    write_page(root / "sweep")
    (root / "broken").mkdir()
    (root / "broken" / "manifest.json").write_text("{")
    (place / "outside").mkdir()
    (place / "outside" / "report.html").write_text(SECRET)
    (place / "outside" / "manifest.json").write_text(json.dumps({"command": SECRET}))
    (root / "link").symlink_to(place / "outside")
    with Run.open("evaluate", {}, root / "linked", []) as run:
        run.finish(0.0)
    (root / "linked" / "report.html").symlink_to(place / "outside" / "report.html")
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[int]:
    """The port of a server over ``root``."""
    from robustcli.view.app import create

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create(root), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture
def get(server: int) -> Get:
    def ask(path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, dict[str, str], str]:
        connection = HTTPConnection("127.0.0.1", server, timeout=60)
        connection.request(method, path, headers={"Host": host})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
        connection.close()
        return found

    return ask


def test_every_run_and_sweep_is_listed_with_how_it_ended(root: Path) -> None:
    found = {each.path: each for each in find(root)}
    kinds = {path: (each.kind, each.status, each.has_page) for path, each in found.items()}
    assert kinds == {
        "evaluate/a": ("evaluate", "done", True),
        "sweep": ("sweep", "done", True),
        "sweep/0": ("train-mat", "done", True),
        "sweep/1": ("train-mat", "failed", True),
        "sweep/2": ("train-mat", "interrupted", True),
        "broken": ("", "damaged", False),
        "linked": ("evaluate", "done", False),
    }
    assert found["sweep/0"].objective == 0.5 and found["sweep/1"].note.startswith("ValueError: it broke")
    assert "seed=7" in found["evaluate/a"].settings


def test_the_list_is_filtered_and_texts_of_users_stay_texts(get: Get) -> None:
    status, headers, page = get("/")
    assert status == 200 and "7 of 7 in" in page and "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in headers["content-security-policy"]
    for query, count in (
        ({"q": "seed=7"}, 1),
        ({"q": "SEED=1 broke"}, 1),
        ({"kind": "train-mat"}, 3),
        ({"status": "failed"}, 1),
    ):
        assert f"{count} of 7 in" in get("/?" + urlencode(query))[2], query
    assert 'value="&lt;b&gt;&#34;"' in get("/?" + urlencode({"q": '<b>"'}))[2]


def test_reports_are_served_as_they_are_and_may_ask_nothing(get: Get, root: Path) -> None:
    status, headers, page = get("/run/evaluate/a/report.html")
    assert status == 200 and page == (root / "evaluate" / "a" / "report.html").read_text()
    assert headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert "3 jobs" in get("/run/sweep/report.html")[2]


@pytest.mark.parametrize(
    "path",
    [
        "/run/link/report.html",
        "/run/linked/report.html",
        "/run/../outside/report.html",
        "/run/%2e%2e/outside/report.html",
        "/run/..%2foutside/report.html",
        "/run/evaluate/../../outside/report.html",
        "/run//etc/passwd/report.html",
        "/run/evaluate%00/report.html",
        "/run/nowhere/report.html",
        "/run/evaluate/a/manifest.json",
        "/manifest.json",
        "/compare?run=link&run=evaluate/a",
        "/compare?run=../outside&run=evaluate/a",
    ],
)
def test_nothing_outside_of_the_folder_and_no_other_file_is_sent(path: str, get: Get) -> None:
    status, _, page = get(path)
    assert status == 404 and SECRET not in page and "root:" not in page


def test_a_place_is_inside_only_without_a_step_up_or_a_link(root: Path) -> None:
    assert inside(root, "evaluate/a") == root / "evaluate" / "a"
    assert not any(
        inside(root, path) for path in ("", "..", "/etc", "evaluate/../..", "link", "link/report.html", "a\0")
    )


def test_nothing_can_be_written_and_no_other_host_is_answered(get: Get, root: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert all(get(path, method)[0] == 405 for path in ("/", "/compare", "/run/evaluate/a/report.html"))
    assert get("/", host="evil.example")[0] == 400 and get("/", host="localhost")[0] == 200
    get("/")
    get("/compare?run=evaluate/a")
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


def test_two_models_are_compared_and_what_cannot_be_is_a_sentence(get: Get) -> None:
    _, _, page = get("/compare?run=evaluate/a&model=one&model=two")
    assert "two against one, queries answered rightly" in page and "+0.0" in page
    assert "two against one" in get("/compare?run=evaluate/a")[2], "of one run the first and the last"
    assert "holds no finished run" in get("/compare?run=evaluate/a&run=sweep/1")[2]
    assert "no model &#39;three&#39;" in get("/compare?run=evaluate/a&model=one&model=three")[2]
    assert "Choose two runs" in get("/compare")[2]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_the_console_is_silent(browser: Any, server: int, width: int) -> None:
    sized(browser, width)
    for path in (
        "",
        "?" + urlencode({"q": ODD}),
        "compare?run=evaluate/a",
        "run/sweep/report.html",
        "run/evaluate/a/report.html",
    ):
        browser.get(f"http://127.0.0.1:{server}/{path}")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, path
        assert errors(browser) == [], path


def test_two_that_are_marked_are_compared_by_hand(browser: Any, server: int) -> None:
    sized(browser, 1440)
    browser.get(f"http://127.0.0.1:{server}/?kind=evaluate")
    browser.execute_script("document.querySelector('input[value=\"evaluate/a\"]').click()")
    browser.execute_script("document.querySelector('form[action=\"/compare\"] p button').click()")
    for _ in range(100):
        if "against" in browser.execute_script("return document.body.innerText"):
            break
        time.sleep(0.1)
    assert quote("evaluate/a", safe="") in browser.current_url and errors(browser) == []


def test_a_folder_or_a_port_that_cannot_be_served_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no directory"):
        serve(tmp_path / "none", port=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="choose another with --port"):
            serve(tmp_path, port=taken.getsockname()[1])
