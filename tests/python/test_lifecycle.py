"""Idle and slow clients, echo, shutdown and metrics."""

import contextlib
import json
import random
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest
from harness import (
    BINARY,
    BINARY_FRAME,
    PING,
    TEXT,
    Raw,
    Server,
    eventually,
    frame,
    handshake,
    hmac_hex,
    signed,
)
from websockets.exceptions import InvalidStatus


def test_the_silent_are_pinged_and_closed_with_4002(start):
    server = start("--idle_timeout_ms", "600")
    with server.client("answers") as answers, server.client("quiet") as quiet:
        for _ in range(2):
            with server.raw_ws("silent") as silent:
                began = time.monotonic()
                assert b'"connect"' in silent.read_frame()[1]
                assert silent.read_frame() == (0x80 | PING, b"")
                assert 0.25 < time.monotonic() - began < 5
                assert silent.close_code() == 4002
                assert 0.55 < time.monotonic() - began < 10
        # Their library answers pings, so they outlasted two timeouts.
        for client in (answers, quiet):
            assert client.ask({"type": "heartbeat"}).startswith('{"type":"heartbeat"')
    assert server.metric("ws_cluster_close_total", reason="idle") == 2


def test_a_heartbeat_keeps_a_connection_that_answers_no_ping(start):
    server = start("--idle_timeout_ms", "500")
    with server.raw_ws("beats") as beats, server.raw_ws("silent") as silent:
        assert b'"connect"' in beats.read_frame()[1]
        ended = threading.Event()

        def wait_for_the_silent():
            assert silent.close_code() == 4002
            ended.set()

        waiter = threading.Thread(target=wait_for_the_silent)
        waiter.start()
        while not ended.wait(0.1):
            beats.frame(TEXT, '{"type":"heartbeat"}')
            assert beats.read_frame()[0] == 0x81
        waiter.join()
        beats.frame(TEXT, '{"type":"heartbeat"}')
        assert beats.read_frame()[0] == 0x81


def test_a_message_that_comes_slowly_is_no_silence(start):
    server = start("--idle_timeout_ms", "600")
    with server.raw_ws("slow") as raw:
        raw.read_frame()
        message = frame(TEXT, json.dumps({"type": "heartbeat", "pad": "x" * 20}))
        for byte in message:
            raw.send(bytes([byte]))
            time.sleep(0.02)
        first, payload = raw.read_frame()
        assert json.loads(payload)["type"] == "heartbeat"


def test_one_push_may_be_longer_than_all_that_waits_for_a_client(start):
    """A client that was reading was closed because a frame did not fit into its socket at once."""
    server = start("--outbox_bytes", "64k")
    with server.raw_ws("one", receive_buffer=4096) as client:
        client.read_frame()
        for _ in range(3):
            assert server.push_raw_form(b"\x01" * 1_000_000, "one").status == 200
            assert len(client.read_frame()[1]) > 6_000_000
    assert server.metric("ws_cluster_close_total", reason="slow_consumer") == 0


def test_a_slow_consumer_is_closed_with_4000_and_nobody_else_notices(start):
    server = start("--outbox_bytes", "131072", "--linger_ms", "5000")
    data = "s" * 20_000
    with server.client("fast", tags="t") as fast:
        with server.raw_ws("slow", tags="t", receive_buffer=4096) as slow:
            pushed = 0
            while server.metric("ws_cluster_close_total", reason="slow_consumer") == 0:
                server.push([pushed, data], tags=["t"])
                assert json.loads(fast.pushed()) == [pushed, data]
                pushed += 1
                assert pushed < 2_000
            assert slow.read_frame()[1].startswith(b'{"type":"connect"')
            got = []
            while (item := slow.read_frame())[0] != 0x88:
                got.append(json.loads(item[1])["data"][0])
            assert struct.unpack(">H", item[1][:2]) == (4000,)
            assert got == list(range(len(got))) and len(got) < pushed
        dropped = server.metric("ws_cluster_drop_total", reason="slow_consumer")
        # Pushes between the close and its count were no longer for this client.
        assert dropped > 0 and pushed - 3 <= dropped + len(got) <= pushed
        server.push("after", tags=["t"])
        assert fast.pushed() == '"after"'
        # Each was either delivered or counted as dropped, never both.
        assert server.metric("ws_cluster_delivery_total") == pushed + 1 + len(got)


def test_the_workers_budget_closes_the_largest(projects):
    server = Server(
        "--workers", "1", "--outbox_bytes", "1M", "--worker_outbox_bytes", "1M",
        "--projects", projects, "--linger_ms", "200",
    )
    try:
        data = "w" * 10_000
        with server.client("fast") as fast, server.raw_ws("little", receive_buffer=4096) as little:
            greedy = [server.raw_ws("slow", receive_buffer=4096) for _ in range(4)]
            count = 0
            while server.metric("ws_cluster_outbox_bytes") < 4 * 65536 and count < 3000:
                server.push(data, uids=["slow"])
                count += 1
            server.push("one", uids=["little"])
            while server.metric("ws_cluster_close_total", reason="slow_consumer") == 0:
                server.push(data, uids=["slow"])
                assert server.metric("ws_cluster_outbox_bytes") <= 1 << 20
                count += 1
                assert count < 4000
            assert server.metric("ws_connection") >= 2
            server.push("two", uids=["fast"])
            assert fast.pushed() == '"two"'
            assert b'"connect"' in little.read_frame()[1]
            assert json.loads(little.read_frame()[1])["data"] == "one"
            for raw in greedy:
                raw.socket.close()
    finally:
        server.stop()


def test_echo(start):
    server = start("--echo", "--idle_timeout_ms", "100000")
    with Raw(server.ws) as raw:
        raw.send(handshake("/any/path?at=all"))
        assert raw.read_head().startswith("HTTP/1.1 101 ")
        raw.frame(PING, "first")
        assert raw.read_frame() == (0x8A, b"first"), "nothing was sent unasked before"
        for opcode in (TEXT, BINARY_FRAME):
            for payload in (b"", b"x", b"y" * 126, b"z" * 65535, b"w" * 65536):
                raw.frame(opcode, payload)
                assert raw.read_frame() == (0x80 | opcode, payload)
        raw.frame(BINARY_FRAME, random.Random(1).randbytes(1000))
        assert raw.read_frame()[0] == 0x82
        raw.send(frame(TEXT, "ab", fin=False) + frame(0, "cd", fin=False) + frame(0, "ef"))
        assert raw.read_frame() == (0x81, b"abcdef")
        raw.frame(TEXT, b"\xff")
        assert raw.close_code() == 1007


def test_metrics_rise(start):
    server = start()
    assert server.metric("ws_connection") == 0
    with server.client("u1") as one, server.client("u2") as two:
        assert server.metric("ws_connection") == 2
        before = server.metric("request_total")
        for number in range(3):
            server.push(number)
        assert server.received([one, two]) == [["0", "1", "2"]] * 2
        server.push_form({"pid": "1", "data": "x"}, "wrong").assert_refused(401)
        assert server.metric("request_total") == before + 5
        assert server.metric("request_url_total", url="/ws/push", code="200") == 4
        assert server.metric("request_url_total", url="/ws/push", code="401") == 1
        assert server.metric("request_duration_count") == before + 5
        assert server.metric("request_duration_bucket", le="0.3") == before + 5
        # Without this bucket histogram_quantile() is NaN.
        assert server.metric("request_duration_bucket", le="+Inf") == before + 5
        assert server.metric("request_duration_sum") > 0
        assert server.metric("ws_cluster_delivery_total") == 8
        assert server.metric("ws_cluster_handshake_total", result="101") == 2
        with pytest.raises(InvalidStatus):
            server.open("u1", secret="wrong")
        assert server.metric("ws_cluster_handshake_total", result="401") == 1
    eventually(lambda: server.metric("ws_connection") == 0, "no connections left")
    assert server.metric("ws_cluster_close_total", reason="peer") == 2
    answer = server.request("GET", "/metrics", at=server.metrics_address)
    assert answer.text.endswith("# EOF\n")
    assert server.request("GET", "/", at=server.metrics_address).status == 404


def test_sigterm_drains(start):
    server = start("--drain_ms", "60000", "--linger_ms", "60000")
    clients = [server.client(f"u{n}") for n in range(40)]
    # This one never answers the close, so the drain takes long.
    stubborn = server.raw_ws("stubborn")
    server.signal(signal.SIGTERM)
    closes = [client.close_code() for client in clients]
    assert {code for code, _ in closes} == {1001}
    advice = [json.loads(reason) for _, reason in closes]
    assert all(list(one) == ["reconnect_after_ms"] for one in advice)
    waits = [one["reconnect_after_ms"] for one in advice]
    assert all(isinstance(wait, int) and wait >= 0 for wait in waits)
    assert len(set(waits)) > 5, f"jittered: {waits}"
    assert stubborn.close_code() == 1001
    for address in (server.ws, server.http):
        with pytest.raises(ConnectionRefusedError):
            Raw(address)
    stubborn.socket.close()
    assert server.wait() == 0


def test_accepted_pushes_are_finished(start):
    """Every push that was answered with success before the shutdown reaches its client."""
    server = start()
    with server.client("u1") as client:
        accepted = []

        def pusher():
            number = 0
            while True:
                try:
                    answer = server.post_json("/ws/push", {"pid": 1, "uids": "u1", "data": number})
                except OSError:
                    return
                if answer.status != 200:
                    return
                accepted.append(number)
                number += 1

        thread = threading.Thread(target=pusher)
        thread.start()
        eventually(lambda: len(accepted) > 100, "pushes are under way")
        server.signal(signal.SIGTERM)
        got = []
        try:
            while True:
                got.append(int(client.pushed()))
        except Exception as end:
            assert "1001" in str(end), end
        thread.join()
        assert got == accepted
    assert server.wait() == 0


def test_sigint_drains_too_and_an_empty_node_ends_at_once(start):
    server = start("--drain_ms", "60000")
    began = time.monotonic()
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    assert time.monotonic() - began < 20


def test_the_drain_has_an_end(start):
    server = start("--drain_ms", "500", "--linger_ms", "60000")
    with server.raw_ws("stubborn") as stubborn:
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert stubborn.close_code() == 1001
        assert server.wait() == 0
        assert time.monotonic() - began < 20


def test_who_does_not_read_its_answers_does_not_prolong_the_drain(start):
    """It kept the node for all of --drain_ms."""
    server = start("--drain_ms", "60000", "--linger_ms", "500", "--request_timeout_ms", "60000")
    with Raw(server.http, receive_buffer=2048) as deaf:
        deaf.socket.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                deaf.send("GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_who_comes_during_the_drain_does_not_prolong_it(start):
    """One refused peer that kept its socket made the drain last `--drain_ms`."""
    server = start("--drain_ms", "60000", "--linger_ms", "60000", "--request_timeout_ms", "60000")
    with (
        server.raw_ws("stubborn") as stubborn,
        Raw(server.http) as http,
        Raw(server.http, receive_buffer=4096) as greedy,
    ):
        query = signed("/ws/connect", server.connect_params("late"))
        refused = [Raw(server.ws) for _ in range(3)]
        server.signal(signal.SIGTERM)
        assert stubborn.close_code() == 1001
        for late in refused:
            late.send(handshake(f"/ws/connect?{query}"))
            assert late.read_response()[0] == 503
        http.send("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert http.read_response()[0] == 503
        # Its answer exceeds its socket's buffer, and it reads nothing.
        greedy.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3_000)
        stubborn.socket.close()
        assert server.wait() == 0
        for late in refused:
            late.socket.close()


def test_a_second_sigterm_ends_at_once(start):
    server = start("--drain_ms", "60000", "--linger_ms", "60000")
    with server.raw_ws("stubborn") as stubborn:
        server.signal(signal.SIGTERM)
        assert stubborn.close_code() == 1001
        assert server.process.poll() is None
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait()
        assert time.monotonic() - began < 20


def test_a_port_that_is_taken_names_its_flag():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [BINARY, "--bind", "127.0.0.1", "--ws_port", port, "--http_port", "0"]
        command += ["--prometheus_port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode != 0
        assert "--ws_port" in done.stderr and port in done.stderr, done.stderr


def test_the_metrics_port_ends_what_does_not_come_whole(start):
    """Deadlines were checked only when a new connection was accepted."""
    server = start("--request_timeout_ms", "300")
    with Raw(server.metrics_address) as raw:
        raw.send("GET /metrics HTTP/1.1\r\n")
        assert raw.read_response()[0] == 408
        assert raw.ended()


def test_a_session_ends_with_4003_unless_it_is_refreshed(start):
    server = start()
    soon = int(time.time()) + 2
    with (
        server.client("ends", session_exp=soon) as ends,
        server.client("stays", session_exp=soon) as stays,
        server.client("forever") as forever,
    ):

        def refresh(client, until, secret="dev-secret"):
            sign = hmac_hex(secret, f"refresh\n{client.cid}\n{until}")
            message = {"type": "refresh", "session_exp": until, "sign": sign, "id": "r"}
            return client.ask(message)

        later = soon + 3600
        refused = json.loads(refresh(stays, later, "wrong"))
        assert (refused["type"], refused["code"], refused["id"]) == ("refresh", 0, "r")
        success = '{"type":"refresh","code":1,"msg":"success","id":"r"}'
        assert refresh(stays, later) == success
        assert json.loads(refresh(forever, later))["code"] == 0
        assert ends.close_code()[0] == 4003
        assert soon <= time.time() < soon + 1.5
        for client in (stays, forever):
            assert client.ask({"type": "heartbeat"}).startswith('{"type":"heartbeat"')
        # A refresh can also shorten the session.
        assert refresh(stays, soon) == success
        assert stays.close_code()[0] == 4003
    assert server.metric("ws_cluster_close_total", reason="session_expired") == 2


def test_a_flood_of_messages_waits_for_its_answers(start):
    """A burst of 64 KiB was answered with a hundred megabytes at once: each reply lists all
    tags."""
    server = start()
    tags = [f"{number:03}" + "x" * 125 for number in range(255)]
    message = frame(TEXT, json.dumps({"type": "subscribe", "tags": "a"}))
    with server.raw_ws("flood", receive_buffer=4096) as greedy:
        with server.client("other") as other:
            greedy.frame(TEXT, json.dumps({"type": "subscribe", "tags": tags}))
            assert [greedy.read_frame()[0] for _ in range(2)] == [0x81] * 2
            before = server.resident_bytes()
            greedy.send(message * (300_000 // len(message)))
            for _ in range(20):
                other.ask({"type": "heartbeat"})
                assert server.resident_bytes() - before < 16 << 20
                time.sleep(0.02)
            # Every message is answered, as fast as the client reads.
            for _ in range(300_000 // len(message)):
                assert json.loads(greedy.read_frame()[1])["type"] == "subscribe"
            greedy.frame(TEXT, '{"type":"heartbeat","id":"end"}')
            assert json.loads(greedy.read_frame()[1])["id"] == "end"
    assert server.metric("ws_cluster_close_total", reason="slow_consumer") == 0


def test_a_flood_that_is_read_does_not_hold_up_pushes(start):
    server = start()
    tags = [f"{number:03}" + "x" * 125 for number in range(255)]
    message = frame(TEXT, json.dumps({"type": "subscribe", "tags": "a"}))
    is_over = threading.Event()
    with server.raw_ws("flood") as greedy, server.client("other") as other:
        greedy.frame(TEXT, json.dumps({"type": "subscribe", "tags": tags}))
        assert [greedy.read_frame()[0] for _ in range(2)] == [0x81] * 2

        def flood():
            # Always more messages than are answered at once.
            greedy.send(message * 200)
            while not is_over.is_set():
                greedy.send(message * 50)
                for _ in range(50):
                    greedy.read_frame()

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            for number in range(50):
                server.push(number, uids=["other"])
                assert other.pushed() == str(number)
        finally:
            is_over.set()
            flooding.join()
