"""The load tool's scenarios against a real server: storm, tags, soak and replay."""

import json
import os
import signal
import subprocess
import time

import pytest
from harness import BINARY, Server

LOADTEST = os.path.join(os.path.dirname(BINARY), "loadtest")
CHECKS = ("lost", "doubled", "out_of_order", "misdelivered", "refused_but_delivered")


@pytest.fixture(scope="module")
def server():
    with Server("--workers", "2") as server:
        yield server


def start(server, *options):
    at = lambda address: "{}:{}".format(*address)
    words = [LOADTEST, *map(str, options), "--ws", at(server.ws), "--http", at(server.http)]
    words += ["--json", "--pid-of-server", str(server.process.pid)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


def report_of(server, *options, code=0):
    got, out, errors = finish(start(server, *options))
    assert got == code, out + errors
    report = json.loads(out)
    if code == 0:
        assert not any(report[check] for check in CHECKS), report
    return report


def replay(server, folder, text, code=0):
    file = folder / "scenario.toml"
    file.write_text(text)
    return report_of(server, "replay", file, code=code)


def test_all_that_are_cut_come_back_and_canaries_lose_nothing(server):
    options = ["--connections", 500, "--share", 0.3, "--canaries", 10, "--calm", 0.3]
    report = report_of(server, "storm", *options)
    storm = report["phases"]["storm"]
    assert (storm["cut"], storm["reconnected"], storm["open_at_end"]) == (150, 150, 500)
    assert storm["end_to_welcome_us"]["count"] == 150 and storm["all_back_s"] > 0
    pushes = sum(phase.get("canary_pushes", 0) for phase in report["phases"].values())
    assert report["canary_us"]["count"] == 10 * pushes > 0


def test_pushes_reach_exactly_those_who_match(server):
    options = ["--connections", 300, "--tags", 40, "--rate", 100, "--seconds", 0.7]
    report = report_of(server, "tags", *options)
    assert report["phases"]["tags"]["tag_pushes"] >= 60
    assert report["deliveries"] > 300 and report["undecided"] == 0


def test_a_soak_is_clean_under_churn_and_knows_the_memory(server):
    options = ["--connections", 200, "--seconds", 3, "--churn", 100, "--unicast-rate", 300]
    soak = report_of(server, "soak", *options)["phases"]["soak"]
    assert soak["churned"] > 200 and soak["unicasts_accepted"] == soak["unicasts"] > 800
    assert soak["requests_answered"] == soak["requests"] > 100
    assert soak["server_rss_bytes_at_end"] > 1_000_000


MIXED = """
[population]
connections = 400
tags = 20
tags_per_client = 2
devices = ["ios", "web"]
timeout = 10

[[phase]]
name = "ramp"
open = 300
open_per_s = 1000

[[phase]]
name = "project"
project_pushes = 5

[[phase]]
name = "more"
open = 400
duration = 0.3
tag_pushes_per_s = 50
with_devices = true
with_users = 20

[[phase]]
name = "cut"
cut = { count = 100, how = "close" }
reconnect = { jitter = 0.2 }
until = "all back"
duration = 20
unicast_per_s = 200

[[phase]]
name = "gone"
cut = { share = 0.5, how = "fin" }
hold = 0.1
"""


def test_a_scenario_is_carried_out_phase_by_phase(server, tmp_path):
    report = replay(server, tmp_path, MIXED)
    phases = report["phases"]
    assert list(phases) == ["ramp", "project", "more", "cut", "gone"]
    assert phases["ramp"]["opened"] == 300 and phases["ramp"]["duration_s"] > 0.25
    assert phases["project"]["deliveries"] == 5 * 300
    assert len(phases["project"]["accepted_to_last_delivery_ms_of_each"]) == 5
    assert (phases["more"]["opened"], phases["more"]["open_at_end"]) == (100, 400)
    assert (phases["cut"]["reconnected"], phases["cut"]["open_at_end"]) == (100, 400)
    assert phases["gone"]["open_at_end"] == 200


def test_a_drain_closes_all_with_1001_and_owes_nothing(tmp_path):
    with Server("--workers", "2") as server:
        text = "[population]\nconnections = 200\n[[phase]]\nname = 'open'\nopen = 200\n"
        text += "[[phase]]\nname = 'push'\nduration = 0.3\nproject_pushes_per_s = 100\n"
        text += "[[phase]]\nname = 'drain'\ndrain = true\n"
        drain = replay(server, tmp_path, text)["phases"]["drain"]
        assert drain["closed_by_server"] == drain["closed_with_1001"] == 200
        assert drain["open_at_end"] == 0 and drain["drain_s"] > 0


def test_a_server_that_dies_ends_the_run_with_a_report(tmp_path):
    with Server("--workers", "1") as server:
        file = tmp_path / "scenario.toml"
        file.write_text(
            "[population]\nconnections = 50\ntimeout = 1\n[[phase]]\nname = 'open'\nopen = 50\n"
            "[[phase]]\nname = 'long'\nduration = 1000\nunicast_per_s = 50\n"
        )
        process = start(server, "replay", file)
        time.sleep(1.5)
        server.process.kill()
        code, out, errors = finish(process)
        assert code == 1, out + errors
        report = json.loads(out)
        assert report["ended_early"] == "the server has ended"
        assert report["phases"]["long"]["ended_by_server"] == 50


def test_ctrl_c_ends_a_scenario_with_a_report(server):
    process = start(server, "soak", "--connections", 50, "--hours", 1)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    code, out, errors = finish(process)
    report = json.loads(out)
    assert report["ended_early"] == "interrupted", out + errors
    assert report["phases"]["soak"]["unicasts"] > 50 and report["lost"] == 0


@pytest.mark.parametrize(
    "text, error",
    [
        ("[population]\nconnections = 5\n[[phase]]\nname = 'a'\nopne = 5\n", ":5:1: unknown key"),
        ("[population]\nconnections = 5\n[[phase]]\nname = 'a'\nopen = 6\n", ":5:8: open: 6 is"),
        ("[population\n", ":1:"),
    ],
)
def test_a_mistake_in_a_scenario_is_named_with_its_place(server, tmp_path, text, error):
    file = tmp_path / "scenario.toml"
    file.write_text(text)
    code, out, errors = finish(start(server, "replay", file))
    assert (code, out) == (1, "") and f"{file}{error}" in errors
