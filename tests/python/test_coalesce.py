"""`--coalesce_us`: pushes are held for a moment and share a send; replies are not held.

The host may stall for longer than the window at any time, so the best of several rounds
counts.
"""

import contextlib
import json
import signal
import socket
import struct
import time

import pytest

WINDOW_MS = 10
ROUNDS = 20
PUSHES = 12
# Offset of `tcpi_data_segs_in` in `struct tcp_info`.
DATA_SEGMENTS = 152


@pytest.fixture
def held(start):
    return start("--coalesce_us", str(WINDOW_MS * 1_000))


def segments(raw):
    """Data segments that the client's socket has received."""
    info = raw.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, DATA_SEGMENTS + 4)
    return struct.unpack_from("=I", info, DATA_SEGMENTS)[0]


def segments_of_a_round(server, raw):
    """Pushes one after the other, each answered before the next; they arrive in order."""
    before = segments(raw)
    for number in range(PUSHES):
        server.push(number, uids=["reader"])
    for number in range(PUSHES):
        assert json.loads(raw.read_frame()[1])["data"] == number
    return segments(raw) - before


@pytest.mark.parametrize("coalesce_us", [0, WINDOW_MS * 1_000])
def test_pushes_of_one_window_share_a_segment(start, coalesce_us):
    server = start("--coalesce_us", str(coalesce_us))
    with server.raw_ws("reader") as raw:
        assert json.loads(raw.read_frame()[1])["type"] == "connect"
        rounds = [segments_of_a_round(server, raw) for _ in range(ROUNDS)]
    if coalesce_us:
        assert min(rounds) <= PUSHES // 2, rounds
    else:
        assert max(rounds) >= PUSHES, rounds


def fastest_ms(once):
    """The best time of several rounds, with a pause so that no window is open before one."""
    times = []
    for number in range(ROUNDS):
        time.sleep(2 * WINDOW_MS / 1_000)
        began = time.monotonic()
        once(number)
        times.append((time.monotonic() - began) * 1_000)
    return min(times)


def test_a_push_waits_and_one_that_would_expire_does_not(held):
    with held.client("reader") as client:

        def push(number, **members):
            held.push(number, uids=["reader"], **members)
            assert client.pushed() == str(number)

        def push_for_a_moment(number):
            held.push(number, uids=["reader"], ttl_ms=WINDOW_MS // 2)
            # If the host stalls for that long, the push expires on its way and does not arrive.
            with contextlib.suppress(TimeoutError):
                while client.json(timeout=1)["data"] != number:
                    pass

        assert fastest_ms(push) >= WINDOW_MS
        assert fastest_ms(push_for_a_moment) < WINDOW_MS
        # The time is long enough for the window.
        assert fastest_ms(lambda number: push(number, ttl_ms=60_000)) >= WINDOW_MS


def test_an_answer_waits_for_nothing_and_comes_behind_what_was_held(held):
    with held.client("reader") as client:

        def push_and_ask(number):
            held.push(number, uids=["reader"])
            client.send({"type": "heartbeat", "id": str(number)})
            assert client.pushed() == str(number)
            assert client.json()["id"] == str(number)

        assert fastest_ms(push_and_ask) < WINDOW_MS

        def connect(number):
            with held.client(f"guest-{number}"):
                pass

        assert fastest_ms(connect) < WINDOW_MS


def test_what_is_held_is_sent_before_the_node_ends(held):
    with held.client("reader") as client:
        held.push("last", uids=["reader"])
        held.signal(signal.SIGTERM)
        assert client.pushed() == '"last"'
        assert client.close_code()[0] == 1001
    assert held.wait() == 0
