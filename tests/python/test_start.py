"""The output of a node that the machine does not let start or continue, and of one that runs."""

import errno
import json
import os
import pathlib
import pty
import re
import resource
import signal
import socket
import subprocess
import time

import pytest
from harness import BINARY, PORTS, Server, eventually
from seccomp import refuse

CONTAINERS = "allow io_uring_setup, io_uring_enter, io_uring_register and unshare"
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


def command(*args, user=None):
    line = [BINARY, "--pin", "false", *args]
    for flag in PORTS:
        line += [f"--{flag}", "0"]
    if user is not None:
        line = ["setpriv", "--reuid", str(user), "--clear-groups", "--bounding-set=-all", *line]
    return line


def fails(*args, user=None, before=None, env=None):
    """Returns the error of a node that cannot start: one line, only on standard error."""
    done = subprocess.run(
        command(*args, user=user), capture_output=True, text=True, timeout=30,
        preexec_fn=before, env={**os.environ, **(env or {})},
    )
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("ws-cluster: "), done
    assert "listening" not in done.stdout and "ERROR" not in done.stdout, done
    return done.stderr


# Refusals by the machine.


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_io_uring_that_a_container_forbids(workers, error):
    why = fails("--workers", workers, before=refuse("io_uring_setup", error))
    assert "io_uring cannot be set up" in why and CONTAINERS in why, why


def test_a_ring_that_takes_nothing():
    """The ring was created, but its errors were ignored: the threads span for ever."""
    why = fails("--workers", "2", before=refuse("io_uring_enter", errno.EPERM))
    assert "io_uring_enter is refused" in why and CONTAINERS in why, why


def test_unshare_that_a_container_forbids():
    """The error was reported as a failure to write the log."""
    why = fails("--workers", "2", before=refuse("unshare", errno.EPERM))
    assert "unshare(CLONE_FILES) is refused" in why and CONTAINERS in why, why


def limited(which, value):
    return lambda: resource.setrlimit(which, (value, value))


@root
@pytest.mark.parametrize(("queue", "kib"), [("local", 592), ("redis", 696)])
def test_locked_memory_that_does_not_suffice(queue, kib):
    """Kernels before 6.14 do not count this memory."""
    args = ["--workers", "2", "--queue", queue, "--redis", "redis://127.0.0.1:1"]
    enough = limited(resource.RLIMIT_MEMLOCK, kib << 10)
    # Separate users: all processes of one share the limit. One user for each case: the kernel frees
    # the rings of the last one somewhat later.
    user = 61_000 + os.getpid() % 1_000 + (2_000 if queue == "redis" else 0)
    node = subprocess.Popen(
        command(*args, user=user), stdout=subprocess.PIPE, text=True, preexec_fn=enough
    )
    try:
        assert any("ws-cluster listening" in line for line in node.stdout), "the figure is enough"
        node.terminate()
        node.stdout.read()
        assert node.wait(10) == 0
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
    if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 14):
        pytest.skip("this kernel does not count the memory of rings")
    less = limited(resource.RLIMIT_MEMLOCK, (kib - 100) << 10)
    why = fails(*args, user=user + 1_000, before=less)
    assert f"locked memory is limited to {kib - 100} KiB" in why, why
    assert f"this node needs {kib} KiB: 240 for each of 2 workers" in why, why
    assert "LimitMEMLOCK=infinity" in why, why


@root
def test_threads_that_the_user_may_not_start():
    """Any thread may be the first one over the limit."""
    for threads in (1, 2, 4):
        before = limited(resource.RLIMIT_NPROC, threads)
        user = 63_000 + os.getpid() % 1_000
        why = fails("--workers", "2", user=user, before=before)
        assert re.search(r"the thread (logs|worker-\d|ops|signals) cannot be started", why), why
        assert f"user {user} may have {threads} processes and threads" in why, why
        assert "this node needs 6 threads" in why and "TasksMax=" in why, why


@pytest.mark.parametrize("files", [5, 8])
def test_a_lack_of_descriptors_names_the_limit(files):
    """The limit was reported as unlimited: the file with it could not be opened either."""
    why = fails("--workers", "2", before=limited(resource.RLIMIT_NOFILE, files))
    assert f"the limit of open files is {files}" in why and "raise it (LimitNOFILE=" in why, why


def test_what_memory_is_reserved_follows_from_the_limit_of_open_files():
    """With 512 MB of address space, 104 MB for a million connections of each worker ended a start
    with SIGABRT."""
    before = limited(resource.RLIMIT_AS, 512 << 20)
    with Server("--workers", "4", before=before) as server:
        assert server.request("GET", "/readyz").status == 200


# Failures of a running node.


def lost(before, patience=60):
    """The error of a node that starts, but whose ring is refused something that it needs only
    later."""
    node = subprocess.Popen(
        command("--workers", "1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=before,
    )
    try:
        listening = next(line for line in node.stdout if "listening" in line)
        port = int(re.search(r" ws=127.0.0.1:(\d+)", listening)[1])
        with socket.create_connection(("127.0.0.1", port)):
            output, errors = node.communicate(timeout=patience)
    finally:
        node.kill()
    assert node.returncode == 1 and 'stopped why="an error"' in output, (output, errors)
    assert len(errors.splitlines()) == 1, errors
    return errors


def test_a_ring_that_fails_ends_the_node():
    # The kernel's deferred work is run by an enter that submits nothing and waits for nothing.
    errors = lost(refuse("io_uring_enter", errno.EPERM, arg1=0, arg2=0, arg3=1))
    assert "io_uring_enter failed in a running worker" in errors, errors


def rings_of_worker():
    """The descriptors of the rings of a node's only worker: the executor's, and the nested one."""
    server = Server("--workers", "1")
    try:
        for task in pathlib.Path(f"/proc/{server.process.pid}/task").iterdir():
            if (task / "comm").read_text() == "worker-0\n":
                files = {int(fd.name): os.readlink(fd) for fd in (task / "fd").iterdir()}
                return sorted(fd for fd, file in files.items() if "[io_uring]" in file)
    finally:
        server.stop()
    raise AssertionError("there is no worker-0")


def test_an_executor_whose_ring_fails_ends_the_node():
    """The executor ignores the errors of its ring and retries at once: its thread span for a
    minute."""
    executor, _ = rings_of_worker()
    # Two threads spin, and a busy machine gives them little time.
    errors = lost(refuse("io_uring_enter", errno.EPERM, arg0=executor), patience=300)
    assert "uses CPU time without serving anybody: its io_uring no longer waits" in errors, errors


# What a node reports about itself.


def lines_of(server):
    return [json.loads(line) for line in server.output]


def test_one_line_at_the_start_and_one_at_the_end(start):
    server = start("--node", "9", "--log_format", "json", "--max_connections", "77")
    version = server.request("GET", "/version").json
    with server.client("alice"):
        server.push(1)
        eventually(lambda: server.metric("ws_cluster_delivery_total") == 1, "it is delivered")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    lines = lines_of(server)
    [begin] = [line["fields"] for line in lines if line["msg"] == "started"]
    assert (begin["version"], begin["commit"]) == (version["version"], version["commit"])
    assert (begin["node"], begin["env"], begin["queue"]) == (9, "dev", "local")
    assert (begin["projects"], begin["io"], begin["max_connections"]) == (1, "io_uring", 77)
    assert begin["http"] == f"127.0.0.1:{server.http[1]}" and begin["open_files"] > 0
    [end] = [line["fields"] for line in lines if line["msg"] == "stopped"]
    assert (end["why"], end["connections_served"]) == ("SIGTERM", 1)
    assert (end["messages_delivered"], end["messages_dropped"]) == (1, 0)
    assert end["uptime_s"] < 60 and lines[-1]["msg"] == "stopped"


def test_json_is_all_there_is_on_standard_output():
    server = Server("--log_format", "json", "--log_keep", "3")
    server.stop()
    lines = lines_of(server)
    listening = next(line for line in lines if line["msg"].startswith("ws-cluster listening: "))
    assert listening["fields"]["ws"] == f"127.0.0.1:{server.ws[1]}"
    [paste] = [line["fields"]["lines"] for line in lines if "lines" in line["fields"]]
    assert "curl -s" in paste


@pytest.mark.parametrize(
    ("args", "code"), [(["--ws_port", "x"], 2), (["--bind", "192.0.2.1"], 1), (["--nope"], 2)]
)
def test_a_failure_is_a_line_of_json_too(args, code):
    done = subprocess.run(
        command("--log_format", "json")[:-2 * len(PORTS)] + args, capture_output=True, text=True,
        timeout=20,
    )
    assert done.returncode == code, done
    assert all(json.loads(line)["level"] == "WARN" for line in done.stdout.splitlines()), done
    line = json.loads(done.stderr)
    assert line["level"] == "ERROR" and args[0][2:] in line["msg"].replace("-", "_"), line


def test_a_failure_is_one_write():
    """Each write to a datagram socket is a separate message."""
    for args in (["--nope"], ["--bind", "192.0.2.1"]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, theirs:
            line = [BINARY, *args, "--ws_port", "0", "--http_port", "0"]
            node = subprocess.Popen(line, stderr=theirs, stdout=subprocess.DEVNULL)
            node.wait(20)
            theirs.close()
            message = ours.recv(65_536).decode()
            assert message.startswith("ws-cluster: ") and message.count("\n") == 1, message
            ours.setblocking(False)
            with pytest.raises((BlockingIOError, ConnectionResetError)):
                assert not ours.recv(65_536)
                raise BlockingIOError


# Signals.


def test_sigint_directly_followed_by_sigterm_drains(start):
    server = start("--drain_ms", "20000", "--linger_ms", "20000")
    with server.raw_ws("alice") as client:
        server.signal(signal.SIGINT)
        server.signal(signal.SIGTERM)
        assert client.close_code() == 1001
    assert server.wait(20) == 0


def test_a_signal_that_is_sent_twice_at_once_drains_and_a_second_one_ends(start):
    """`timeout` sends SIGTERM to the process and to its group, which sometimes cut the drain
    short."""
    server = start("--drain_ms", "20000", "--linger_ms", "20000")
    with server.raw_ws("alice") as client:
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        while time.monotonic() - began < 0.001:
            pass  # By now the first one has usually been handled.
        server.signal(signal.SIGTERM)
        if time.monotonic() - began > 0.004:
            pytest.skip("two signals were not sent at once")
        assert client.close_code() == 1001
        assert server.process.poll() is None
        time.sleep(0.05)
        server.signal(signal.SIGTERM)
        assert server.wait(10) == 143


def test_an_ignored_sigint_stays_ignored_and_sigusr2_does_nothing():
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = Server("--workers", "1")
    finally:
        signal.signal(signal.SIGINT, ignored)
    try:
        for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGUSR2):
            server.signal(number)
        time.sleep(0.3)
        assert server.request("GET", "/readyz").status == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        server.stop()


def test_who_has_sighup_ignored_outlives_a_terminal():
    """As with nohup; a node whose log was on the terminal drained nevertheless."""
    for ignores in (True, False):
        ours, theirs = pty.openpty()
        handle = signal.SIG_IGN if ignores else signal.SIG_DFL
        node = subprocess.Popen(
            command("--workers", "1"), stdout=theirs, stderr=theirs,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, handle),
        )
        try:
            shown = b""
            while b"started" not in shown:
                shown += os.read(ours, 4096)
            node.send_signal(signal.SIGHUP)
            if not ignores:
                assert node.wait(10) == 0
                continue
            time.sleep(0.3)
            assert node.poll() is None
            node.terminate()
            assert node.wait(10) == 0
        finally:
            node.kill()
            node.wait()
            os.close(ours)
            os.close(theirs)
