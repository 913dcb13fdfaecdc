"""The log of a running node: its outputs, its contents, and outputs that fail."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import time

import harness
import pytest
from harness import BINARY, PATIENCE, Server, eventually, signed
from redis_harness import Pusher, await_unready, log_of

ANSWERED = "answered a request"


def lines_of(path):
    """The lines of a JSON log, all complete."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def whole_lines_of(path):
    """The complete lines of a log that is being written."""
    with open(path, "rb") as file:
        whole, _, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def dropped_in(text):
    return sum(map(int, re.findall(r"(\d+) lines were dropped", text)))


def push_many(server, count):
    """Pushes, pipelined, until all are accepted, and returns the number of requests. A worker
    without a core has no room for a while and answers 503."""
    requests = 0
    waiting = list(range(count))
    with Pusher(server) as pusher:
        while waiting:
            begun, waiting = waiting[:200], waiting[200:]
            for number in begun:
                pusher.send({"pid": "1", "data": number})
            statuses = [pusher.answer() for _ in begun]
            assert set(statuses) <= {200, 503}, statuses
            waiting += [number for number, status in zip(begun, statuses) if status == 503]
            requests += len(begun)
    return requests


def run_to_its_end(*args, env=None):
    """Runs a node that exits because a port is in use, and returns its output and its errors."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [BINARY, "--bind", "127.0.0.1", "--ws_port", str(taken.getsockname()[1])]
        done = subprocess.run(
            [*command, "--http_port", "0", "--prometheus_port", "0", *args],
            capture_output=True, text=True, timeout=20, env={**os.environ, **(env or {})},
        )
    assert done.returncode == 1, done
    return done


# The format of lines.


def test_text_for_people_on_standard_output(start):
    server = start("--log_keep", "3")
    line = eventually(lambda: next((one for one in server.output if "WARN" in one), None), "a line")
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(moment + r"  WARN main ws_cluster: --log_keep has no effect .*\n", line)
    server.stop()
    assert server.errors == []


def test_json_for_machines(start):
    server = start("--log", "trace", "--log_format", "json", "--node", "9")
    server.push(1)
    found = lambda: [one for one in server.output if ANSWERED in one]
    line = json.loads(eventually(found, "a line")[0])
    assert list(line) == ["ts", "level", "target", "msg", "fields", "node", "thread"]
    assert (line["level"], line["node"], line["thread"][:7]) == ("TRACE", 9, "worker-")
    assert line["fields"]["path"] == "/ws/push" and line["fields"]["status"] == 200
    assert "\x1b" not in log_of(server)


def test_the_journal_gets_priorities_and_no_times():
    for is_it, end in ((True, 0), (False, 1)):
        read, write = os.pipe()
        pipe = os.fstat(write)
        env = {"JOURNAL_STREAM": f"{pipe.st_dev}:{pipe.st_ino + end}"}
        with socket.create_server(("127.0.0.1", 0)) as taken:
            command = [BINARY, "--bind", "127.0.0.1", "--ws_port", str(taken.getsockname()[1])]
            process = subprocess.Popen(
                [*command, "--log_keep", "3"],
                stdout=write, stderr=write, env={**os.environ, **env},
            )
            os.close(write)
            with open(read, encoding="utf-8") as output:
                first, last = output.read().splitlines()
            assert process.wait(PATIENCE) == 1
        if is_it:
            assert first.startswith("<4>main ws_cluster: --log_keep has")
            assert last.startswith("<3>ws-cluster: cannot listen on --ws_port")
        else:
            assert re.match(r"\d{4}-.*  WARN main ws_cluster: --log_keep has", first)


def test_an_error_at_the_start_is_told_once():
    done = run_to_its_end()
    assert done.stdout == ""
    assert done.stderr.startswith("ws-cluster: cannot listen on --ws_port")
    assert len(done.stderr.splitlines()) == 1


# Files.


def test_a_file_and_what_stays_on_standard_output(start, tmp_path):
    path = tmp_path / "node.log"
    server = start("--log_path", str(path), "--log_format", "json", "--drain_ms", "5000")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    begin, draining, end = [line for line in lines_of(path) if line["level"] == "INFO"]
    assert (begin["msg"], end["msg"]) == ("started", "stopped")
    assert draining["fields"] == {"drain_delay_ms": 0, "drain_ms": 5000}
    assert "ws-cluster listening: " in server.output[0]
    assert not any("draining" in line for line in server.output) and server.errors == []
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_error_is_in_the_file_when_the_process_ends(tmp_path):
    path = tmp_path / "node.log"
    done = run_to_its_end(env={"WS_CLUSTER_LOG_PATH": str(path), "WS_CLUSTER_LOG_FORMAT": "json"})
    assert done.stdout == ""
    [line] = lines_of(path)
    assert (line["level"], line["msg"]) == ("ERROR", "the node stops")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_logrotate_moves_the_file_away(start, tmp_path, number):
    path = tmp_path / "node.log"
    server = start("--log_path", str(path), "--log_format", "json", "--log", "trace")
    with Pusher(server) as pusher:
        for turn in range(20):
            for part in range(20):
                assert pusher.push({"pid": "1", "data": part}) == 200
            path.rename(tmp_path / f"node.log.{turn}")
            server.signal(number)
            eventually(path.exists, "a new file")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    lines = [line for file in sorted(tmp_path.iterdir()) for line in lines_of(file)]
    assert sum(line["msg"] == ANSWERED for line in lines) == 400


def test_a_file_that_cannot_be_a_log(start, tmp_path):
    def refused(path, *args, env=None):
        done = subprocess.run(
            [BINARY, *args], capture_output=True, text=True, timeout=20,
            env={**os.environ, **(env or {})},
        )
        assert (done.returncode, done.stdout) == (2, ""), done
        assert f"'{path}'" in done.stderr and len(done.stderr.splitlines()) == 1
        return done.stderr

    nowhere = str(tmp_path / "nowhere" / "node.log")
    assert "--log_path" in refused(nowhere, "--log_path", nowhere)
    assert "WS_CLUSTER_LOG_PATH" in refused(nowhere, env={"WS_CLUSTER_LOG_PATH": nowhere})
    taken = str(tmp_path / "node.log")
    start("--log_path", taken)
    assert "that no other node logs to" in refused(taken, "--log_path", taken)


def test_a_start_waits_for_the_node_before_it(tmp_path):
    path = str(tmp_path / "node.log")
    for _ in range(3):
        server = Server("--workers", "1", "--log_path", path)
        server.process.kill()
        server.process.wait(PATIENCE)
    Server("--workers", "1", "--log_path", path).stop()


# Outputs that do not accept writes.


@contextlib.contextmanager
def small_disk(directory):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("nothing may be mounted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def told_and_dropped(lines):
    told = sum(line["msg"] == ANSWERED for line in lines)
    return told, sum(dropped_in(line["msg"]) for line in lines)


def assert_all_told(lines, pushes):
    """Every push has a line in the log, or is counted as dropped."""
    told, dropped = told_and_dropped(lines)
    # A few lines are not about pushes.
    assert told < pushes and pushes <= told + dropped <= pushes + 10, (told, dropped, pushes)


@pytest.mark.slow
def test_a_full_disk_stops_no_push_and_the_log_goes_on(tmp_path):
    with small_disk(tmp_path) as disk:
        path = disk / "node.log"
        args = ["--log_path", str(path), "--log_format", "json", "--log", "trace"]
        server = Server("--workers", "1", *args, "--log_max_bytes", "0")
        try:
            pushes = push_many(server, 3000)
            eventually(lambda: server.errors, "a complaint")
            assert "No space left on device" in server.errors[0]
            # No partial line remains, except until the file is truncated.
            eventually(lambda: path.read_bytes().endswith(b"\n"), "whole lines")
            noticed = lambda: sum(dropped_in(line["msg"]) for line in whole_lines_of(path))
            before = noticed()
            subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
            eventually(lambda: noticed() > before, "the log says what was dropped, without a push")
            dropped = server.metric("ws_cluster_log_dropped_total")
            pushes += push_many(server, 10)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            assert_all_told(lines_of(path), pushes)
            assert noticed() == dropped
            assert len(server.errors) == 1, server.errors
        finally:
            server.stop()


def test_a_limit_on_the_size_of_files_ends_nothing(tmp_path):
    path = tmp_path / "node.log"
    args = ["--log_path", str(path), "--log_format", "json", "--log", "trace"]
    server = Server("--workers", "1", *args)
    try:
        hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100_000, hard))
        pushes = push_many(server, 2000)
        eventually(lambda: server.errors, "a complaint")
        assert "File too large" in server.errors[0]
        assert path.stat().st_size <= 100_000 and whole_lines_of(path)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        told = lambda: any(dropped_in(line["msg"]) for line in whole_lines_of(path))
        eventually(told, "the log says what was dropped")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert_all_told(lines_of(path), pushes)
    finally:
        server.stop()


class Unread(Server):
    """A node whose standard output is no longer read after its first lines."""

    def _read(self, stream, lines):
        if stream is self.process.stderr:
            return super()._read(stream, lines)
        for line in iter(stream.readline, ""):
            lines.append(line)
            if "All flags" in line:
                return


def test_a_reader_that_is_stuck_stops_no_push(workers):
    server = Unread("--workers", workers, "--log", "trace", "--log_format", "json")
    count = 15_000
    try:
        with server.client("u") as client:
            pushes = push_many(server, count)
            got = [client.pushed() for _ in range(count)]
            assert sorted(map(int, got)) == list(range(count))
        lines, known = [], 0
        while known < pushes:
            lines.append(json.loads(server.process.stdout.readline()))
            known += sum(told_and_dropped(lines[-1:]))
        assert_all_told(lines, pushes)
        # Nobody reads again, and the shutdown waits for a second at most.
        push_many(server, count)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 20
    finally:
        server.stop()


def test_a_reader_that_is_gone_stops_no_push(start):
    server = Unread("--workers", "1", "--log", "trace")
    try:
        server.process.stdout.close()
        push_many(server, 100)
        eventually(lambda: server.errors, "a complaint")
        assert "Broken pipe" in server.errors[0]
        server.signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
    finally:
        server.stop()


# Secrets.


def test_no_secret_and_no_sign_is_in_the_log(own_redis, own_node, projects, tmp_path, monkeypatch):
    """Sends valid and invalid requests of every kind to a node that logs everything."""
    signs = set()
    hmac_hex = harness.hmac_hex

    def recorded(secret, text):
        signs.add(hmac_hex(secret, text))
        return hmac_hex(secret, text)

    monkeypatch.setattr(harness, "hmac_hex", recorded)
    redis_password, token = "the-password-of-redis", "the-token-of-the-ops-ports"
    redis = own_redis("--requirepass", redis_password, login=[redis_password])
    url = f"redis://:{redis_password}@127.0.0.1:{redis.port}"
    path = tmp_path / "node.log"
    server = own_node(
        7, url, "--projects", projects, "--log", "trace", "--log_path", str(path),
        env={"WS_CLUSTER_OPS_TOKEN": token},
    )
    secret = "new-secret-of-two"
    params = {"pid": "two", "data": "x"}
    with server.client("u", secret=secret, pid="two", session_exp=int(time.time()) + 60) as client:
        until = int(time.time()) + 90
        for sign in (recorded(secret, f"refresh\n{client.cid}\n{until}"), "0" * 64):
            client.ask({"type": "refresh", "session_exp": until, "sign": sign})
        server.push("x", secret, pid="two")
        assert server.push_form(params, "old-secret-of-two").status == 200
        batch = {"pid": "two", "messages": [{"data": 1}]}
        assert server.post_json("/ws/push/batch", batch, secret).status == 200
    assert server.push_form(params, "wrong").status == 401
    for target in ("/ws/push?", "/ws/connect?", "/nowhere?"):
        server.request("POST", target + signed("/ws/push", params, secret))
    with pytest.raises(Exception, match="401"):
        server.open("u", "wrong", pid="two")
    for given in (token, "wrong"):
        for target, headers in (("", {"Authorization": f"Bearer {given}"}), (f"?token={given}", {})):
            server.request("GET", f"/metrics{target}", headers=headers, at=server.pprof)
    redis.command("CONFIG", "SET", "requirepass", "another")
    redis.login = ["another"]
    redis.command("CLIENT", "KILL", "TYPE", "pubsub")
    await_unready(server, word="WRONGPASS")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    told = log_of(server) + path.read_text(encoding="utf-8")
    for wanted in (ANSWERED, "opened a connection", "WRONGPASS", "draining"):
        assert wanted in told, wanted
    assert len(signs) >= 8
    secrets = [redis_password, token, secret, "old-secret-of-two", "secret-of-none", "dev-secret"]
    for hidden in (*secrets, *signs):
        assert hidden not in told, hidden
    assert not re.search("[0-9a-f]{64}", told)
