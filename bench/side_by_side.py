#!/usr/bin/env python3
"""Server and bare loop in turn on the same cores; medians and ratios as Markdown.

    cargo build --release --workspace
    bench/side_by_side.py                      # all figures, 5 rounds
    bench/side_by_side.py --rounds 1 --only fanout1,memory

A figure of the server counts only beside the bare loop measured seconds apart on the same cores:
the machine's own speed differs by tens of percent from minute to minute, the ratio does not. The
server runs on one core with one worker, the load tool (and the bare loop's reader) on the other.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# name: (title, unit, limit, comparison). The ratios are server / bare loop.
FIGURES = {
    "fanout1": ("fan-out, 1 outstanding: deliveries", "1/s", 0.95, "ratio"),
    "fanout4": ("fan-out, 4 outstanding: deliveries", "1/s", 1.5, "ratio"),
    "unicast": ("unicast, {pushers} pushers: deliveries", "1/s", 0.40, "ratio"),
    "p99": ("unicast at half that rate: p99", "us", 250.0, "below"),
    "connect": ("signed connects", "1/s", 0.16, "ratio"),
    "memory": ("user-space memory of an idle connection", "bytes", 256.0, "at most"),
}

# The figures' places in the load tool's JSON.
KEYS = {
    "deliveries": ("deliveries_per_s",),
    "pushes": ("pushes_accepted_per_s",),
    "p99": ("push_to_delivery_us", "p99"),
    "intended": ("intended_to_answer_us", "p99"),
    "connect": ("connects_per_s",),
    "memory": ("private_bytes_per_connection",),
    "payload_bytes": ("payload_bytes",),
    "tool_bound": ("tool_was_bottleneck",),
}


def main():
    args = arguments()
    wanted = list(FIGURES) if not args.only else args.only.split(",")
    unknown = [name for name in wanted if name not in FIGURES]
    if unknown:
        sys.exit(f"--only {','.join(unknown)}: give some of {','.join(FIGURES)}")
    for path in (args.server, args.loadtest, args.bench):
        if not os.access(path, os.X_OK):
            sys.exit(f"{path} is not there: build it with cargo build --release, or name it")
    results = {name: [] for name in wanted}
    for number in range(1, args.rounds + 1):
        for name in wanted:
            before = len(results[name])
            try:
                results[name].append(measure(args, name, results))
            except (Failed, OSError, subprocess.TimeoutExpired) as error:
                print(f"round {number} {name}: failed: {error}", file=sys.stderr)
            for sample in results[name][before:]:
                text = ", ".join(f"{key} {value:,.0f}" for key, value in sample.items())
                print(f"round {number} {name}: {text}", file=sys.stderr)
    failed = report(args, results)
    sys.exit(1 if failed else 0)


def arguments():
    release = os.path.join(HERE, "target", "release")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default=os.path.join(release, "ws-cluster"))
    parser.add_argument("--loadtest", default=os.path.join(release, "loadtest"))
    parser.add_argument("--bench", default=os.path.join(release, "bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=128, help="payload of a message")
    parser.add_argument("--pushers", type=int, default=8)
    parser.add_argument("--users", type=int, default=1, help="pushed to in turn")
    parser.add_argument("--memory-at", default="9000,19000")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--ring", action="store_true", help="the bare loop sends over io_uring")
    parser.add_argument(
        "--against",
        choices=("free", "outstanding"),
        default="free",
        help="what a fan-out's ratio is to: rounds back to back, or with as many outstanding",
    )
    parser.add_argument("--only", help="figures, comma-separated: " + ",".join(FIGURES))
    parser.add_argument("--server-arg", action="append", default=[], help="one more for the server")
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    return parser.parse_args()


class Failed(Exception):
    pass


def measure(args, name, results):
    """One round of one figure: the server, and the bare loop right after it."""
    common = ["--bytes", args.bytes, "--seconds", args.seconds]
    if name in ("fanout1", "fanout4"):
        outstanding = int(name[-1])
        with server(args) as node:
            load = ["--connections", args.connections, "--outstanding", outstanding]
            out = node.load("fanout", *common, *load)
        sample = {"server": pick(out, "deliveries"), "tool_bound": pick(out, "tool_bound")}
        sample["free"] = bare(args, frame_bytes(out))
        sample["outstanding"] = bare(args, frame_bytes(out), outstanding)
        sample["bare"] = sample[args.against]
        return sample
    push = ["unicast", *common, "--pushers", args.pushers, "--users", args.users]
    if name == "unicast":
        with server(args) as node:
            out = node.load(*push)
        sample = {"server": pick(out, "deliveries"), "tool_bound": pick(out, "tool_bound")}
        sample |= {"pushes": pick(out, "pushes"), "bare": bare(args, frame_bytes(out))}
        return sample
    if name == "p99":
        with server(args) as node:
            if results.get("unicast"):
                pushes = results["unicast"][-1]["pushes"]
            else:
                pushes = pick(node.load(*push), "pushes")
            rate = max(1, int(pushes / 2))
            out = node.load(*push, "--rate", rate)
        sample = {"server": pick(out, "p99"), "rate": rate, "intended": pick(out, "intended")}
        # The machine's own contribution to a tail, measured right after.
        return sample | {"machine_stalls_1ms_per_s": stalls(args)}
    if name == "connect":
        with server(args) as node:
            out = node.load("connect", "--connections", 15_000)
        sample = {"server": pick(out, "connect"), "tool_bound": pick(out, "tool_bound")}
        sample["bare"] = bare(args, args.bytes + 4)
        return sample
    with server(args) as node:
        load = ["--memory-at", args.memory_at, "--tags", "news", "--pid-of-server", node.pid]
        out = node.load("connect", *load)
    return {"server": pick(out, "memory")}


def stalls(args):
    """Stalls of a millisecond per second on either core, measured by a spinning loop."""
    total = 0
    for core in (args.server_core, args.client_core):
        command = [args.bench, "stalls", "--json", "--seconds", "2", "--core", str(core)]
        out = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60)
        total += json.loads(out.stdout)["stalls_1ms_per_s"]
    return total


def frame_bytes(out):
    """The bytes of one send of the server: the payload and the head of an unmasked frame."""
    payload = pick(out, "payload_bytes")
    return payload + (2 if payload < 126 else 4)


class Node:
    def __init__(self, args, process, ports):
        self.args, self.pid = args, process.pid
        self.ws_port, self.http_port, self.prometheus_port, self.pprof_port = ports

    def load(self, command, *flags, http_port=None):
        """The load tool's report; the pushes go to another node where its port is given."""
        line = [self.args.loadtest, command, "--ws", f"127.0.0.1:{self.ws_port}"]
        line += ["--http", f"127.0.0.1:{http_port or self.http_port}"]
        line += [str(flag) for flag in flags] + ["--json"]
        return run_json(line, self.args.client_core, self.args.seconds + 120)


@contextlib.contextmanager
def server(args, number=1, extra=()):
    """A fresh server, so that no figure inherits the memory or the sockets of another."""
    ports = free_ports(4)
    line = [args.server, "--node", str(number), "--bind", "127.0.0.1", "--env", "dev"]
    line += ["--workers", "1"]
    line += ["--pin", "false", "--log", "warn"]
    for name, port in zip(("ws", "http", "prometheus", "pprof"), ports):
        line += [f"--{name}_port", str(port)]
    line += [*extra, *args.server_arg]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            line, stdout=log, stderr=log, preexec_fn=on_core(args.server_core)
        )
        try:
            node = Node(args, process, ports)
            await_ready(process, node.http_port, log)
            yield node
            if process.poll() is not None:
                raise Failed(f"the server ended by itself, {process.returncode}: {tail(log)}")
        finally:
            end(process)


def await_ready(process, http_port, log):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"the server ended with {process.returncode}: {tail(log)}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise Failed(f"the server was not ready within 10 s: {tail(log)}")


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(log):
    log.seek(0)
    return log.read()[-2_000:].decode(errors="replace").strip()


def bare(args, bytes_, outstanding=None):
    line = [args.bench, "bare-send", "--connections", str(args.connections)]
    line += ["--bytes", str(bytes_), "--seconds", str(min(args.seconds, 3.0))]
    line += ["--server-core", str(args.server_core), "--client-core", str(args.client_core)]
    line += ["--ring"] if args.ring else []
    line += ["--outstanding", str(outstanding)] if outstanding else []
    return run_json(line + ["--json"], None, args.seconds + 60)["sends_per_s"]


def run_json(line, core, timeout):
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=on_core(core)
    )
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    if process.returncode != 0:
        text = (errors + out)[-3_000:].strip()
        raise Failed(f"{' '.join(line)} ended with {process.returncode}: {text}")
    objects = [text for text in out.splitlines() if text.startswith("{")]
    try:
        return json.loads(objects[-1] if objects else out)
    except json.JSONDecodeError as error:
        raise Failed(f"{' '.join(line)} printed no JSON: {out[-500:]}") from error


def pick(out, figure):
    value = out
    for key in KEYS[figure]:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, (int, float)):
        return value
    raise Failed(f"no {'.'.join(KEYS[figure])} in the load tool's {json.dumps(out)}")


def on_core(core):
    return None if core is None else lambda: os.sched_setaffinity(0, {core})


def free_ports(count):
    """Free ports, all bound at the same time so that they differ, and released for the server."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def report(args, results):
    """Prints the table and returns whether any figure is missing or missed its limit."""
    failed = False
    print(f"\nMachine: {os.cpu_count()} cores, {cpu_model()}, Linux {platform.release()}")
    print(f"Command: {' '.join(sys.argv)}")
    loop = "io_uring SEND" if args.ring else "send(2)"
    print(f"Bare loop: {loop}, {args.connections} sockets, fan-outs against {args.against}\n")
    print("| figure | server | bare, free | bare, outstanding | ratio | needed | reached |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name, samples in results.items():
        title, unit, needed, how = FIGURES[name]
        title = f"{title.format(pushers=args.pushers)} ({unit})"
        sign = {"ratio": "≥", "below": "<", "at most": "≤"}[how]
        if not samples:
            print(f"| {title} | failed | | | | {sign} {needed:g} | no |")
            failed = True
            continue
        of = {
            key: statistics.median(sample[key] for sample in samples)
            for key in samples[0]
        }
        ratio = ""
        if how == "ratio":
            # The median of the rounds' ratios: each compares figures measured seconds apart.
            value = statistics.median(sample["server"] / sample["bare"] for sample in samples)
            ratio, reached = f"{value:.2f}", value >= needed
        else:
            value = of["server"]
            reached = value < needed if how == "below" else value <= needed
        failed |= not reached
        # If the load tool's own core was saturated, the server could have done more.
        bound = " (tool bound)" if of.get("tool_bound", 0) > 0 else ""
        free = of.get("free", of.get("bare"))
        columns = [f"{column:,.0f}" if column else "" for column in (free, of.get("outstanding"))]
        print(
            f"| {title} | {of['server']:,.0f} | {' | '.join(columns)} | {ratio} |"
            f" {sign} {needed:g} | {'yes' if reached else 'no'}{bound} |"
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return failed


def cpu_model():
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        found = re.search(r"^model name\s*:\s*(.*)$", file.read(), re.MULTILINE)
        return found.group(1) if found else platform.machine()
    return platform.machine()


if __name__ == "__main__":
    main()
