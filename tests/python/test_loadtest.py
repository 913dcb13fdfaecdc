"""The load tool against a real server: its exit codes, its reports, and how it ends."""

import errno
import html.parser
import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from browser import Browser
from harness import BINARY, Server
from seccomp import refuse

LOADTEST = os.path.join(os.path.dirname(BINARY), "loadtest")


@pytest.fixture(scope="module")
def server():
    with Server("--workers", "2") as server:
        yield server


def at(address):
    return "{}:{}".format(*address)


def start(command, server, *options):
    words = [LOADTEST, command, "--ws", at(server.ws), "--http", at(server.http), *map(str, options)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, timeout=30):
    out, errors = process.communicate(timeout=timeout)
    return process.returncode, out, errors


def run(command, server, *options):
    return finish(start(command, server, *options))


def report_of(command, server, *options):
    code, out, errors = run(command, server, "--json", *options)
    assert code == 0, out + errors
    return json.loads(out)


def test_every_command_ends_with_a_report_and_nothing_lost(server):
    report = report_of("connect", server, "--connections", 200)
    assert report["connections_welcomed"] == 200
    assert report["tool_cpu_us_per_connect"] > 0
    assert report["tool_rss_bytes_per_connection"] >= 0
    report = report_of("fanout", server, "--connections", 100, "--threads", 2, "--seconds", 0.3)
    assert report["deliveries"] == 100 * report["messages_accepted"]
    report = report_of("unicast", server, "--users", 20, "--seconds", 0.3)
    assert report["deliveries"] == report["pushes_accepted"]
    report = report_of("requests", server, "--clients", 4, "--seconds", 0.3)
    assert report["requests_answered"] == report["requests"]
    report = report_of("events", server, "--connections", 50)
    assert report["lost_connects"] == report["lost_disconnects"] == 0


def test_what_was_late_counts_from_the_intended_moment(server):
    options = ["--rate", 200, "--seconds", 0.5, "--warmup", 0.1]
    for command, key in (
        ("fanout", "intended_to_delivery_us"),
        ("unicast", "intended_to_delivery_us"),
        ("requests", "intended_to_answer_us"),
    ):
        report = report_of(command, server, *options)
        assert report["rate_wanted_per_s"] == 200
        assert report[key]["count"] > 50


def test_several_nodes_are_used_in_turn(server):
    both = f"{at(server.ws)},{at(server.ws)}"
    words = [LOADTEST, "unicast", "--ws", both, "--http", ",".join([at(server.http)] * 3)]
    words += ["--users", "6", "--seconds", "0.2", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert [node["connections_welcomed"] for node in report["ws_targets"]] == [3, 3]
    accepted = [node["pushes_accepted"] for node in report["http_targets"]]
    assert len(accepted) == 3 and min(accepted) > 0
    assert sum(accepted) == report["pushes_accepted"]


def test_thresholds_make_the_exit_code(server):
    kept = ["--max-p99", "20s", "--max-loss", 0, "--min-rate", 1]
    code, out, _ = run("unicast", server, "--seconds", 0.2, *kept)
    assert code == 0
    assert re.search(r"^threshold max-p99 20s: kept, .* \(push_to_delivery_us\)$", out, re.M)
    code, out, _ = run("unicast", server, "--seconds", 0.2, "--max-p99", "1us", "--max-loss", 0)
    assert code == 1
    assert re.search(r"^threshold max-p99 1us: BROKEN, [\d.]+ \w+ \(push_to_delivery_us\)$", out, re.M)
    assert "threshold max-loss 0: kept, 0" in out
    code, out, errors = run("unicast", server, "--max-p99", "5")
    assert (code, out) == (1, "")
    assert "5ms" in errors
    code, _, errors = run("unicast", server, "--max-pause", "1ms")
    assert code == 1 and "--metrics" in errors


class Page(html.parser.HTMLParser):
    """The elements of a page, and the text of those with an id."""

    VOID = {"meta", "link", "br", "input", "hr", "img"}

    def __init__(self):
        super().__init__()
        self.open = []
        self.texts = {}
        self.attributes = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.attributes += attributes.items()
        if tag not in self.VOID:
            self.open.append((tag, attributes.get("id")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][1]:
            self.texts[self.open[-1][1]] = data


def test_the_page_says_what_the_report_says(server, tmp_path):
    file = tmp_path / "run.html"
    metrics = f"http://{at(server.metrics_address)}/metrics"
    options = ["--connections", 100, "--seconds", 1.5, "--metrics", metrics, "--report", file]
    report = report_of("fanout", server, *options, "--max-server-rss", "4G", "--max-pause", "20s")
    text = file.read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert json.loads(page.texts["report"]) == report
    assert not {name for name, _ in page.attributes} & {"src", "href"}
    # Except for the addresses given to the command.
    urls = {url for url in re.findall(r"https?://[^\"\\<\s]+", text) if url != metrics}
    assert urls == {"http://www.w3.org/2000/svg"}
    series = json.loads(page.texts["series"])
    columns = [values for name, values in series.items() if name not in ("servers", "marks")]
    assert {len(values) for values in columns} == {len(series["at_s"])}
    assert len(series["at_s"]) >= 3
    assert max(series["open"]) == 100
    assert max(filter(None, series["deliveries_per_s"])) > 0
    assert [mark["name"] for mark in series["marks"]] == ["pushes"]
    (seen,) = series["servers"]
    assert max(filter(None, seen["rss_bytes"])) > 1 << 20
    assert any(value is not None for value in seen["longest_pause_ms"])
    assert report["server_rss_peak_bytes"] > 1 << 20
    browser = Browser()
    try:
        for width in (390, 1200):
            browser.resize(width, 900)
            browser.open(f"file://{file}")
            assert browser.run("return document.querySelectorAll('figure svg path').length") > 8
            assert browser.cut() == []
        assert browser.texts("#verdict") == ["passed"]
        assert browser.texts("#thresholds td .good") == ["kept", "kept"]
        browser.run("document.querySelectorAll('figure svg')[1].focus()")
        press = "new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true })"
        browser.run(f"document.querySelectorAll('figure svg')[1].dispatchEvent({press})")
        (tip,) = [text for text in browser.texts("figure .tip") if text]
        assert "here 100" in tip
        assert browser.complaints() == []
    finally:
        browser.stop()


def test_ctrl_c_ends_with_what_was_measured(server):
    for number, command, options in (
        (signal.SIGINT, "unicast", ["--seconds", 60]),
        (signal.SIGTERM, "fanout", ["--seconds", 60, "--connections", 20]),
        (signal.SIGINT, "connect", ["--hold", 60, "--connections", 20]),
    ):
        process = start(command, server, "--json", *options)
        time.sleep(1.0)
        process.send_signal(number)
        code, out, errors = finish(process, 10)
        report = json.loads(out)
        assert (code, report["interrupted"]) == (0, True), out + errors
        assert report.get("deliveries", 20) > 0


def test_a_server_that_dies_ends_the_run():
    for command, options in (
        ("unicast", ["--seconds", 60, "--users", 5]),
        ("fanout", ["--seconds", 60, "--connections", 20]),
        ("requests", ["--seconds", 60]),
        ("connect", ["--hold", 60, "--connections", 20]),
    ):
        with Server() as server:
            process = start(command, server, "--json", "--timeout", 1, *options)
            time.sleep(1.0)
            assert process.poll() is None
            server.process.kill()
            code, out, errors = finish(process, 15)
        assert code == 1, errors
        report = json.loads(out)
        assert not report["ok"]
        assert report["connections_ended_by_server"] > 0


def test_what_cannot_work_is_said_before_the_run(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = at(free.getsockname())
        for option in ("--ws", "--http", "--metrics"):
            words = {"--ws": at(server.ws), "--http": at(server.http), option: nobody}
            words = [word for pair in words.items() for word in pair]
            done = subprocess.run(
                [LOADTEST, "fanout", *words], capture_output=True, text=True, timeout=10
            )
            assert (done.returncode, done.stdout) == (1, "")
            assert option in done.stderr and nobody in done.stderr
    code, out, errors = run("connect", server, "--connections", 5_000_000, "--threads", 1)
    assert (code, out) == (1, "") and "ulimit -n" in errors
    code, out, errors = run("connect", server, "--connections", 200_000, "--sources", 1)
    assert (code, out) == (1, "") and re.search(r"--sources \d+", errors)


def test_several_processes_make_one_report(server):
    report = report_of("connect", server, "--connections", 100, "--processes", 3)
    assert (report["processes"], report["connections_welcomed"]) == (3, 100)
    assert report["connect_to_welcome_us"]["count"] == 100
    options = ["--processes", 2, "--seconds", 0.5]
    report = report_of("fanout", server, "--connections", 30, "--max-loss", 0, *options)
    assert report["connections"] == 30
    assert report["deliveries"] == 15 * report["messages_accepted"]
    assert report["push_to_delivery_us"]["count"] == report["deliveries_measured"]
    assert report["thresholds"][0]["kept"] is True
    report = report_of("unicast", server, "--users", 5, *options)
    assert report["deliveries"] == report["pushes_accepted"] > 0
    code, out, errors = run("events", server, "--processes", 2)
    assert (code, out) == (1, "") and "--processes" in errors


def test_where_a_thread_has_no_table_of_its_own_there_are_processes(server):
    words = ["prlimit", "--nofile=500", LOADTEST, "connect", "--ws", at(server.ws), "--json"]
    for connections, processes in ((90, None), (250, 3)):
        done = subprocess.run(
            [*words, "--connections", str(connections)],
            capture_output=True,
            text=True,
            timeout=30,
            preexec_fn=refuse("unshare", errno.EPERM),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert report["connections_welcomed"] == connections
        assert report.get("processes") == processes


def test_ctrl_c_ends_all_processes(server):
    process = start("unicast", server, "--json", "--processes", 2, "--seconds", 60, "--users", 4)
    time.sleep(1.5)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(children) == 2
    process.send_signal(signal.SIGINT)
    code, out, errors = finish(process, 10)
    report = json.loads(out)
    assert (code, report["interrupted"]) == (0, True), errors
    assert report["deliveries"] > 0
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]
