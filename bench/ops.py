#!/usr/bin/env python3
"""The cost of observing the fan-out: alternating runs on one server, medians as Markdown.

    cargo build --release --workspace
    bench/ops.py                               # 12 rounds of every kind, some minutes
    bench/ops.py --rounds 3 --only scrape

Each round measures the fan-out three times, in turn: unobserved, with a scrape of /metrics every
second, and while a CPU profile is taken. Each is compared with the unobserved run of its own round.
"""

import argparse
import contextlib
import os
import platform
import signal
import statistics
import sys
import threading
import time
import urllib.request

import side_by_side as base
from side_by_side import Failed

KINDS = ("scrape", "profile")
# Minimum share of the fan-out that must remain.
NEEDED = {"scrape": 0.97, "profile": 0.95}
TITLES = {"nobody": "nobody looks", "scrape": "a scrape a second", "profile": "a CPU profile"}


def main():
    args = arguments()
    kinds = args.only.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        sys.exit(f"--only {','.join(unknown)}: give some of {','.join(KINDS)}")
    for path in (args.server, args.loadtest):
        if not os.access(path, os.X_OK):
            sys.exit(f"{path} is not there: build it with cargo build --release, or name it")
    # Leaving a `with` ends what is started below, whatever ends this script.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    results = {kind: [] for kind in ("nobody", *kinds)}
    for number in range(1, args.rounds + 1):
        sample = {}
        # The machine changes over time, so the order of the kinds rotates.
        order = list(results)
        shift = number % len(order)
        for kind in order[shift:] + order[:shift]:
            try:
                sample[kind] = measure(args, kind)
            except (Failed, OSError) as error:
                print(f"round {number} {kind}: failed: {error}", file=sys.stderr)
                break
            print(f"round {number} {kind}: {sample[kind]:,.0f} deliveries/s", file=sys.stderr)
        if len(sample) == len(results):
            for kind, value in sample.items():
                results[kind].append(value)
    sys.exit(1 if report(args, results) else 0)


def arguments():
    release = os.path.join(base.HERE, "target", "release")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default=os.path.join(release, "ws-cluster"))
    parser.add_argument("--loadtest", default=os.path.join(release, "loadtest"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--outstanding", type=int, default=4)
    parser.add_argument("--bytes", type=int, default=128)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, comma-separated")
    parser.add_argument("--server-arg", action="append", default=[], help="one more for the server")
    args = parser.parse_args()
    args.profile = int(args.seconds + 5)
    return args


def measure(args, kind):
    with base.server(args) as node:
        paths = {
            "scrape": f":{node.prometheus_port}/metrics",
            # It lasts longer than the load, and is cancelled after it.
            "profile": f":{node.pprof_port}/debug/pprof/profile?seconds={args.profile}",
        }
        url = f"http://127.0.0.1{paths.get(kind)}"
        with looking(kind, url):
            flags = ["--connections", args.connections, "--outstanding", args.outstanding]
            flags += ["--bytes", args.bytes, "--seconds", args.seconds]
            return base.pick(node.load("fanout", *flags), "deliveries")


@contextlib.contextmanager
def looking(kind, url):
    """Observes the server for as long as the load runs."""
    if kind == "nobody":
        yield
        return
    is_over = threading.Event()
    seen = []

    def look():
        while not is_over.is_set():
            with urllib.request.urlopen(url, timeout=60) as answer:
                seen.append(len(answer.read()))
            if kind == "profile":
                return
            is_over.wait(1)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    began = time.monotonic()
    yield
    is_over.set()
    thread.join(60)
    if not seen or not seen[0]:
        raise Failed(f"{url} answered nothing within {time.monotonic() - began:.0f} s")


def report(args, results):
    """Prints the table and returns whether any figure missed its limit."""
    failed = False
    print(f"\nMachine: {os.cpu_count()} cores, {base.cpu_model()}, Linux {platform.release()}")
    print(f"Command: {' '.join(sys.argv)}")
    load = f"{args.connections:,} connections, {args.outstanding} messages outstanding"
    print(f"Fan-out: {load}, {len(results['nobody'])} alternating runs of each\n")
    print("| who looks | deliveries/s | lowest | highest | ratio | lowest | highest | needed | reached |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for kind, values in results.items():
        if not values:
            print(f"| {TITLES[kind]} | failed | | | | | | | no |")
            failed = True
            continue
        columns = [statistics.median(values), min(values), max(values)]
        line = " | ".join(f"{column:,.0f}" for column in columns)
        if kind == "nobody":
            print(f"| {TITLES[kind]} | {line} | | | | | |")
            continue
        ratios = [value / alone for value, alone in zip(values, results["nobody"])]
        middle = statistics.median(values) / statistics.median(results["nobody"])
        reached = middle >= NEEDED[kind]
        failed |= not reached
        ratio = f"{middle:.3f} | {min(ratios):.3f} | {max(ratios):.3f}"
        verdict = "yes" if reached else "no"
        print(f"| {TITLES[kind]} | {line} | {ratio} | ≥ {NEEDED[kind]} | {verdict} |")
    return failed


if __name__ == "__main__":
    main()
