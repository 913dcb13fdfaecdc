#!/usr/bin/env python3
"""How evenly the clients of a node that stops come to another one.

    cargo build --release
    bench/drain.py                             # 15,000 clients, 8 s

Two nodes, all clients at the first, with messages to all of them every 200 ms. SIGTERM; each client
waits as long as its Close frame says (`reconnect_after_ms`) and connects to the second. It prints
the connects in each 100 ms as they arrived, beside the mean.
"""

import argparse
import heapq
import json
import multiprocessing
import os
import selectors
import signal
import socket
import statistics
import sys
import threading
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(HERE, "tests", "python"))
STEP_S = 0.1
MAX_RATIO = 2.0


def main():
    args = arguments()
    # The harness takes the binary from the environment when it is imported.
    os.environ["WS_CLUSTER_BIN"] = args.server
    from harness import Server, handshake

    flags = ("--workers", str(args.workers), "--drain_ms", str(args.drain_ms))
    with Server(*flags) as first, Server(*flags) as second:
        nodes = (first, second)
        heads = [
            [handshake(server.url(f"u{number}").partition(str(server.ws[1]))[2]) for server in nodes]
            for number in range(args.clients)
        ]
        results = multiprocessing.Queue()
        ready = multiprocessing.Barrier(args.processes + 1)
        crews = [
            multiprocessing.Process(
                target=crew,
                args=(heads[part :: args.processes], first.ws, second.ws, ready, results),
            )
            for part in range(args.processes)
        ]
        for one in crews:
            one.start()
        ready.wait(120)
        pushed, ends = 0, threading.Event()

        def push():
            nonlocal pushed
            while not ends.wait(0.2):
                try:
                    answer = first.post_json("/ws/push", {"pid": "1", "data": "x" * 100})
                except OSError:
                    return
                if answer.status != 200:
                    return
                pushed += 1

        pusher = threading.Thread(target=push, daemon=True)
        pusher.start()
        time.sleep(2)
        began = time.monotonic()
        first.signal(signal.SIGTERM)
        code = first.wait(args.drain_ms / 1_000 + 30)
        took = time.monotonic() - began
        ends.set()
        parts = [results.get(timeout=60) for _ in crews]
        for one in crews:
            one.join()
        pusher.join()
    arrived = sorted(at - began for part in parts for at in part["connected"])
    told = sorted(at - began for part in parts for at in part["told"])
    out = {
        "clients": args.clients,
        "exit_code": code,
        "drain_s": round(took, 2),
        "pushes": pushed,
        "pushes_received_by_each": sorted({count for part in parts for count in part["pushes"]}),
        "close_codes": sorted({one for part in parts for one in part["codes"]}),
        "told": evenness(told),
        "connected": evenness(arrived),
        "command": " ".join(sys.argv),
    }
    print(json.dumps(out))
    sys.exit(0 if out["connected"]["highest_to_mean"] <= MAX_RATIO else 1)


def evenness(times):
    """Connects in each 100 ms, from the first to the last."""
    steps = [0] * (int((times[-1] - times[0]) / STEP_S) + 1)
    for at in times:
        steps[int((at - times[0]) / STEP_S)] += 1
    # The last one is not a whole step.
    steps = steps[:-1] or steps
    mean = statistics.mean(steps)
    return {
        "from_s": round(times[0], 2),
        "to_s": round(times[-1], 2),
        "mean_per_100_ms": round(mean, 1),
        "highest_per_100_ms": max(steps),
        "highest_to_mean": round(max(steps) / mean, 2),
    }


def crew(heads, first, second, ready, results):
    """Holds clients, and takes each to the second node at the time that its Close frame names."""
    chosen = selectors.DefaultSelector()
    for number, (head, _) in enumerate(heads):
        client = socket.create_connection(first)
        client.sendall(head)
        chosen.register(client, selectors.EVENT_READ, number)
    buffers = [bytearray() for _ in heads]
    opened = [False] * len(heads)
    counts = [0] * len(heads)
    told, connected, codes, due = [], [], [], []
    returning = {}
    is_open = False
    while len(connected) < len(heads):
        if not is_open and all(opened):
            is_open = True
            ready.wait(120)
        now = time.monotonic()
        while due and due[0][0] <= now:
            _, number = heapq.heappop(due)
            client = socket.socket()
            client.connect(second)
            client.sendall(heads[number][1])
            returning[client] = number
            chosen.register(client, selectors.EVENT_READ, number)
        wait = max(0.0, due[0][0] - time.monotonic()) if due else 0.05
        for key, _ in chosen.select(min(wait, 0.05)):
            client, number = key.fileobj, key.data
            try:
                data = client.recv(1 << 16)
            except OSError:
                data = b""
            if client in returning:
                # The answer to the handshake: connected.
                connected.append(time.monotonic())
                chosen.unregister(client)
                del returning[client]
                kept.append(client)
                continue
            if not data:
                chosen.unregister(client)
                client.close()
                continue
            buffer = buffers[number]
            buffer += data
            if not opened[number]:
                end = buffer.find(b"\r\n\r\n")
                if end < 0:
                    continue
                opened[number] = True
                del buffer[: end + 4]
            for opcode, payload in frames(buffer):
                if opcode == 1 and payload.startswith(b'{"type":"push"'):
                    counts[number] += 1
                elif opcode == 8:
                    codes.append(int.from_bytes(payload[:2], "big"))
                    wait_ms = json.loads(payload[2:])["reconnect_after_ms"]
                    at = time.monotonic() + wait_ms / 1_000
                    told.append(at)
                    heapq.heappush(due, (at, number))
                    client.sendall(b"\x88\x82\0\0\0\0" + payload[:2])
    results.put({"told": told, "connected": connected, "codes": codes, "pushes": counts})


# Sockets at the second node, which stay open.
kept = []


def frames(buffer):
    """Takes whole frames of a server out of the buffer."""
    found = []
    while len(buffer) >= 2:
        length, head = buffer[1], 2
        if length == 126:
            if len(buffer) < 4:
                break
            length, head = int.from_bytes(buffer[2:4], "big"), 4
        if len(buffer) < head + length:
            break
        found.append((buffer[0] & 15, bytes(buffer[head : head + length])))
        del buffer[: head + length]
    return found


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    release = os.path.join(HERE, "target", "release", "ws-cluster")
    parser.add_argument("--server", default=release)
    parser.add_argument("--clients", type=int, default=15_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--drain_ms", type=int, default=8_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
