"""The live page: what the server answers and to whom, when the report is written again, and what a browser shows."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from builders import FakeStages, evidence, failed_cell, run_spec, scored, store

from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.catalog.cells import Cell
from pruneaudit.errors import ConfigError, DamagedError
from pruneaudit.ledger.store import Ledger
from pruneaudit.report import serve as serving
from pruneaudit.report import watch as watching
from pruneaudit.report.serve import Server, Site
from pruneaudit.report.watch import Keeper

PATIENCE = 60.0
HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\n🦊"


@pytest.fixture
def ledger(tmp_path):
    """Two measured cells."""
    found = Ledger(tmp_path / "ledger")
    store(found, scored(evidence("l1"), 90.0))
    store(found, scored(evidence("tpp"), 91.0))
    settle(found)
    return found


def settle(ledger):
    """Let the last change be some time ago: a folder that has just changed is looked at again."""
    os.utime(ledger.root / "cells", (time.time() - 60, time.time() - 60))


@contextmanager
def served(ledger, tmp_path, host="127.0.0.1"):
    """A server in a thread; its report was written once."""
    site = Site(ledger.root, tmp_path / "served")
    site._update_report()
    with Server(site, host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(ledger, tmp_path):
    with served(ledger, tmp_path) as running:
        yield running


def ask(server, path="/", method="GET", **headers):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=PATIENCE)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def progress(server):
    status, headers, body = ask(server, "/progress.json")
    assert status == 200 and headers["Content-Type"] == "application/json; charset=utf-8"
    return json.loads(body)


# What is answered


def test_the_page_is_one_file_under_a_policy_that_names_its_own_script_only(server):
    status, headers, page = ask(server)
    policy = headers["Content-Security-Policy"]
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert status == 200 and policy.startswith("default-src 'none'; ")
    assert page.count(f'nonce="{nonce}"') == page.count("<script") + page.count("<style") == 2
    assert not re.search(r"(src|href)=\"(?!progress\.json)|innerHTML|insertAdjacent|document\.write|\son\w+=", page)
    assert nonce not in ask(server)[2], "another one each time"
    assert headers["X-Content-Type-Options"] == "nosniff" and "frame-ancestors 'none'" in policy


def test_progress_names_cells_runs_and_the_report(ledger, server):
    facts = progress(server)
    assert facts["stored"] == {"ok": 2, "failed": 0} and facts["busy"] == [] and facts["left"] == ""
    assert sorted((row["cell"], row["accuracy"]) for row in facts["finished"]) == [
        ("lenet5-digits-l1-s3.2-r0.5-seed0", 90.0),
        ("lenet5-digits-tpp-s3.2-r0.5-seed0", 91.0),
    ]
    pages = [name for name in ("report.html", "report.md") if name in server.site.files]
    assert facts["report"]["page"] == pages[0] and not facts["report"]["error"]


def test_progress_follows_the_ledger(ledger, server, monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "_FRESH", 0.0)
    before = progress(server)
    assert before["counts"] == [] and before["share"] is None
    one = LocalExecutor(ledger, FakeStages(ledger, tmp_path / "log"), "session")
    one.share([run_spec(), run_spec(seed=9)], {"cell": [run_spec().run_id]})
    facts = {"run": "a-run", "id": run_spec(seed=9).run_id, "epoch": 3, "epochs": 8, "accuracy": 77.5}
    ledger.report_progress([{**facts, "started": time.time() - 5}])
    ledger.save_cell(failed_cell(Cell("lenet5-digits", "s3.2", "sfp", 0.5, 0), error=HOSTILE), "broken")
    after = progress(server)
    assert after["counts"] == ["1 of 1 cells", "1 of 2 runs"] and after["share"] == 1.0
    (run,) = after["busy"]
    assert (run["run"], run["epoch"], run["epochs"], run["accuracy"]) == ("a-run", 3, 8, 77.5)
    assert after["stored"] == {"ok": 2, "failed": 1}
    (failed,) = after["failed"]
    assert failed["cell"] == "broken" and failed["error"] == "<img src=x onerror=alert(1)> [2J 🦊"


def test_many_pages_cost_no_more_than_one(server, monkeypatch):
    looks = []
    monkeypatch.setattr(serving, "_FRESH", 3600.0)
    monkeypatch.setattr(server.site, "_progress", lambda: looks.append(1) or {})
    for _ in range(5):
        progress(server)
    assert len(looks) == 1


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    values = tuple(float(value) for value in range(1000))
    thinned = serving._thinned(values)
    assert len(thinned) == serving.MOST_POINTS and thinned[0] == 0.0 and thinned[-1] == 999.0
    assert serving._thinned(values[:120]) == list(values[:120])


def test_every_file_of_the_report_is_served_and_nothing_else(ledger, server, tmp_path):
    assert {"report.md", "results.json", "tables/cells.csv"} <= set(server.site.files)
    for name, path in server.site.files.items():
        status, headers, body = ask(server, f"/{name}")
        assert status == 200 and body == path.read_text(encoding="utf-8")
        assert headers["Content-Type"].split(";")[0] in ("text/plain", "text/html", "application/json", "image/svg+xml")
    (tmp_path / "served" / "secret.txt").write_text("secret")
    (tmp_path / "secret.txt").write_text("secret")
    for path in (
        "/secret.txt",
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/tables/../../secret.txt",
        f"/{tmp_path}/secret.txt",
        "//secret.txt",
        "/tables",
        "/report.md/",
        "/report.md%00",
    ):
        status, _, body = ask(server, path)
        assert (status, body) == (404, "not there\n"), path


def test_a_html_report_comes_before_the_text(ledger, tmp_path, monkeypatch):
    def write(results, folder):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text(name)
        return [folder / name for name in names]

    monkeypatch.setattr(watching, "write", write)
    for names, page in [(["report.md", "report.html"], "report.html"), (["report.md"], "report.md")]:  # noqa: B007
        with served(ledger, tmp_path) as server:
            assert progress(server)["report"]["page"] == page


# To whom


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_reading(server, method):
    status, headers, _ = ask(server, "/progress.json", method)
    assert status == 405 and headers["Allow"] == "GET, HEAD"


def test_head_has_the_headers_only(server):
    status, headers, body = ask(server, "/progress.json", "HEAD")
    assert status == 200 and int(headers["Content-Length"]) > 100 and body == ""


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8420", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:8420", 200),
        ("evil.example", 403),
        ("evil.example:8420", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_a_page_elsewhere_cannot_read_by_pointing_its_name_here(server, host, status):
    for path in ("/", "/progress.json", "/report.md"):
        assert ask(server, path, Host=host)[0] == status


def test_bound_to_all_addresses_any_name_will_do(ledger, tmp_path):
    with served(ledger, tmp_path, host="0.0.0.0") as server:
        assert not server.is_local and ask(server, Host="my-machine.example")[0] == 200


# When the report is written again


def test_the_report_is_written_when_cells_change_and_only_then(ledger, tmp_path):
    keeper = Keeper(Ledger(ledger.root, writable=False), tmp_path / "report")
    due = []
    for change in (lambda: None, lambda: store(ledger, scored(evidence("random"), 80.0)), lambda: None):
        change()
        due.append(keeper.is_due())
        if due[-1]:
            keeper._not_before = 0.0
            results, paths = keeper.update()
        settle(ledger)
        keeper._seen, keeper._not_before = keeper._changed(), 0.0
    assert due == [True, True, False]
    assert {row["method"] for row in results.cells} == {"l1", "tpp", "random"} and all(path.is_file() for path in paths)


def test_a_change_within_a_tick_of_the_clock_is_not_missed(ledger, tmp_path):
    keeper = Keeper(ledger, tmp_path / "report")
    os.utime(ledger.root / "cells")
    keeper.update()
    keeper._not_before = 0.0
    # Another cell may have come after the look, and the time of the folder would be the same.
    assert keeper.is_due()


def test_a_report_that_takes_long_is_written_less_often(ledger, tmp_path, monkeypatch):
    keeper = Keeper(ledger, tmp_path / "report")
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(*_):
        clock[0] += 10.0
        raise DamagedError("half there")

    monkeypatch.setattr(watching, "gather_ledger", slow)
    with pytest.raises(DamagedError):
        keeper.update()
    os.utime(ledger.root / "cells")
    due = []
    for clock[0] in (20.0, 59.0, 61.0):
        due.append(keeper.is_due())
    assert due == [False, False, True]


def test_a_ledger_that_cannot_be_judged_is_told_and_tried_again(ledger, tmp_path, monkeypatch):
    site = Site(ledger.root, tmp_path / "report")

    def damaged(*_):
        raise DamagedError(f"record {HOSTILE} is gone")

    with monkeypatch.context() as broken:
        broken.setattr(watching, "gather_ledger", damaged)
        site._update_report()
    assert json.loads(site.progress())["report"] == {
        "page": None,
        "written": None,
        "error": "record <img src=x onerror=alert(1)>?[2J 🦊 is gone",
    }
    site._update_report()
    assert site._report["page"] and not site._report["error"]


def test_a_report_is_never_written_twice_at_once(ledger, tmp_path, monkeypatch):
    running, most, written = [0], [0], threading.Event()
    monkeypatch.setattr(serving, "POLL", 0.001)

    def write(results, folder):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1
        written.set()
        return []

    monkeypatch.setattr(watching, "write", write)
    monkeypatch.setattr(Keeper, "is_due", lambda self: True)
    site, stop = Site(ledger.root, tmp_path / "report"), threading.Event()
    keeper = threading.Thread(target=site.keep_report, args=(stop,))
    keeper.start()
    assert written.wait(PATIENCE)
    for _ in range(20):
        site.progress()
    stop.set()
    keeper.join(PATIENCE)
    assert most == [1] and not keeper.is_alive()


# The commands


def command(*arguments, cwd):
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", "from pruneaudit.cli import main; main()", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "40"},
    )


def interrupted(process):
    """End it as Ctrl-C does: exit code, what it had still to say, and its errors."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def refused(process, *words):
    """One line on stderr, exit code 2."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and out == "" and len(err.splitlines()) == 1 and err.startswith("pruneaudit: "), err
    assert all(word in err for word in words), err


def test_serve_says_where_and_ends_with_an_interrupt(ledger, tmp_path):
    process = command("serve", "--ledger", ledger.root, "--port", "0", cwd=tmp_path)
    line = process.stdout.readline()
    (port,) = re.findall(r"at http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends\)", line)
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)
    connection.request("GET", "/progress.json")
    assert json.load(connection.getresponse())["stored"]["ok"] == 2
    assert interrupted(process) == (0, "", "")
    assert os.listdir(tmp_path) == ["ledger"], "it leaves nothing behind"


def test_serve_warns_when_others_can_read(ledger, tmp_path):
    process = command("serve", "--ledger", ledger.root, "--port", "0", "--host", "0.0.0.0", cwd=tmp_path)
    assert process.stdout.readline().startswith("warning: 0.0.0.0 can be reached from other machines")
    assert process.stdout.readline().startswith("serving ")
    assert interrupted(process)[0] == 0


def test_a_port_in_use_is_refused(ledger, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(
            command("serve", "--ledger", ledger.root, "--port", port, cwd=tmp_path), f"port {port}", "in use", "--port"
        )


def test_an_address_that_is_not_there_is_refused(ledger, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot serve at no\.such.host.invalid, port 0: .*--host"):
        Server(Site(ledger.root, tmp_path), "no.such.host.invalid", 0)


@pytest.mark.parametrize("name", ["serve", "report"])
def test_a_ledger_that_is_not_there_is_refused(tmp_path, name):
    arguments = ["--watch"] if name == "report" else []
    refused(command(name, *arguments, "--ledger", tmp_path / "none", cwd=tmp_path), "none is no ledger")
    assert list(tmp_path.iterdir()) == []


def test_watch_writes_the_report_again_and_says_how_far_it_is(ledger, tmp_path):
    one = LocalExecutor(ledger, FakeStages(ledger, tmp_path / "log"), "session")
    one.share([run_spec(), run_spec(seed=9)])
    facts = {"run": "a-run", "id": run_spec(seed=9).run_id, "epoch": 3, "epochs": 8, "accuracy": 77.5}
    ledger.report_progress([{**facts, "started": time.time()}])
    process = command("report", "--watch", "--ledger", ledger.root, "--to", "out", cwd=tmp_path)
    assert re.fullmatch(r"\d\d:\d\d:\d\d wrote out \(2 attempted, 2 valid\)\n", process.stdout.readline())
    assert process.stdout.readline() == "1 of 2 runs; now a-run epoch 3/8 77.5 %\n"
    store(ledger, scored(evidence("random"), 80.0))
    # How far it is may be told again before the cell is seen.
    assert next(line for line in process.stdout if "wrote out" in line).endswith(" wrote out (3 attempted, 3 valid)\n")
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["cells"]) == 3
    code, out, err = interrupted(process)
    assert (code, err) == (0, "") and "\x1b" not in out


def test_watch_waits_for_the_first_cell(tmp_path):
    empty = Ledger(tmp_path / "ledger")
    process = command("report", "--watch", "--ledger", empty.root, "--to", "out", cwd=tmp_path)
    assert "the ledger holds no cell yet" in process.stdout.readline()
    store(empty, evidence("l1"))
    assert "wrote out (1 attempted, 1 valid)" in process.stdout.readline()
    assert interrupted(process)[0] == 0


def test_watch_refuses_a_folder_that_cannot_be_written(ledger, tmp_path):
    (tmp_path / "file").write_text("")
    process = command("report", "--watch", "--ledger", ledger.root, "--to", "file", cwd=tmp_path)
    refused(process, "report file", "choose another folder with --to")


# In a browser


def test_a_browser_shows_a_growing_ledger(ledger, tmp_path, browser, monkeypatch):
    monkeypatch.setattr(serving, "_FRESH", 0.0)
    ledger.save_cell(failed_cell(Cell("lenet5-digits", "s3.2", "sfp", 0.5, 0), error=HOSTILE), "<b>broken<b>")
    facts = {"id": run_spec(seed=9).run_id, "epoch": 3, "epochs": 8, "accuracy": 77.5, "started": time.time()}
    ledger.report_progress([{"run": "<script>alert(1)</script>" + "x" * 200, **facts}])
    curve = {"losses": [2.0, 1.0, 0.5], "accuracies": [10.0, 60.0, 77.5]}
    with served(ledger, tmp_path) as server:
        for width, scheme in ((400, "light"), (1600, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            errors, asked = [], []
            page.on("console", lambda message, errors=errors: errors.append(message.text))
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(server.url)
            page.get_by_role("heading", name="<script>alert(1)</script>").wait_for()
            assert page.get_by_role("cell", name="<b>broken<b>").count() == 1
            assert page.get_by_role("cell", name="<img src=x").count() == 1 and page.locator("img").count() == 0
            assert page.get_by_text("epoch 3 of 8 · test accuracy 77.5 %").count() == 1
            assert page.get_by_role("link", name="Report of what is measured so far").count() == 1
            assert page.locator("html").evaluate("page => page.scrollWidth") <= width, "nothing to scroll sideways"
            assert not errors and all(url.startswith(server.url) for url in asked)
            page.close()
        page = browser.new_page()
        one = {**json.loads(server.site.progress())["busy"][0], **curve}
        known = server.site._progress()
        monkeypatch.setattr(server.site, "_progress", lambda: {**known, "busy": [one]})
        page.goto(server.url)
        page.get_by_role("img", name="training loss between 0.500 and 2.000").first.wait_for(state="attached")
        lines = page.locator("polyline")
        lines.first.wait_for(state="attached")
        assert lines.count() == 2 and lines.first.get_attribute("points") == "0,0 50,66.66666666666667 100,100"
        # It asks again, without anybody's doing.
        monkeypatch.setattr(server.site, "_progress", lambda: {**known, "busy": []})
        page.get_by_text("nobody trains here now").wait_for()
        assert lines.count() == 0
        # By keyboard: the links and the lists that scroll.
        reached = []
        for _ in range(5):
            page.keyboard.press("Tab")
            reached.append(page.locator("*:focus").evaluate("one => one.textContent.trim().slice(0, 6)"))
        assert reached == ["Report", "result", "cellre", "cellte", "progre"]
        page.close()
