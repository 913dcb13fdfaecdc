"""Pings, deadlines, and a process that was stopped."""

import contextlib
import json
import pathlib
import re
import signal
import time

from harness import PING, PONG, TEXT, Raw, Server, eventually, frame, handshake, signed


@contextlib.contextmanager
def serving(*args):
    server = Server("--workers", "2", *args)
    try:
        yield server
    finally:
        server.stop()


def frames_within(raw, seconds):
    """The first bytes of the received frames, and their times."""
    came, began = [], time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        raw.socket.settimeout(left)
        try:
            came.append((raw.read_frame()[0], time.monotonic() - began))
        except TimeoutError:
            break
        if came[-1][0] == 0x88:
            break
    raw.socket.settimeout(10)
    return came


def wakes_of_workers(pid):
    """The number of sleeps of each worker's thread."""
    wakes = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        if name.startswith("worker-"):
            status = (task / "status").read_text()
            wakes[name] = int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", status)[1])
    return wakes


def test_idle_workers_sleep_until_something_is_due():
    """Each worker checked for deadlines every 50 ms, without any: 54 workers woke 1,100 times a
    second."""
    server = Server("--workers", "4")
    try:
        with server.raw_ws("idle") as raw:
            assert raw.read_frame()[1].startswith(b'{"type":"connect"')
            time.sleep(0.5)
            before = wakes_of_workers(server.process.pid)
            time.sleep(2)
            after = wakes_of_workers(server.process.pid)
        assert len(after) == 4
        # An idle worker sleeps for up to 250 ms.
        assert all(after[name] - before[name] <= 20 for name in after), (before, after)
    finally:
        server.stop()


def test_a_quiet_connection_is_pinged_and_one_with_traffic_is_not():
    """No ping was sent before half of the idle timeout, 60 s: a proxy with 60 s had closed the
    connection."""
    with serving("--ping_interval_ms", "400") as server, contextlib.ExitStack() as stack:
        names = ("quiet", "listens", "speaks")
        raws = [stack.enter_context(server.raw_ws(name)) for name in names]
        speaks = raws[2]
        for raw in raws:
            assert raw.read_frame()[1].startswith(b'{"type":"connect"')
        for _ in range(10):
            began = last = time.monotonic()
            longest = 0
            while last - began < 1.5:
                server.push("x", uids=["listens"])
                speaks.frame(PONG)
                time.sleep(0.05)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
            came = [[first for first, _ in frames_within(raw, 0.1)] for raw in raws]
            # The client answers none of them.
            assert set(came[0]) == {0x80 | PING}
            assert 1.5 / 0.4 - 2 <= len(came[0]) <= (time.monotonic() - began) / 0.4 + 1
            # On a machine too busy for traffic in that time, the test proves nothing.
            if longest < 0.3:
                break
        assert (set(came[1]), came[2]) == ({0x81}, [])


def test_a_node_that_stood_still_takes_nobody_for_silent_or_late():
    """Stopped for 2.6 s with an idle timeout of 4 s, it closed all silent clients with 4002."""
    args = ["--idle_timeout_ms", "2000", "--request_timeout_ms", "1000"]
    with serving(*args) as server, contextlib.ExitStack() as stack:
        raws = [stack.enter_context(server.raw_ws(f"u{n}")) for n in range(20)]
        for raw in raws:
            assert raw.read_frame()[1].startswith(b'{"type":"connect"')
        business = stack.enter_context(server.business("request"))
        asking = stack.enter_context(server.client("asks"))
        time.sleep(0.6)
        http = stack.enter_context(Raw(server.http))
        http.send("GET /healthz HTTP/1.1\r\n")
        ws = stack.enter_context(Raw(server.ws))
        hello = handshake(f"/ws/connect?{signed('/ws/connect', server.connect_params('late'))}")
        ws.send(hello[:-2])
        asking.send({"type": "request", "id": "r", "data": 1})
        asked = business.json()
        server.signal(signal.SIGSTOP)
        time.sleep(1.4)
        server.signal(signal.SIGCONT)
        # Several ticks: a connection that counts as late would have been closed.
        time.sleep(0.25)
        business.send({"type": "response", "id": asked["id"], "data": 2})
        assert asking.json()["data"] == 2
        http.send("Host: x\r\n\r\n")
        assert http.read_response()[0] == 200
        ws.send(hello[-2:])
        assert ws.read_head().startswith("HTTP/1.1 101 ")
        for raw in raws:
            assert raw.read_frame() == (0x80 | PING, b"")
            raw.frame(PONG)
            raw.send(frame(TEXT, '{"type":"heartbeat"}'))
            assert json.loads(raw.read_frame()[1])["type"] == "heartbeat"
        assert server.metric("ws_cluster_close_total", reason="idle") == 0
        assert server.metric("ws_cluster_worker_stalled_seconds_total") > 1
        for raw in raws[:3]:
            raw.frame(TEXT, '{"type":"heartbeat"}')
        # A silent connection is pinged and closed as usual.
        assert raws[0].read_frame()[0] == 0x81
        assert raws[0].read_frame() == (0x80 | PING, b"")
        assert raws[0].close_code() == 4002


def closed(server, reason):
    return server.metric("ws_cluster_close_total", reason=reason)


def test_a_message_that_drips_in_has_an_end():
    """An occasional byte kept a connection and up to 93 KB of memory for as long as the peer
    liked."""
    beat = '{"type":"heartbeat"}'
    with serving("--message_timeout_ms", "600") as server, contextlib.ExitStack() as stack:
        names = ("drips", "fragments", "slow")
        raws = [stack.enter_context(server.raw_ws(name)) for name in names]
        drips, fragments, slow = raws
        for raw in raws:
            raw.read_frame()
        halves = [frame(TEXT, beat)[:9], frame(TEXT, beat)[9:]]
        fragments.frame(TEXT, "[", fin=False)
        ended, began = {}, time.monotonic()
        drips.send(frame(TEXT, "[" + " " * 200)[:8])
        while len(ended) < 2 and time.monotonic() - began < 10:
            # Each of its messages takes 0.2 s, so it stays connected, whatever their number.
            slow.send(halves[0])
            time.sleep(0.1)
            slow.send(halves[1])
            assert json.loads(slow.read_frame()[1])["type"] == "heartbeat"
            time.sleep(0.1)
            for raw in (drips, fragments):
                if raw in ended:
                    continue
                came = frames_within(raw, 0.001)
                if any(first == 0x88 for first, _ in came):
                    ended[raw] = time.monotonic() - began
                    continue
                with contextlib.suppress(OSError):
                    if raw is drips:
                        raw.send(b" ")
                    else:
                        raw.frame(PING)
                        raw.frame(0, " ", fin=False)
        assert len(ended) == 2 and all(0.6 <= after < 5 for after in ended.values()), ended
        assert closed(server, "message_timeout") == 2
        eventually(lambda: server.metric("ws_cluster_inbound_bytes") == 0, "nothing is kept")


def test_messages_that_are_not_whole_have_a_budget():
    flags = ["--workers", "1", "--max_body_bytes", "64k", "--worker_inbound_bytes", "1M"]
    server = Server(*flags)
    try:
        with contextlib.ExitStack() as stack:
            message = frame(TEXT, json.dumps({"type": "heartbeat", "pad": "x" * 60_000}))
            raws = []
            for number in range(40):
                raws.append(stack.enter_context(server.raw_ws(f"u{number}")))
                raws[-1].read_frame()
                raws[-1].send(message[:-10])
            gone = lambda: closed(server, "inbound_budget")
            eventually(lambda: gone() > 20, "the oldest are closed")
            assert server.metric("ws_cluster_inbound_bytes") <= 1 << 20
            assert raws[0].close_code() == 1008
            raws[-1].send(message[-10:])
            assert json.loads(raws[-1].read_frame()[1])["type"] == "heartbeat"
            assert gone() < 40
        eventually(lambda: server.metric("ws_cluster_inbound_bytes") == 0, "nothing is kept")
    finally:
        server.stop()
