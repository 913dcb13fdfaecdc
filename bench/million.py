#!/usr/bin/env python3
"""A million connections in one server process, beside the load tool on the same machine.

    make million                               # what docs/million.html shows
    bench/million.py --connections 100000      # the same on a smaller scale

One server with as many workers as the limit of open files requires, one load tool that plays
loadtest/scenarios/million.toml: a ramp, two idle minutes, pushes to all, pushes to one, a
storm, ten minutes in all, and a drain. Every message is checked. The bare loops (`bench`) run in
the same run, after it. It prints the figures as Markdown and writes the load tool's report.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from side_by_side import HERE, await_ready, cpu_model, free_ports, tail

SCENARIO = os.path.join(HERE, "loadtest", "scenarios", "million.toml")
# Descriptors of a worker that are not connections: listeners, HTTP, handshakes, rings. It also
# allows for the kernel's uneven spread of connections over the workers' listeners.
RESERVE = 1_400
# Memory of the machine for both ends of a connection, nearly all of it the kernel's.
BYTES_BOTH_ENDS = 12_000


def main():
    args = arguments()
    plan = check(args)
    print(
        f"{args.connections:,} connections, {plan['workers']} workers, about"
        f" {plan['memory'] / 2**30:.1f} GiB for both ends",
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory() as folder:
        scenario = os.path.relpath(SCENARIO)
        if (text := scaled(args)) != open(SCENARIO, encoding="utf-8").read():
            scenario = os.path.join(folder, "scenario.toml")
            with open(scenario, "w", encoding="utf-8") as file:
                file.write(text)
        out, memory, chain = run(args, plan, scenario)
    if args.picture:
        photograph(args.report, args.picture)
    # The kernel takes a while to tear down the sockets of a million connections.
    time.sleep(min(20, args.connections / 50_000))
    bare = None if args.no_bare else bare_loops(args, plan)
    rows = figures(args, out, memory, chain, bare)
    table = markdown(args, rows)
    print(table)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            everything = {"report": out, "memory": memory, "chain": chain, "bare": bare}
            json.dump(everything | {"workers": plan["workers"]}, file, indent=1)
    if not out.get("ok"):
        sys.exit(f"the run failed: {json.dumps(out.get('failures', {}))}")


def arguments():
    release = os.path.join(HERE, "target", "release")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default=os.path.join(release, "ws-cluster"))
    parser.add_argument("--loadtest", default=os.path.join(release, "loadtest"))
    parser.add_argument("--bench", default=os.path.join(release, "bench"))
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=600, help="of the whole run, at least")
    parser.add_argument("--idle", type=int, default=120, help="seconds in which nothing is sent")
    parser.add_argument("--report", metavar="FILE.html", help="the load tool's page")
    parser.add_argument("--picture", metavar="FILE.png", help="the page's top as a picture")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--no-bare", action="store_true", help="leave out the bare loops")
    parser.add_argument("--workers", type=int, help="of the server")
    parser.add_argument("--server-arg", action="append", default=[], help="one more for the server")
    args = parser.parse_args()
    for path in (args.server, args.loadtest, args.bench):
        if not os.access(path, os.X_OK):
            sys.exit(f"{path} is not there: build it with cargo build --release, or name it")
    return args


def check(args):
    """Checks the machine before the run."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    per_worker = hard - RESERVE
    if per_worker < 1_000:
        sys.exit(f"the limit of open files is {hard} (it was {soft}): `ulimit -n 20000` first")
    workers = args.workers or max(1, -(-args.connections // per_worker))
    memory = args.connections * BYTES_BOTH_ENDS
    available = meminfo()["MemAvailable"]
    if memory > available:
        sys.exit(
            f"{memory / 2**30:.1f} GiB are needed for both ends, and {available / 2**30:.1f} GiB are"
            f" free: try --connections {available // BYTES_BOTH_ENDS // 10_000 * 10_000}"
        )
    with open("/proc/sys/fs/file-max", encoding="utf-8") as file:
        files = int(file.read())
    needed = 2 * args.connections + 20_000
    if needed > files:
        sys.exit(f"{needed} open files are needed: sysctl -w fs.file-max={needed}")
    if args.picture and not (args.report and shutil.which("chromium")):
        sys.exit("--picture needs --report, and Chromium: tests/chromium.sh installs it")
    return {"workers": workers, "memory": memory}


def scaled(args):
    """The scenario scaled to other numbers; at a million it is the file itself."""
    with open(SCENARIO, encoding="utf-8") as file:
        text = file.read()
    text = re.sub(r"\b1_000_000\b", str(args.connections), text)
    text = re.sub(r"\b200_000\b", str(args.connections // 5), text)
    text = re.sub(r"(?m)^(duration\s*=\s*)120(.*)$", rf"\g<1>{args.idle}\2", text, count=1)
    return re.sub(r"\b600\b", str(args.seconds), text)


def run(args, plan, scenario):
    ports = free_ports(4)
    line = [args.server, "--node", "1", "--bind", "127.0.0.1", "--env", "dev", "--log", "warn"]
    line += ["--workers", str(plan["workers"]), "--pin", "false"]
    line += ["--max_connections", str(args.connections + args.connections // 20 + 1_000)]
    # Connections not closed by then end with the process, and all must be counted here.
    line += ["--drain_ms", "60000"]
    for name, port in zip(("ws", "http", "prometheus", "pprof"), ports):
        line += [f"--{name}_port", str(port)]
    line += args.server_arg
    before = meminfo()
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(line, stdout=log, stderr=log)
        tool = None
        try:
            await_ready(server, ports[1], log)
            load = [args.loadtest, "replay", scenario, "--ws", f"127.0.0.1:{ports[0]}"]
            load += ["--http", f"127.0.0.1:{ports[1]}", "--pid-of-server", str(server.pid)]
            load += ["--metrics", f"http://127.0.0.1:{ports[2]}/metrics", "--json"]
            load += ["--report", args.report] if args.report else []
            pipe = subprocess.PIPE
            tool = subprocess.Popen(load, stdout=pipe, stderr=pipe, text=True)
            metrics = f"http://127.0.0.1:{ports[2]}/metrics"
            watch = Watch(before, server.pid, tool.pid, metrics)
            chain = Chain(args, tool.stderr)
            timer = threading.Timer(args.seconds + args.connections / 1_000 + 900, tool.kill)
            timer.start()
            text = tool.stdout.read()
            tool.wait()
            timer.cancel()
            watch.stop()
            objects = [one for one in text.splitlines() if one.startswith("{")]
            if not objects:
                sys.exit(f"the load tool printed no report ({tool.returncode}): {tail(log)}")
            return json.loads(objects[-1]), watch.summary(), chain.result()
        finally:
            for process in (tool, server):
                if process is not None and process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(60)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()


class Chain:
    """During the storm, messages that only wake three threads one after the other, as a push does:
    what the machine's scheduler alone needs then (`bench bare-wake`)."""

    def __init__(self, args, log):
        self.bench, self.log, self.chain, self.out = args.bench, log, None, None
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def follow(self):
        """Passes on what the load tool logs; it names its phases."""
        for line in self.log:
            sys.stderr.write(line)
            if (name := line.removeprefix("loadtest: phase ").strip()) == line.strip():
                continue
            self.end()
            if name == "storm":
                line = [self.bench, "bare-wake", "--seconds", "3600", "--until-eof", "--json"]
                pipe = subprocess.PIPE
                self.chain = subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True)

    def end(self):
        if self.chain is not None:
            self.out, _ = self.chain.communicate(timeout=60)
            self.chain = None

    def result(self):
        self.thread.join()
        self.end()
        return json.loads(self.out) if self.out else {}


def photograph(page, picture):
    """The top of the page: the key figures and the charts."""
    line = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    line += ["--window-size=1200,1430", f"--screenshot={os.path.abspath(picture)}"]
    line.append("file://" + os.path.abspath(page))
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Watch:
    """The memory of the machine and of both processes, once a second, and the longest pauses of
    the server's workers. The kernel's part is the machine's used memory minus that of both
    processes."""

    def __init__(self, before, server, tool, metrics):
        self.before, self.pids, self.samples = before, (server, tool), []
        self.metrics, self.pauses = metrics, {"wall": 0.0, "own": 0.0}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def loop(self):
        while not self.ended.wait(1.0):
            server, tool = (resident(pid) for pid in self.pids)
            lost = self.before["MemAvailable"] - meminfo()["MemAvailable"]
            self.samples.append(
                {"server": server, "tool": tool, "kernel": max(0, lost - server - tool)}
            )
            if len(self.samples) % 10 == 0:
                self.look_at_pauses()

    def look_at_pauses(self):
        """The node's longest pause of the last minutes."""
        try:
            with urllib.request.urlopen(self.metrics, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return
        for time_, seconds in re.findall(
            r'ws_cluster_worker_longest_pause_seconds\{.*?time="(\w+)".*?\} (\S+)', text
        ):
            self.pauses[time_] = max(self.pauses[time_], float(seconds))

    def stop(self):
        self.ended.set()
        self.thread.join()

    def summary(self):
        """The samples with nearly the maximum of connections, when the tool has nearly all its
        memory."""
        most = max((one["kernel"] for one in self.samples), default=0)
        full = [one for one in self.samples if one["kernel"] >= 0.9 * most]
        memory = {
            key: int(statistics.median(one[key] for one in full)) if full else 0
            for key in ("server", "tool", "kernel")
        }
        return memory | {f"{key}_pause_ms": value * 1e3 for key, value in self.pauses.items()}


def resident(pid):
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            found = re.search(r"^VmRSS:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def meminfo():
    with open("/proc/meminfo", encoding="utf-8") as file:
        return {key: int(kib) * 1024 for key, kib in re.findall(r"(\w+):\s+(\d+) kB", file.read())}


def bare_loops(args, plan):
    """The kernel's cost alone: a send to each of the same number of sockets, and a ping."""
    found = {}
    tables = str(plan["workers"])
    sockets = ["--connections", str(args.connections), "--threads", tables]
    for name, line in {
        "send": ["bare-send", *sockets, "--seconds", "10"],
        "ping": ["bare-ping", *sockets, "--rate", str(max(100, args.connections // 45))],
    }.items():
        out = subprocess.run(
            [args.bench, *line, "--json"], capture_output=True, text=True, timeout=900
        )
        if out.returncode == 0:
            found[name] = json.loads(out.stdout.splitlines()[-1])
        else:
            print(f"bench {name}: {out.stderr.strip()}", file=sys.stderr)
    return found


def value(out, *keys):
    for key in keys:
        out = out.get(key) if isinstance(out, dict) else None
    return out if isinstance(out, (int, float)) else None


def figures(args, out, memory, chain, bare):
    """The rows of the table: (title, value, limit). A limit is (number, whether it is a
    minimum)."""
    phase = out.get("phases", {})
    ramp, idle, project = (phase.get(name, {}) for name in ("ramp", "idle", "project"))
    storm, drain = phase.get("storm", {}), phase.get("drain", {})
    last = project.get("accepted_to_last_delivery_us", {})
    rows = [
        ("connections open at the end of the ramp", value(ramp, "open_at_end"), "", None),
        ("connects a second over the whole ramp", value(ramp, "connects_per_s"), "1/s", (16_000, True)),
        ("server's RSS for each connection", value(idle, "server_rss_bytes_per_connection"), "bytes", (210, False)),
        ("kernel's memory for each connection, both ends", memory["kernel"] / args.connections, "bytes", None),
        ("load tool's RSS for each connection", memory["tool"] / args.connections, "bytes", None),
        ("idle CPU for each second and connection", value(idle, "server_cpu_us_per_second_and_connection"), "us", (0.2, False)),
        ("push to all, acceptance to last delivery, p50", ms(value(last, "p50")), "ms", None),
        ("the same, the longest", ms(value(last, "max")), "ms", None),
        ("acceptance to delivery over all connections, p50", ms(value(project, "project_us", "p50")), "ms", None),
        ("the same, p99", ms(value(project, "project_us", "p99")), "ms", None),
        ("push to one beside the idle ones, p50", value(phase, "unicast", "unicast_us", "p50"), "us", None),
        ("the same, p99", value(phase, "unicast", "unicast_us", "p99"), "us", None),
        ("storm: connections cut", value(storm, "cut"), "", None),
        ("storm: until all are back", value(storm, "all_back_s"), "s", (30, False)),
        ("storm: canaries' p50", ms(value(storm, "canary_us", "p50")), "ms", None),
        ("storm: canaries' p99", ms(value(storm, "canary_us", "p99")), "ms", (50, False)),
        ("bare loop: the same over three threads that only wake each other, p50", ms(value(chain, "p50_us")), "ms", None),
        ("the same, p99", ms(value(chain, "p99_us")), "ms", None),
        ("storm: canaries' messages lost", value(storm, "canary_lost"), "", (0, False)),
        ("drain: SIGTERM to the last close", value(drain, "drain_s"), "s", None),
        ("longest pause of a worker, its own CPU time", memory["own_pause_ms"], "ms", (2, False)),
        ("a worker's pause by the clock, with all workers and the tool on the same cores", memory["wall_pause_ms"], "ms", None),
        ("whole run", value(out, "elapsed_s"), "s", (args.seconds, True)),
        ("lost, doubled or misdelivered messages", sum(value(out, key) or 0 for key in ("lost", "doubled", "misdelivered")), "", (0, False)),
    ]
    sends = value(bare or {}, "send", "sends_per_s")
    p50 = value(last, "p50")
    if sends and p50:
        rows.insert(8, ("the same in bare sends to as many sockets", p50 / 1e6 * sends, "", (1.2 * args.connections, False)))
    slice_ms = value(bare or {}, "send", "longest_slice_ms")
    if slice_ms:
        title = "bare loop: CPU time of 64 sends in a row, the longest"
        at = next(index for index, row in enumerate(rows) if row[0].startswith("longest pause"))
        rows.insert(at + 1, (title, slice_ms, "ms", None))
    ping = value(bare or {}, "ping", "cpu_us_per_ping")
    if ping:
        rows.insert(6, ("bare loop: a ping and its pong", ping, "us", None))
    return rows


def ms(us):
    return None if us is None else us / 1_000


def markdown(args, rows):
    lines = [
        f"\nMachine: {os.cpu_count()} cores, {cpu_model()}, Linux {platform.release()}",
        f"Command: {' '.join([os.path.relpath(sys.argv[0], HERE), *sys.argv[1:]])}\n",
        "| What | Measured | Needed | Reached |",
        "|---|---:|---:|---|",
    ]
    for title, number, unit, limit in rows:
        shown = "not measured" if number is None else f"{spelled(number)} {unit}".strip()
        needed, reached = "", ""
        # The limits for a million apply at no other scale.
        if limit is not None and number is not None:
            bound, is_least = limit
            needed = f"{'≥' if is_least else '≤'} {spelled(bound)}"
            reached = "yes" if (number >= bound if is_least else number <= bound) else "no"
        lines.append(f"| {title} | {shown} | {needed} | {reached} |")
    return "\n".join(lines)


def spelled(number):
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"


if __name__ == "__main__":
    main()
