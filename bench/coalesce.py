#!/usr/bin/env python3
"""The effect of --coalesce_us on the fan-out: deliveries per second and latency, as Markdown and
SVG.

    cargo build --release --workspace
    bench/coalesce.py                          # 3 rounds, about 10 minutes; draws docs/coalesce.svg
    bench/coalesce.py --rounds 1 --seconds 1 --windows 0,2000 --svg /tmp/coalesce.svg

The server has one worker on one core, the load tool has the other. First every window is measured
with 1, 4 and 16 messages in flight to many connections, each pushed as soon as an earlier one has
arrived everywhere: the maximum. Then messages are pushed to few connections at a fixed rate, as in
a chat room: there the window determines how many of them share a send. Each round measures all
windows in rotating order, so that a slow minute of the host affects all alike.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys

import coalesce_svg
import side_by_side as base
from side_by_side import Failed

IN_FLIGHT = (1, 4, 16)
# Size of a push's object around the text of its data, with an id of 19 digits.
OVERHEAD = 52


def main():
    args = arguments()
    for path in (args.server, args.loadtest):
        if not os.access(path, os.X_OK):
            sys.exit(f"{path} is not there: build it with cargo build --release, or name it")
    # Leaving a `with` ends what is started below, whatever ends this script.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    windows = [int(window) for window in args.windows.split(",")]
    cases = [(size, load) for size in args.data_bytes for load in (*IN_FLIGHT, "rate")]
    samples = []
    for number in range(args.rounds):
        for case in cases:
            shift = number % len(windows)
            for window in windows[shift:] + windows[:shift]:
                samples += measured(args, number, *case, window)
    results = medians(samples, cases, windows)
    print(table(args, results, windows))
    if args.svg:
        with open(args.svg, "w", encoding="utf-8") as file:
            titles = (args.connections, rate_title(args))
            file.write(coalesce_svg.draw(results, windows, IN_FLIGHT, *titles))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(samples, file, indent=1)
    sys.exit(0 if len(samples) == args.rounds * len(cases) * len(windows) else 1)


def arguments():
    here = base.HERE
    release = os.path.join(here, "target", "release")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default=os.path.join(release, "ws-cluster"))
    parser.add_argument("--loadtest", default=os.path.join(release, "loadtest"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--windows", default="0,100,500,2000", help="microseconds, first 0")
    parser.add_argument("--data-bytes", type=int, nargs="+", default=[12, 128])
    parser.add_argument("--rate-connections", type=int, default=100)
    parser.add_argument("--rate", type=float, default=2_000, help="messages a second to them")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--server-arg", action="append", default=[], help="one more for the server")
    parser.add_argument("--svg", default=os.path.join(here, "docs", "coalesce.svg"))
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    args = parser.parse_args()
    if args.windows.split(",")[0] != "0":
        parser.error("--windows: the first must be 0, which the others are compared with")
    return args


def measured(args, number, size, load, window):
    """One run in a list, which is empty if it failed."""
    try:
        sample = measure(args, size, load, window)
    except (Failed, OSError) as error:
        print(f"round {number} {size} bytes, {load}, {window} us: failed: {error}", file=sys.stderr)
        return []
    sample |= {"round": number, "size": size, "load": load, "window": window}
    print(json.dumps(sample), file=sys.stderr)
    return [sample]


def measure(args, size, load, window):
    flags = ["--bytes", size + OVERHEAD, "--seconds", args.seconds, "--project"]
    if load == "rate":
        flags += ["--connections", args.rate_connections, "--rate", args.rate, "--outstanding", 32]
    else:
        flags += ["--connections", args.connections, "--outstanding", load]
    with base.server(args, extra=["--coalesce_us", str(window)]) as node:
        out = node.load("fanout", *flags, "--pid-of-server", node.pid)
    return {
        "deliveries": out["deliveries_per_s"],
        "p50": out["push_to_delivery_us"]["p50"],
        "p99": out["push_to_delivery_us"]["p99"],
        "cpu": out["server_cpu_us_per_delivery"],
        "lost": out["lost"],
        "tool_bound": out["tool_was_bottleneck"],
    }


def medians(samples, cases, windows):
    """By case and window: the median of each figure, and of its ratio to the same round's 0."""
    results = {}
    for size, load in cases:
        own = [one for one in samples if (one["size"], one["load"]) == (size, load)]
        without = {one["round"]: one for one in own if one["window"] == 0}
        for window in windows:
            here = [one for one in own if one["window"] == window]
            if not here:
                continue
            result = {key: statistics.median(one[key] for one in here) for key in ("p50", "p99")}
            for key in ("deliveries", "cpu"):
                result[key] = statistics.median(one[key] for one in here)
                ratios = [
                    one[key] / without[one["round"]][key]
                    for one in here
                    if one["round"] in without and without[one["round"]][key]
                ]
                result[f"{key}_ratio"] = statistics.median(ratios) if ratios else None
            result["lost"] = sum(one["lost"] for one in here)
            results[size, load, window] = result
    return results


def rate_title(args):
    return f"{args.rate:,.0f} messages/s to {args.rate_connections:,} connections"


def table(args, results, windows):
    lines = [
        f"Machine: {os.cpu_count()} cores, {base.cpu_model()}, Linux {platform.release()}",
        f"Command: {' '.join(sys.argv)}",
        "",
        "| data | load | `--coalesce_us` | deliveries/s | to 0 | p50 | p99 | CPU of each | to 0 |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (size, load, window), one in results.items():
        name = rate_title(args) if load == "rate" else f"{load} in flight"
        lines.append(
            f"| {size} | {name} | {window} | {one['deliveries']:,.0f} | {ratio(one, 'deliveries')}"
            f" | {one['p50']:,.0f} us | {one['p99']:,.0f} us | {one['cpu']:.2f} us"
            f" | {ratio(one, 'cpu')} |"
        )
    lost = sum(one["lost"] for one in results.values())
    lines.append(f"\n{lost} of all messages were lost.")
    return "\n".join(lines)


def ratio(one, key):
    value = one[f"{key}_ratio"]
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
