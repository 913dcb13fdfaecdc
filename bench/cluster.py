#!/usr/bin/env python3
"""The cost of a Redis between the nodes, measured in turn with runs without it; medians as
Markdown.

    cargo build --release --workspace
    bench/cluster.py                           # all figures, 5 rounds
    bench/cluster.py --rounds 1 --only latency
    bench/cluster.py --server-core 0 --redis-core 1 --client-core 1

latency: one push at a time to one user. Local: one node. Cluster: the push goes to one node, the
user is at another. Bare: a message through Redis with nothing in between (bench redis-round-trip).
Once back to back, once at a low rate, at which every process sleeps in between.

throughput: one node that accepts the pushes and holds the users, without and with Redis. Bare: the
same for a server that does nothing but its system calls (bench bare-push): the share that Redis
costs this one is lost to every server here.

broker: messages of other nodes that a node's broker reads from its link (bench broker), from a
recording and from a flooded Redis. Only the broker's own time counts.

Nothing is pinned unless asked for, and every server has one worker. Redis is started here, on a
free port and without persistence.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import side_by_side as base
from side_by_side import Failed

FIGURES = ("latency", "throughput", "broker")
# Maximum extra latency of a push to another node over one to the same, in round trips through
# Redis.
ROUND_TRIPS = 1.5
# Minimum share of the local queue's throughput.
THROUGHPUT = 0.8
# Minimum throughput of a broker, messages per second.
BROKER = 500_000
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def main():
    args = arguments()
    wanted = figures_of(args, FIGURES)
    prepare(args)
    if not args.local:
        demand_redis_queue(args)
    results = run_rounds(args, [step for name in wanted for step in steps_of(args, name)])
    failed = report(args, wanted, results)
    sys.exit(1 if failed else 0)


def figures_of(args, figures):
    wanted = args.only.split(",")
    unknown = [name for name in wanted if name not in figures]
    if unknown:
        sys.exit(f"--only {','.join(unknown)}: give some of {','.join(figures)}")
    return wanted


def prepare(args):
    """Exits if a program is missing."""
    for path in (args.server, args.loadtest, args.bench):
        if not os.access(path, os.X_OK):
            sys.exit(f"{path} is not there: build it with cargo build --release, or name it")
    if not shutil.which(args.redis_server):
        sys.exit(f"{args.redis_server} is not there: install it (tests/redis.sh), or name it")
    # Leaving a `with` ends what is started below, whatever ends this script.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))


def run_rounds(args, steps):
    """Runs all steps in turn, round by round, and returns the samples by key, None for a failed
    one."""
    results = {key: [] for key, _ in steps}
    for number in range(1, args.rounds + 1):
        for key, step in steps:
            try:
                sample = step()
            except (Failed, OSError, subprocess.TimeoutExpired) as error:
                print(f"round {number} {key}: failed: {error}", file=sys.stderr)
                # A round is compared as a whole, so it keeps its place.
                results[key].append(None)
                continue
            results[key].append(sample)
            text = ", ".join(f"{name} {value:,.2f}" for name, value in sample.items())
            print(f"round {number} {key}: {text}", file=sys.stderr)
    return results


def common_arguments(description, figures):
    release = os.path.join(base.HERE, "target", "release")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--server", default=os.path.join(release, "ws-cluster"))
    parser.add_argument("--loadtest", default=os.path.join(release, "loadtest"))
    parser.add_argument("--bench", default=os.path.join(release, "bench"))
    parser.add_argument("--redis-server", default="redis-server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--bytes", type=int, default=128, help="payload of a message")
    parser.add_argument("--link", choices=("tcp", "unix"), default="tcp", help="to Redis")
    parser.add_argument("--resp3", action="store_true", help="the bare client has one link")
    parser.add_argument("--server-core", type=int, help="not pinned")
    parser.add_argument("--second-core", type=int, help="of the second node: as --server-core")
    parser.add_argument("--client-core", type=int, help="load tool and bare client: not pinned")
    parser.add_argument("--redis-core", type=int, help="not pinned")
    parser.add_argument("--only", default=",".join(figures), help="figures, comma-separated")
    parser.add_argument("--server-arg", action="append", default=[], help="one more for the server")
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    return parser


def parse(parser):
    args = parser.parse_args()
    if args.second_core is None:
        args.second_core = args.server_core
    return args


def arguments():
    parser = common_arguments(__doc__.splitlines()[0], FIGURES)
    parser.add_argument("--rate", type=float, default=200, help="pushes a second of the slow run")
    parser.add_argument("--pushers", type=int, default=8)
    parser.add_argument("--users", type=int, default=1, help="pushed to in turn")
    parser.add_argument("--pipeline", default="1,8,32", help="requests on their way a pusher, each")
    parser.add_argument("--local", action="store_true", help="leave --queue redis out")
    args = parse(parser)
    try:
        args.pipelines = [int(number) for number in args.pipeline.split(",")]
    except ValueError:
        parser.error(f"--pipeline {args.pipeline}: numbers, separated by commas")
    return args


def demand_redis_queue(args):
    """Exits with the server's error if it does not support this queue."""
    try:
        with redis(args) as queue, base.server(args, 1, queue.flags()):
            pass
    except Failed as error:
        text = "does not start with --queue redis; --local leaves that out"
        sys.exit(f"{args.server} {text}.\n{error}")


def steps_of(args, name):
    """The measurements of one round, in this order: (key, function that returns a sample)."""
    steps = []
    if name == "latency":
        for rate in (None, args.rate):
            pace = pace_of(rate)
            steps.append((f"latency {pace} local", lambda rate=rate: latency_local(args, rate)))
            if not args.local:
                step = lambda rate=rate: latency_cluster(args, rate)
                steps.append((f"latency {pace} cluster", step))
            steps.append((f"latency {pace} bare", lambda rate=rate: bare(args, rate)))
        return steps
    if name == "broker":
        for source in ("recording", "redis"):
            steps.append((f"broker {source}", lambda source=source: broker(args, source)))
        return steps
    for pipeline in args.pipelines:
        for queue in ("local",) if args.local else ("local", "redis"):
            for node, kind in ((one_node, ""), (bare_push, " bare")):
                step = lambda load=(pipeline, queue, node): throughput(args, *load)
                steps.append((f"throughput {pipeline} {queue}{kind}", step))
    return steps


def pace_of(rate):
    return f"{rate:g}/s" if rate else "closed"


def one_at_a_time(args, rate):
    """The load tool's flags: each push waits until the last one was answered and has arrived."""
    flags = ["--pushers", 1, "--users", 1, "--await-delivery"]
    flags += ["--bytes", args.bytes, "--seconds", args.seconds]
    return flags + (["--rate", rate] if rate else [])


def latency_local(args, rate):
    with base.server(args) as node:
        return latency_of(node.load("unicast", *one_at_a_time(args, rate)))


def latency_cluster(args, rate):
    with two_nodes(args) as (a, b):
        flags = one_at_a_time(args, rate)
        return latency_of(b.load("unicast", *flags, http_port=a.http_port))


@contextlib.contextmanager
def one_node(args, queue):
    """A node, and its Redis if it has one."""
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(redis(args)) if queue == "redis" else None
        yield stack.enter_context(base.server(args, 1, between.flags() if between else ())), between


@contextlib.contextmanager
def bare_push(args, queue):
    """The same for a server that does nothing but its system calls."""
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(redis(args)) if queue == "redis" else None
        ports = base.free_ports(2)
        line = [args.bench, "bare-push", "--ws-port", str(ports[0]), "--http-port", str(ports[1])]
        line += ["--redis", between.address] if between else []
        log = stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            line, stdout=log, stderr=log, preexec_fn=base.on_core(args.server_core)
        )
        stack.callback(base.end, process)
        base.await_ready(process, ports[1], log)
        yield base.Node(args, process, (*ports, None, None)), between


@contextlib.contextmanager
def two_nodes(args):
    """Two nodes on a Redis of their own."""
    second = argparse.Namespace(**vars(args) | {"server_core": args.second_core})
    with redis(args) as queue:
        with base.server(args, 1, queue.flags()) as a, base.server(second, 2, queue.flags()) as b:
            yield a, b


def latency_of(out):
    times = out["push_to_delivery_us"]
    return {key: times[key] for key in ("p50", "p90", "p99")} | {"per_s": out["deliveries_per_s"]}


def bare(args, rate):
    with redis(args) as queue:
        line = [args.bench, "redis-round-trip", "--bytes", str(args.bytes)]
        line += ["--unix", queue.path] if queue.path else ["--redis", queue.address]
        line += ["--rate", str(rate)] if rate else []
        line += ["--resp3"] if args.resp3 else []
        line += ["--seconds", str(min(args.seconds, 3.0)), "--json"]
        out = base.run_json(line, args.client_core, args.seconds + 60)
    sample = {key: out[f"{key}_us"] for key in ("p50", "p90", "p99")}
    return sample | {"per_s": out["round_trips_per_s"]}


def throughput(args, pipeline, queue, serve=one_node):
    flags = ["--pushers", args.pushers, "--pipeline", pipeline, "--users", args.users]
    flags += ["--bytes", args.bytes, "--seconds", args.seconds]
    with serve(args, queue) as (node, between):
        pids = {"server": node.pid} | ({"redis": between.pid} if between else {})
        before, tool = {name: cpu_s(pid) for name, pid in pids.items()}, ended_children_s()
        began = time.monotonic()
        out = node.load("unicast", *flags)
        wall = time.monotonic() - began
        used = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
        used = {"server": used["server"], "redis": used.get("redis", 0.0)}
        used["tool"] = ended_children_s() - tool
    sample = {"accepted": out["pushes_accepted_per_s"], "delivered": out["deliveries_per_s"]}
    sample |= {f"{name}_cpu_s": seconds for name, seconds in used.items()}
    # The whole run counts, including its warm-up.
    sample |= {f"{name}_us": s * 1e6 / out["deliveries"] for name, s in used.items()}
    times = out["push_to_delivery_us"]
    return sample | {"cores": sum(used.values()) / wall, "p50": times["p50"], "p99": times["p99"]}


def broker(args, source):
    line = [args.bench, "broker", "--bytes", str(args.bytes), "--json"]
    if source == "recording":
        out = base.run_json(line, args.client_core, 120)
    else:
        with redis(args) as queue:
            line += ["--redis", queue.address, "--seconds", str(min(args.seconds, 3.0))]
            out = base.run_json(line, args.client_core, 120)
    names = ("messages_per_s", "cpu_ns", "redis_messages_per_s")
    return {f"{one['way']}: {name}": one[name] for one in out for name in names if name in one}


def cpu_s(pid):
    """User and system time of all its threads."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def ended_children_s():
    """The load tool's time: servers and Redis still run when this is read before and after it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Redis:
    def __init__(self, process, port, path):
        self.pid, self.path, self.address = process.pid, path, f"127.0.0.1:{port}"

    def flags(self):
        """The arguments with which a server uses it; every Redis is fresh, so one prefix is
        enough."""
        url = f"unix://{self.path}" if self.path else f"redis://{self.address}/0"
        return ["--queue", "redis", "--redis", url, "--redis_prefix", "bench"]


@contextlib.contextmanager
def redis(args):
    """A fresh Redis in a directory of its own."""
    (port,) = base.free_ports(1)
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as log:
        line = [args.redis_server, "--port", str(port), "--save", "", "--appendonly", "no"]
        line += ["--bind", "127.0.0.1", "--dir", directory]
        path = os.path.join(directory, "redis.sock") if args.link == "unix" else None
        line += ["--unixsocket", path] if path else []
        process = subprocess.Popen(
            line, stdout=log, stderr=log, cwd=directory, preexec_fn=base.on_core(args.redis_core)
        )
        try:
            await_pong(process, port, log)
            yield Redis(process, port, path)
            if process.poll() is not None:
                code = process.returncode
                raise Failed(f"Redis ended by itself, {code}: {base.tail(log)}")
        finally:
            base.end(process)


def await_pong(process, port, log):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"Redis ended with {process.returncode}: {base.tail(log)}")
        with contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
                link.sendall(b"PING\r\n")
                if link.recv(64).startswith(b"+PONG"):
                    return
        time.sleep(0.02)
    raise Failed(f"Redis did not answer within 10 s: {base.tail(log)}")


def report(args, wanted, results):
    """Prints the tables and returns whether any figure is missing or missed its limit."""
    head(args)
    failed = False
    if "latency" in wanted:
        failed |= report_latency(args, results)
    if "throughput" in wanted:
        failed |= report_throughput(args, results)
    if "broker" in wanted:
        failed |= report_broker(results)
    keep(args, results)
    return failed


def head(args):
    """The machine, the versions and the command of the figures below."""
    cores = {
        "server": args.server_core,
        "second node": args.second_core,
        "redis": args.redis_core,
        "tool": args.client_core,
    }
    pinned = [f"{name} on {core}" for name, core in cores.items() if core is not None]
    cpu, kernel = base.cpu_model(), platform.release()
    print(f"\nMachine: {os.cpu_count()} cores, {cpu}, Linux {kernel}, {redis_version(args)}")
    print(f"Command: {' '.join(sys.argv)}")
    print(f"Pinned: {', '.join(pinned) or 'nothing'}; {args.link} to Redis; medians of the rounds")


def keep(args, results):
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


def report_latency(args, results):
    failed = False
    print("\n| push to delivery, p50 (us) | local | cluster | bare | local + 1.5 bare |", end="")
    print(" (cluster - local) / bare | needed | reached |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for rate in (None, args.rate):
        pace = pace_of(rate)
        local, cluster, bare_ = (
            results.get(f"latency {pace} {what}") for what in ("local", "cluster", "bare")
        )
        title = f"one outstanding, {f'{rate:g} a second' if rate else 'one after the other'}"
        limits = of_rounds(lambda l, b: l["p50"] + ROUND_TRIPS * b["p50"], local, bare_)
        ratios = of_rounds(lambda l, c, b: (c["p50"] - l["p50"]) / b["p50"], local, cluster, bare_)
        each = [of_rounds(lambda s: s["p50"], samples) for samples in (local, cluster, bare_)]
        texts = [shown(column, ",.1f") for column in (*each, limits)]
        reached = verdict(ratios, lambda ratio: ratio <= ROUND_TRIPS)
        failed |= reached == "no"
        print(f"| {title} | {' | '.join(texts)} | {shown(ratios, '.2f')} |", end="")
        print(f" ≤ {ROUND_TRIPS:g} | {reached} |")
    report_tails(results)
    return failed


def report_tails(results):
    print("\n| tails (us) | p90 | p99 | a second |\n|---|---:|---:|---:|")
    for key, samples in results.items():
        if key.startswith("latency"):
            p90, p99, per_s = (
                shown(of_rounds(lambda sample: sample[name], samples), ",.0f")
                for name in ("p90", "p99", "per_s")
            )
            print(f"| {key.removeprefix('latency ')} | {p90} | {p99} | {per_s} |")


def report_throughput(args, results):
    failed = False
    print(f"\n| unicast, {args.pushers} pushers (1/s) | local | redis | ratio |", end="")
    print(" bare local | bare redis | its ratio | needed | reached |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for pipeline in args.pipelines:
        for what in ("accepted", "delivered"):
            columns = []
            for kind in ("", " bare"):
                local, over_redis = (
                    results.get(f"throughput {pipeline} {queue}{kind}")
                    for queue in ("local", "redis")
                )
                rates = [of_rounds(lambda s: s[what], each) for each in (local, over_redis)]
                # Each ratio compares figures measured seconds apart.
                ratios = of_rounds(lambda l, r: r[what] / l[what], local, over_redis)
                columns += [shown(column, ",.0f") for column in rates] + [shown(ratios, ".2f")]
                if not kind:
                    reached = verdict(ratios, lambda ratio: ratio >= THROUGHPUT)
            failed |= reached == "no"
            print(f"| pipeline {pipeline}: {what} | {' | '.join(columns)} |", end="")
            print(f" ≥ {THROUGHPUT:g} | {reached} |")
    names = ("server", "redis", "tool")
    print(f"\n| CPU time | {' | '.join(f'{name} (s)' for name in names)} |", end="")
    print(f" {' | '.join(f'{name} (us a push)' for name in names)} | cores busy | p50 (us) |")
    print("|---|" + "---:|" * 8)
    keys = [f"{name}_cpu_s" for name in names] + [f"{name}_us" for name in names]
    for title, samples in results.items():
        if title.startswith("throughput"):
            columns = [
                shown(of_rounds(lambda sample: sample[key], samples), ",.2f")
                for key in (*keys, "cores", "p50")
            ]
            title = title.removeprefix("throughput ")
            print(f"| pipeline {title} | {' | '.join(columns)} |")
    return failed


def report_broker(results):
    failed = False
    print("\n| what the broker could take | messages/s | ns of CPU time each |", end="")
    print(" Redis gave | needed | reached |\n|---|---:|---:|---:|---:|---|")
    for title, samples in results.items():
        if not title.startswith("broker"):
            continue
        keys = next((list(sample) for sample in samples if sample), ["failed: messages_per_s"])
        for way in dict.fromkeys(key.rpartition(": ")[0] for key in keys):
            rates, times, given = (
                of_rounds(lambda sample: sample.get(f"{way}: {name}"), samples)
                for name in ("messages_per_s", "cpu_ns", "redis_messages_per_s")
            )
            given = None if None in given else given
            reached = verdict(rates, lambda rate: rate >= BROKER)
            failed |= reached == "no"
            texts = [shown(rates, ",.0f"), shown(times, ",.0f"), shown(given, ",.0f")]
            print(f"| {title.removeprefix('broker ')}, {way} | {' | '.join(texts)} |", end="")
            print(f" ≥ {BROKER:,} | {reached} |")
    return failed


def of_rounds(function, *columns):
    """The function's value for each round in which none of these failed; None if one was
    skipped."""
    if any(samples is None for samples in columns):
        return None
    rounds = zip(*columns)
    return [function(*samples) for samples in rounds if all(s is not None for s in samples)]


def shown(values, form):
    if values is None:
        return ""
    return format(statistics.median(values), form) if values else "failed"


def verdict(ratios, is_enough):
    if ratios is None:
        return "left out"
    return "yes" if ratios and is_enough(statistics.median(ratios)) else "no"


def redis_version(args):
    out = subprocess.run([args.redis_server, "--version"], capture_output=True, text=True)
    words = [word[2:] for word in out.stdout.split() if word.startswith("v=")]
    return f"Redis {words[0] if words else 'of an unknown version'}"


if __name__ == "__main__":
    main()
