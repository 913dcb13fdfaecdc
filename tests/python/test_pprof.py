"""Profiles: what `go tool pprof` and a browser would get, read with a parser of the test's own."""

import contextlib
import gzip
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree

import harness
import pytest
from browser import Browser
from harness import PATIENCE, Raw, Server, eventually

PERIOD_NS = 1_000_000_000 // 199
# A signature, a secret: anything that the node must not show.
TOKEN = "a-token-of-24-characters"


def get(server, path, timeout=60.0, **headers):
    """As `Server.request`, with patience for a profile and for the names of a debug build."""
    old, harness.PATIENCE = harness.PATIENCE, timeout
    try:
        return server.request("GET", path, headers=headers, at=server.pprof)
    finally:
        harness.PATIENCE = old


def needs_rights(answer):
    if answer.status == 501:
        pytest.skip(f"this machine forbids it: {answer.text.splitlines()[0]}")
    return answer


# profile.proto, as far as it is needed.


def fields(data):
    """The fields of a message: number and integer or bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        value = varint()
        if key & 7 == 2:
            at += value
            value = data[at - value : at]
        else:
            assert key & 7 == 0, key
        yield key >> 3, value


def varints(data):
    """Packed integers."""
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value = shift = 0
    return values


class Profile:
    """A profile; `stacks` are (thread, functions from the innermost, samples)."""

    def __init__(self, data):
        message = list(fields(gzip.decompress(data)))
        self.texts = [value.decode() for number, value in message if number == 6]
        assert self.texts[0] == ""
        of = lambda wanted: [value for number, value in message if number == wanted]
        one = lambda wanted: dict(message)[wanted]
        self.types = [
            tuple(self.texts[text] for _, text in fields(value_type)) for value_type in of(1)
        ]
        self.period = one(12)
        self.time_ns = one(9)
        self.duration_ns = one(10)
        self.default_type = self.texts[one(14)]
        self.notes = [self.texts[text] for packed in of(13) for text in varints(packed)]
        self.mappings = [self.texts[dict(fields(value))[5]] for value in of(3)]
        functions = [dict(fields(value)) for value in of(5)]
        self.functions = {
            function[1]: (self.texts[function[2]], self.texts[function.get(4, 0)])
            for function in functions
        }
        self.lines = {}
        for location in of(4):
            location = list(fields(location))
            lines = [dict(fields(value)) for number, value in location if number == 4]
            self.lines[dict(location)[1]] = [(line[1], line.get(2, 0)) for line in lines]
        self.stacks = []
        for sample in of(2):
            sample = dict(fields(sample))
            key, thread = (self.texts[text] for _, text in fields(sample[3]))
            assert key == "thread"
            count, cpu_ns = varints(sample[2])
            assert cpu_ns == count * self.period
            names = [
                self.functions[function][0]
                for location in varints(sample[1])
                for function, _ in self.lines[location]
            ]
            self.stacks.append((thread, names, count))

    def samples(self, part=""):
        """The samples with a function in their stack whose name contains that part."""
        return sum(n for _, names, n in self.stacks if any(part in name for name in names))


@contextlib.contextmanager
def load(server, clients):
    """Pushes to all of the clients, one after the other, until the block ends."""
    over = threading.Event()
    pushed = []

    def push():
        while not over.is_set():
            pushed.append(server.push(len(pushed), tags=["load"]))

    thread = threading.Thread(target=push)
    thread.start()
    try:
        yield pushed
    finally:
        over.set()
        thread.join(PATIENCE)


def clients_of(server, count):
    return [server.client(f"u{index}", tags="load") for index in range(count)]


def test_a_profile_has_threads_functions_and_lines_and_nothing_is_missed(start):
    # The clients read later: their outboxes hold the pushes until the names are resolved.
    server = start("--outbox_bytes", "16M")
    clients = clients_of(server, 20)
    with load(server, clients) as pushed:
        before = time.time_ns()
        answer = needs_rights(get(server, "/debug/pprof/profile?seconds=2"))
    assert answer.status == 200, answer.text
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert 'filename="profile.pb.gz"' in answer.headers["Content-Disposition"]
    # Every client got every push, in order, while the profile was taken.
    assert len(pushed) > 10
    for got in server.received(clients):
        assert got == [str(number) for number in range(len(pushed))]

    profile = Profile(answer.body)
    assert profile.types == [("samples", "count"), ("cpu", "nanoseconds")]
    assert (profile.default_type, profile.period) == ("cpu", PERIOD_NS)
    assert abs(profile.time_ns - before) < 10e9
    assert 2e9 <= profile.duration_ns < 10e9
    threads = {thread for thread, _, _ in profile.stacks}
    assert any(thread.startswith("worker-") for thread in threads), threads
    assert "pprof" not in threads
    assert any(name.endswith("/ws-cluster") for name in profile.mappings)
    # Complete stacks: a worker's functions are below the one that it runs in for its whole life.
    worker = sum(n for thread, _, n in profile.stacks if thread.startswith("worker-"))
    whole = profile.samples("ws_cluster::node::WorkerThread::run")
    assert whole > 0.8 * worker > 0, (whole, worker)
    assert profile.samples("ws_cluster::io::") > 0
    files = {file for _, file in profile.functions.values()}
    assert "src/node.rs" in files and not any("/registry/" in file for file in files), files
    assert any(line > 0 for lines in profile.lines.values() for _, line in lines)
    assert not any("frame pointers" in note for note in profile.notes)


def test_go_reads_it(start, tmp_path):
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    server = start()
    clients = clients_of(server, 5)
    with load(server, clients):
        answer = needs_rights(get(server, "/debug/pprof/profile?seconds=1"))
    file = tmp_path / "profile.pb.gz"
    file.write_bytes(answer.body)
    command = ["go", "tool", "pprof", "-top", "-cum", "-nodecount=500", str(file)]
    top = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "Type: cpu" in top and "ws_cluster::node::WorkerThread::run" in top, top


def test_a_flame_graph_is_one_drawing_that_needs_nothing_else(start):
    server = start()
    clients = clients_of(server, 5)
    with load(server, clients):
        answer = needs_rights(get(server, "/debug/pprof/flamegraph?seconds=1"))
    assert answer.status == 200 and answer.headers["Content-Type"] == "image/svg+xml"
    svg = xml.etree.ElementTree.fromstring(answer.body)
    titles = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("worker-0\n") for title in titles), titles
    assert any(title.startswith("ws_cluster::node::WorkerThread::run\nsrc/node.rs\n") for title in titles)
    assert answer.text.count("://") == 1, "the name of SVG's own space"
    assert "url(" not in answer.text and "src=" not in answer.text
    assert "prefers-color-scheme: dark" in answer.text


WIDTHS = """
const frames = [...document.querySelectorAll(".frame")];
if (arguments.length) frames[arguments[0]].dispatchEvent(new Event("click"));
return frames.map((frame) => parseFloat(frame.querySelector("rect").getAttribute("width")));
"""


@pytest.mark.slow
def test_a_flame_graph_is_enlarged_and_searched_in_a_browser(start):
    if shutil.which("chromedriver") is None:
        pytest.skip("chromium is not installed")
    server = start()
    clients = clients_of(server, 5)
    url = "http://%s:%d/debug/pprof/flamegraph?seconds=1" % server.pprof
    browser = Browser()
    try:
        with load(server, clients):
            needs_rights(get(server, "/debug/pprof/flamegraph?seconds=1"))
            browser.open(url)
        before = browser.run(WIDTHS)
        narrow = next(index for index, width in enumerate(before) if width < before[0] / 2)
        assert browser.run(WIDTHS, narrow)[narrow] == pytest.approx(before[0])
        browser.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
        assert browser.run(WIDTHS) == pytest.approx(before)
        browser.run("window.prompt = () => 'ws_cluster::node'")
        browser.run("document.getElementById('search').dispatchEvent(new Event('click'))")
        share = browser.run("return document.getElementById('result').textContent")
        assert 0 < float(share.removesuffix(" % of the time")) <= 100
        assert browser.run("return document.querySelectorAll('.found').length") > 0
        assert browser.complaints() == []
    finally:
        browser.stop()


def test_one_profile_at_a_time_and_scrapes_go_on(start):
    server = start()
    with Raw(server.pprof) as first:
        first.send("GET /debug/pprof/profile?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        who = "%s:%d" % first.socket.getsockname()

        def refused():
            answer = get(server, "/debug/pprof/flamegraph?seconds=1")
            return answer if needs_rights(answer).status == 503 else None

        answer = eventually(refused, "the second is refused")
        assert f"{who} started a profile of 60 s" in answer.text, answer.text
        assert 1 <= int(answer.headers["Retry-After"]) <= 62
        assert server.metric("ws_connection") == 0
        assert get(server, "/debug/pprof/heap").status == 200
    # Its client has disconnected: the next one need not wait for 60 seconds.
    taken = lambda: get(server, "/debug/pprof/profile?seconds=1").status == 200
    eventually(taken, "the place is free", timeout=30)


def test_a_profile_may_take_longer_than_a_request(start):
    server = start("--request_timeout_ms", "500")
    assert needs_rights(get(server, "/debug/pprof/profile?seconds=2")).status == 200


def test_wrong_parameters_name_themselves(start):
    server = start()
    for path in ("profile", "flamegraph"):
        for seconds in ("0", "301", "-1", "1.5", "ten", "", "%2B5"):
            answer = get(server, f"/debug/pprof/{path}?seconds={seconds}")
            assert answer.status == 400 and "1 to 300" in answer.text, (path, seconds)
    assert get(server, "/debug/pprof/profile?seconds=1&seconds=2").status == 400


def test_the_index_and_what_is_not_there(start):
    server = start()
    for path in ("/", "/debug/pprof", "/debug/pprof/"):
        index = get(server, path)
        assert index.status == 200 and index.headers["Content-Type"].startswith("text/html")
        for name in ("profile", "flamegraph", "heap", "cmdline"):
            assert f"http://127.0.0.1:{server.pprof[1]}/debug/pprof/{name}" in index.text
        assert "go tool pprof" in index.text
    for path in ("goroutine", "mutex", "trace", "profile/"):
        missing = get(server, f"/debug/pprof/{path}")
        assert missing.status == 404 and "flamegraph?seconds=N" in missing.text


def test_heap_counts_what_the_node_holds(start):
    server = start()
    with server.client("u1"):
        heap = get(server, "/debug/pprof/heap")
    assert heap.status == 200 and heap.headers["Content-Type"].startswith("text/plain")
    lines = heap.text.splitlines()
    assert "ws_connection 1" in lines
    values = dict(line.split() for line in lines if line.startswith("committed_bytes"))
    assert int(values["committed_bytes"]) > 1 << 20
    assert any(line.startswith("Rss:") for line in lines)
    assert any("committed" in line and "MiB" in line for line in lines), "mimalloc's own"


def test_cmdline_shows_no_secret():
    server = Server("--ops_token", TOKEN, "--workers", "1", "--redis", "redis://:pass@h:1/2")
    try:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        args = get(server, "/debug/pprof/cmdline", **bearer).text.split("\0")
        assert args[0] == harness.BINARY
        assert args[args.index("--ops_token") + 1] == "***"
        assert args[args.index("--redis") + 1] == "redis://:***@h:1/2"
        index = get(server, f"/debug/pprof/?token={TOKEN}").text
        assert 'href="/debug/pprof/heap"' in index and TOKEN not in index
    finally:
        server.stop()


@pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")
def test_perf_as_in_the_docs_takes_all_nodes_of_a_machine(tmp_path):
    with open(os.path.join(harness.ROOT, "docs/profiling.md"), encoding="utf-8") as file:
        [record] = re.findall(r"^perf record .*$", file.read(), re.MULTILINE)
    # The threads of this test, not of others that run beside it.
    own = record.replace(" -x ", f" -x -P {os.getpid()} ").replace("sleep 10", "sleep 0.2")
    assert own.count(str(os.getpid())) == 1 and own.endswith("sleep 0.2")
    data = str(tmp_path / "perf.data")
    own = own.replace("perf record", f"perf record -e cpu-clock -o {data}")
    nodes = [Server("--workers", "1") for _ in range(2)]
    try:
        taken = subprocess.run(own, shell=True, capture_output=True, text=True, timeout=60)
        if "Permission" in taken.stderr or "not permitted" in taken.stderr:
            pytest.skip("perf is not allowed here")
        assert taken.returncode == 0, taken.stderr
        assert "perf record: Captured" in taken.stderr
    finally:
        for node in nodes:
            node.stop()


# Machines with fewer permissions.

CAP_SYS_ADMIN, CAP_SYSLOG, CAP_PERFMON = 21, 34, 38
with open("/proc/sys/kernel/perf_event_paranoid", encoding="ascii") as setting:
    PARANOID = int(setting.read())

WITHOUT_RIGHTS = """#!{python}
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
for capability in {without}:
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
if {forbidden}:
    call = {{"x86_64": 298, "aarch64": 241}}[platform.machine()]  # perf_event_open
    code = struct.pack("=HBBI", 0x20, 0, 0, 0)  # load the call's number
    code += struct.pack("=HBBI", 0x15, 0, 1, call)  # another one: one further
    code += struct.pack("=HBBI", 0x06, 0, 0, 0x00050001)  # EPERM
    code += struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)  # allow
    code = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(code)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, a filter
os.execv("{binary}", ["{binary}", *sys.argv[1:]])
"""


@pytest.fixture
def limited(tmp_path, monkeypatch, start):
    """Starts a server without some capabilities or perf_event_open."""

    def limited(without, forbidden=False):
        wrapper = tmp_path / "ws-cluster"
        text = WITHOUT_RIGHTS.format(
            python=sys.executable, without=without, forbidden=forbidden, binary=harness.BINARY
        )
        wrapper.write_text(text)
        wrapper.chmod(0o755)
        monkeypatch.setattr(harness, "BINARY", str(wrapper))
        return start()

    return limited


def test_where_the_kernel_refuses_it_says_what_to_allow(limited):
    server = limited((CAP_PERFMON, CAP_SYS_ADMIN), forbidden=True)
    for path in ("profile", "flamegraph"):
        answer = get(server, f"/debug/pprof/{path}?seconds=1")
        assert answer.status == 501
        for word in ("CAP_PERFMON", "perf_event_paranoid", "seccomp", "perf record"):
            assert word in answer.text
    assert get(server, "/debug/pprof/heap").status == 200


def test_without_the_right_to_see_the_kernel_its_part_is_missing(limited):
    if PARANOID < 2:
        pytest.skip("everybody may see the kernel's part here")
    server = limited((CAP_PERFMON, CAP_SYS_ADMIN))
    clients = clients_of(server, 20)
    with load(server, clients):
        answer = needs_rights(get(server, "/debug/pprof/profile?seconds=2"))
    profile = Profile(answer.body)
    assert any("Without the kernel" in note for note in profile.notes)
    assert profile.samples("ws_cluster::") > 0
    assert "[kernel]" not in {file for _, file in profile.functions.values()}


def test_without_the_kernel_s_names_its_part_is_one_box(limited):
    if PARANOID < 2 or os.geteuid() != 0:
        pytest.skip("the kernel's names cannot be taken away here, or its part not be seen")
    server = limited((CAP_SYSLOG,))
    clients = clients_of(server, 20)
    with load(server, clients):
        answer = needs_rights(get(server, "/debug/pprof/profile?seconds=2"))
    profile = Profile(answer.body)
    assert any("CAP_SYSLOG" in note for note in profile.notes)
    kernel = {name for name, file in profile.functions.values() if file == "[kernel]"}
    assert kernel == {"[kernel]"}
    assert all(names.count("[kernel]") <= 1 for _, names, _ in profile.stacks)
