"""RFC 6455, strictly: every violation has its close code and affects nobody else."""

import json
import random
import struct

import pytest
from harness import BINARY_FRAME, CLOSE, PING, PONG, TEXT, frame

HEARTBEAT = b'{"type":"heartbeat","id":"h"}'


def open_raw(server, name, **params):
    raw = server.raw_ws(name, **params)
    assert b'"connect"' in raw.read_frame()[1]
    return raw


def assert_alive(raw):
    raw.frame(TEXT, HEARTBEAT)
    first, payload = raw.read_frame()
    assert first == 0x81 and json.loads(payload)["id"] == "h"


PROTOCOL_ERRORS = {
    "unmasked": [frame(TEXT, "{}", mask=None)],
    "rsv1": [frame(TEXT, "{}", rsv=4)],
    "rsv2": [frame(TEXT, "{}", rsv=2)],
    "rsv3": [frame(PING, "", rsv=1)],
    "opcode 3": [frame(3, "")],
    "opcode 11": [frame(11, "")],
    "fragmented ping": [frame(PING, "", fin=False)],
    "fragmented close": [frame(CLOSE, "", fin=False)],
    "ping of 126": [frame(PING, "x" * 126)],
    "pong of 126": [frame(PONG, "x" * 126)],
    "close of 126": [frame(CLOSE, struct.pack(">H", 1000) + b"x" * 124)],
    "5 in 16 bits": [frame(TEXT, "12345", length=16)],
    "125 in 16 bits": [frame(TEXT, "x" * 125, length=16)],
    "126 in 64 bits": [frame(TEXT, "x" * 126, length=64)],
    "65535 in 64 bits": [frame(TEXT, "x" * 65535, length=64)],
    "top bit of the length": [b"\x81\xff" + struct.pack(">Q", 1 << 63) + b"\1\2\3\4"],
    "continuation of nothing": [frame(0, "x")],
    "continuation after the end": [frame(TEXT, "a", fin=False), frame(0, "b"), frame(0, "c")],
    "text in text": [frame(TEXT, "a", fin=False), frame(TEXT, "b")],
    "binary in text": [frame(TEXT, "a", fin=False), frame(BINARY_FRAME, "b", fin=False)],
    "close of one byte": [frame(CLOSE, "x")],
    **{
        f"close {code}": [frame(CLOSE, struct.pack(">H", code))]
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}

NOT_UTF8 = {
    "a lone byte": [frame(TEXT, b"\xff")],
    "overlong": [frame(TEXT, b"\xc0\xaf")],
    "a surrogate": [frame(TEXT, b"\xed\xa0\x80")],
    "cut at the end": [frame(TEXT, b"a\xe2\x82")],
    "in a later fragment": [frame(TEXT, b"a", fin=False), frame(0, b"\xff", fin=False)],
    "cut by the end": [frame(TEXT, b"\xe2", fin=False), frame(0, b"\x82")],
    "in the close reason": [frame(CLOSE, struct.pack(">H", 1000) + b"\xff")],
}

TOO_BIG = {
    "one frame": [frame(TEXT, "x" * 65537)],
    "said only": [b"\x81\xff" + struct.pack(">Q", 1 << 40) + b"\1\2\3\4"],
    "fragments": [frame(TEXT, "x" * 40_000, fin=False), frame(0, "x" * 25_537)],
    "binary": [frame(BINARY_FRAME, b"\0" * 65537)],
}


@pytest.mark.parametrize(
    ("code", "frames"),
    [
        pytest.param(code, frames, id=f"{code} {what}")
        for code, cases in ((1002, PROTOCOL_ERRORS), (1007, NOT_UTF8), (1009, TOO_BIG))
        for what, frames in cases.items()
    ],
)
def test_broken_rules(shared, name, code, frames):
    with open_raw(shared, f"{name}other") as other, open_raw(shared, name) as raw:
        raw.send(b"".join(frames))
        assert raw.close_code() == code
        assert raw.ended()
        assert_alive(other)


def test_a_violation_ends_what_came_behind_it(shared, name):
    with open_raw(shared, name) as raw:
        raw.send(frame(TEXT, HEARTBEAT) + frame(3) + frame(TEXT, HEARTBEAT))
        assert json.loads(raw.read_frame()[1])["id"] == "h"
        assert raw.read_frame()[0] == 0x88
        assert raw.ended()


def test_messages_of_64_kib_are_taken(shared, name):
    with open_raw(shared, name) as raw:
        message = b'{"type":"heartbeat","id":"h","x":"' + b"x" * (65536 - 36) + b'"}'
        assert len(message) == 65536
        raw.frame(TEXT, message)
        assert json.loads(raw.read_frame()[1])["type"] == "heartbeat"
        raw.send(frame(TEXT, message[:40_000], fin=False) + frame(0, message[40_000:]))
        assert json.loads(raw.read_frame()[1])["type"] == "heartbeat"


def test_fragments_with_control_frames_between(shared, name):
    with open_raw(shared, name) as raw:
        text = '{"type":"heartbeat","id":"é😀"}'.encode()
        for at in range(len(text)):
            raw.frame(TEXT if at == 0 else 0, text[at : at + 1], fin=False)
            if at % 7 == 0:
                raw.frame(PING, str(at))
                assert raw.read_frame() == (0x80 | PONG, str(at).encode())
            raw.frame(PONG, b"unasked")
        raw.frame(0, b"")
        assert json.loads(raw.read_frame()[1])["id"] == "é😀"


def test_frames_byte_by_byte_and_many_at_once(shared, name):
    with open_raw(shared, name) as raw:
        for byte in frame(TEXT, HEARTBEAT):
            raw.send(bytes([byte]))
        assert json.loads(raw.read_frame()[1])["id"] == "h"
        raw.send(frame(TEXT, HEARTBEAT) * 500)
        for _ in range(500):
            assert json.loads(raw.read_frame()[1])["id"] == "h"


def test_pings_are_answered_with_their_payload(shared, name):
    with open_raw(shared, name) as raw:
        for payload in (b"", b"x", random.Random(1).randbytes(125)):
            raw.frame(PING, payload)
            assert raw.read_frame() == (0x80 | PONG, payload)


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1009, 1011, 3000, 4321, 4999])
def test_a_close_is_answered_with_its_code(shared, name, code):
    with open_raw(shared, name) as raw:
        raw.frame(CLOSE, struct.pack(">H", code) + "reason é".encode())
        assert raw.close_code() == code
        assert raw.ended()


def test_an_empty_close(shared, name):
    with open_raw(shared, name) as raw:
        raw.frame(CLOSE)
        first, payload = raw.read_frame()
        assert first == 0x88 and payload in (b"", struct.pack(">H", 1000))
        assert raw.ended()


def test_the_library_sees_the_close_handshake(shared, name):
    client = shared.client(name)
    client.connection.close(4000, "bye")
    assert client.connection.close_code == 4000


def test_what_was_pushed_before_a_close_still_arrives(shared, name):
    with open_raw(shared, name) as raw:
        for number in range(50):
            shared.push(number, uids=[name])
        raw.frame(CLOSE, struct.pack(">H", 1000))
        got = []
        while (item := raw.read_frame())[0] != 0x88:
            got.append(json.loads(item[1])["data"])
        assert got == list(range(50))


def test_a_connection_that_just_vanishes_harms_nobody(shared, name):
    with open_raw(shared, f"{name}stays") as stays:
        for turn in range(20):
            raw = open_raw(shared, name)
            raw.send(frame(TEXT, HEARTBEAT)[: turn + 1])
            option = struct.pack("ii", 1, 0)
            import socket

            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            raw.socket.close()
            shared.push(turn, uids=[name])
        assert_alive(stays)
