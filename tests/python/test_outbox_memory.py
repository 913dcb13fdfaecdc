"""The memory of clients that do not read: bounded in the process and in the kernel, and
returned."""

import contextlib
import os
import signal
import time

import harness
import pytest
from harness import Server, eventually

MIB = 1 << 20


def slow_clients(server, stack, count, **params):
    clients = [
        stack.enter_context(server.raw_ws(f"slow{number}", receive_buffer=4096, **params))
        for number in range(count)
    ]
    eventually(lambda: server.metric("ws_connection") >= count, "all are connected")
    return clients


def queued_by_kernel(server):
    """The kernel's mean memory per WebSocket connection of the server, in bytes."""
    port = f":{server.ws[1]:04X}"
    with open("/proc/net/tcp") as lines:
        rows = [line.split() for line in lines]
    queues = [int(row[4].split(":")[0], 16) for row in rows if row[1].endswith(port)]
    open_ones = [bytes_ for bytes_ in queues if bytes_ > 0]
    return sum(open_ones) // max(1, len(open_ones))


@pytest.mark.parametrize("cause", ["going_away", "idle", "session_expired", "slow_consumer"])
def test_closing_clients_share_what_is_left_of_a_frame(cause):
    """Each client had a copy: 1,500 clients, two pushes of 1 MB, then SIGTERM, took 1.3 GB."""
    idle_timeout_ms = "3000" if cause == "idle" else "60000"
    server = Server(
        "--workers", "1", "--linger_ms", "3000", "--drain_ms", "4000",
        "--idle_timeout_ms", idle_timeout_ms,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        ends = {"session_exp": str(int(time.time()) + 6)} if cause == "session_expired" else {}
        slow_clients(server, stack, 150, **ends)
        before = server.resident_bytes()
        for _ in range(2):
            server.push("x" * 1_000_000)
        if cause in ("going_away", "slow_consumer"):
            eventually(lambda: server.metric("ws_cluster_outbox_connection") == 150, "all are backlogged")
        if cause == "going_away":
            server.signal(signal.SIGTERM)
        elif cause == "slow_consumer":
            server.push("x" * 1_000_000)
        else:
            closed = lambda: server.metric("ws_cluster_close_total", reason=cause)
            eventually(lambda: closed() > 0, "the first are closed", 10)
        largest = 0
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, StopIteration):
                largest = max(largest, server.resident_bytes())
            time.sleep(0.01)
        assert largest - before < 24 * MIB, largest - before
        if cause != "going_away":
            assert server.metric("ws_cluster_close_total", reason=cause) == 150


def test_the_default_budget_follows_the_memory_limit_and_counts_what_is_allocated():
    server = Server("--workers", "1", "--memory_limit_bytes", "64M", "--linger_ms", "200")
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        clients = slow_clients(server, stack, 120)
        before = server.resident_bytes()
        data = "x" * 400
        while server.metric("ws_cluster_outbox_shed_total", reason="worker") < 5:
            for _ in range(100):
                server.push(data)
            assert server.metric("ws_cluster_outbox_bytes") <= 16 * MIB
            # The batch, its copies for the slow clients, and the allocator's overhead.
            assert server.resident_bytes() - before < 32 * MIB
        # The kernel once took 2.8 MB for each.
        assert queued_by_kernel(server) < 200_000
        assert server.metric("ws_cluster_close_total", reason="slow_consumer") >= 5
        for client in clients:
            client.__exit__()
        eventually(lambda: server.metric("ws_cluster_outbox_bytes") == 0, "all have left")
        eventually(lambda: server.resident_bytes() - before < 8 * MIB, "it is given back")


@pytest.mark.parametrize("workers", ["1", "4"], ids=["1-worker", "4-workers"])
def test_small_frames_take_little_more_than_their_budget(workers):
    """They took three times as much: a closed connection left blocks of many sizes, which no other
    outbox could use. In a control group of 64 MB the kernel ended a node of four workers, in one of
    128 MB a node of fifteen."""
    server = Server("--workers", workers, "--memory_limit_bytes", "64M", "--linger_ms", "200")
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        slow_clients(server, stack, 500)
        before = largest = server.resident_bytes()
        messages = [{"data": "x" * 60}] * 200
        while server.metric("ws_connection") > 30:
            answer = server.post_json("/ws/push/batch", {"pid": "1", "messages": messages})
            assert answer.status == 200, answer.text
            largest = max(largest, server.resident_bytes())
            assert server.metric("ws_cluster_outbox_bytes") <= 16 * MIB
        assert server.metric("ws_cluster_outbox_shed_total", reason="worker") > 400
        assert largest - before < 36 * MIB, largest - before


def test_the_slowest_are_closed_before_the_memory_limit_is_reached():
    server = Server(
        "--workers", "1", "--memory_limit_bytes", "48M", "--worker_outbox_bytes", "1G",
        "--outbox_bytes", "512M", "--linger_ms", "200",
    )
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        slow_clients(server, stack, 40)
        pushed = 0
        while server.metric("ws_cluster_outbox_shed_total", reason="memory") == 0:
            server.push("x" * 15_000)
            pushed += 1
            assert pushed < 2_000
        assert server.metric("ws_cluster_memory_limit_bytes") == 48 * MIB
        assert server.metric("ws_cluster_memory_used_bytes") > 0
        limits = [line for line in server.output if "memory is near its limit" in line]
        assert len(limits) == 1 and "--memory_limit_bytes" in limits[0], limits


@contextlib.contextmanager
def memory_cgroup(limit):
    """A control group with that limit, version 1 or 2; skips if none can be created."""
    v1 = "/sys/fs/cgroup/memory"
    parent, name = (v1, "memory.limit_in_bytes") if os.path.isdir(v1) else (
        "/sys/fs/cgroup", "memory.max"
    )
    path = os.path.join(parent, f"ws-cluster-test-{os.getpid()}-{time.monotonic_ns()}")
    try:
        os.mkdir(path)
        with open(os.path.join(path, name), "w") as file:
            file.write(str(limit))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    try:
        yield path
    finally:
        eventually(lambda: not open(os.path.join(path, "cgroup.procs")).read(), "it is empty")
        os.rmdir(path)


def test_a_small_control_group_is_no_end_of_the_node(tmp_path, monkeypatch):
    """With default flags in 128 MB the kernel killed the node."""
    with memory_cgroup(128 * MIB) as group, contextlib.ExitStack() as stack:
        program = tmp_path / "ws-cluster"
        program.write_text(
            f'#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {harness.BINARY} "$@"\n'
        )
        program.chmod(0o755)
        monkeypatch.setattr(harness, "BINARY", str(program))
        server = Server("--workers", "1")
        stack.callback(server.stop)
        assert server.metric("ws_cluster_memory_limit_bytes") == 128 * MIB
        slow_clients(server, stack, 150)
        # It would take 300 MB if all of it were kept.
        for number in range(1_000):
            server.push("x" * 4_000, uids=[f"slow{number % 150}"])
            if number % 2 == 0:
                server.push("x" * 4_000)
        assert server.process.poll() is None
        assert server.metric("ws_cluster_outbox_bytes") <= 32 * MIB
