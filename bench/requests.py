#!/usr/bin/env python3
"""Requests to business servers and events to them, beside a bare Redis; medians as Markdown.

    cargo build --release --workspace
    bench/requests.py                          # all figures, 5 rounds
    bench/requests.py --rounds 1 --only latency
    bench/requests.py --server-core 0 --redis-core 1 --client-core 1

latency: one request at a time. Cluster: the client is at one node, the business server at another.
Local: both at one node. Bare: a message through Redis with nothing in between (bench
redis-round-trip). A request and its answer are at least two of those.

throughput: one node with the clients and one business server, without and with Redis.

storm: many clients connect at once and then leave, while one business server at the same node and
one at another listen. Each must receive every client's connect event once, then its disconnect
event once.

Clients and business servers are the load tool's, in one thread. Nothing is pinned unless asked for,
and every server has one worker. Redis is started here, on a free port and without persistence.
"""

import sys

import cluster
import side_by_side as base
from cluster import of_rounds, shown, verdict

FIGURES = ("latency", "throughput", "storm")
# Maximum latency of a request over two nodes, in round trips through Redis.
ROUND_TRIPS = 4.0
# Minimum number of requests per second of one worker with the local queue.
THROUGHPUT = 20_000


def main():
    args = arguments()
    wanted = cluster.figures_of(args, FIGURES)
    cluster.prepare(args)
    cluster.demand_redis_queue(args)
    steps = [step for name in wanted for step in steps_of(args, name)]
    failed = report(args, wanted, cluster.run_rounds(args, steps))
    sys.exit(1 if failed else 0)


def arguments():
    parser = cluster.common_arguments(__doc__.splitlines()[0], FIGURES)
    parser.add_argument("--clients", type=int, default=64, help="that ask at once")
    parser.add_argument("--connections", type=int, default=10_000, help="of the storm")
    parser.add_argument("--concurrency", type=int, default=64, help="connects at once in the storm")
    return cluster.parse(parser)


def steps_of(args, name):
    """The measurements of one round, in this order: (key, function that returns a sample)."""
    if name == "latency":
        return [
            ("latency local", lambda: latency_local(args)),
            ("latency cluster", lambda: latency_cluster(args)),
            ("latency bare", lambda: cluster.bare(args, None)),
        ]
    if name == "throughput":
        return [
            ("throughput local", lambda: throughput(args, "local")),
            ("throughput redis", lambda: throughput(args, "redis")),
        ]
    return [("storm", lambda: storm(args))]


def latency_local(args):
    with base.server(args) as node:
        return latency_of(ask(args, node, node, 1))


def latency_cluster(args):
    with cluster.two_nodes(args) as (a, b):
        return latency_of(ask(args, a, b, 1))


def latency_of(out):
    times = out["request_to_answer_us"]
    return {key: times[key] for key in ("p50", "p90", "p99")} | {"per_s": out["requests_per_s"]}


def ask(args, node, of_server, clients):
    """The load tool's report: clients at one node, the business server at that one or another."""
    flags = ["--clients", clients, "--bytes", args.bytes, "--seconds", args.seconds]
    flags += ["--server-ws", address(of_server), "--pid-of-server", node.pid]
    return node.load("requests", *flags)


def address(node):
    return f"127.0.0.1:{node.ws_port}"


def throughput(args, queue):
    with cluster.one_node(args, queue) as (node, _):
        out = ask(args, node, node, args.clients)
    sample = {"per_s": out["requests_per_s"], "tool_bound": out["tool_was_bottleneck"]}
    sample |= {key: out["request_to_answer_us"][key] for key in ("p50", "p99")}
    return sample | {name: out[f"{name}_cpu_us_per_request"] for name in ("server", "tool")}


def storm(args):
    with cluster.two_nodes(args) as (a, b):
        flags = ["--connections", args.connections, "--concurrency", args.concurrency]
        flags += ["--servers", 2, "--server-ws", f"{address(a)},{address(b)}"]
        out = a.load("events", *flags)
    sample = {"per_s": out["connects_per_s"], "events_per_read": out["events_per_read"]}
    names = {"events_per_s": "events", "welcome_to_event_p50_us": "p50"}
    names["welcome_to_event_p99_us"] = "p99"
    for where, of_one in zip(("near", "far"), out["of_each_server"]):
        sample |= {f"{where} {short}": of_one[name] for name, short in names.items()}
    return sample


def report(args, wanted, results):
    """Prints the tables and returns whether any figure is missing or missed its limit."""
    cluster.head(args)
    failed = False
    if "latency" in wanted:
        failed |= report_latency(results)
    if "throughput" in wanted:
        failed |= report_throughput(args, results)
    if "storm" in wanted:
        failed |= report_storm(args, results["storm"])
    cluster.keep(args, results)
    return failed


def report_latency(results):
    local, over_redis, bare = (results[f"latency {what}"] for what in ("local", "cluster", "bare"))
    # Each ratio compares figures measured seconds apart.
    ratios = of_rounds(lambda c, b: c["p50"] / b["p50"], over_redis, bare)
    reached = verdict(ratios, lambda ratio: ratio <= ROUND_TRIPS)
    each = [of_rounds(lambda s: s["p50"], samples) for samples in (local, over_redis, bare)]
    columns = [shown(column, ",.1f") for column in each] + [shown(ratios, ".2f")]
    print("\n| request to answer, p50 (us) | local | cluster | bare | cluster / bare |", end="")
    print(" needed | reached |\n|---|---:|---:|---:|---:|---:|---|")
    print(f"| one at a time | {' | '.join(columns)} | ≤ {ROUND_TRIPS:g} | {reached} |")
    cluster.report_tails(results)
    return reached == "no"


def report_throughput(args, results):
    failed = False
    print(f"\n| requests, {args.clients} clients, one business server | 1/s | p50 (us) |", end="")
    print(" p99 (us) | server (us each) | tool (us each) | needed | reached |")
    print("|---|" + "---:|" * 6 + "---|")
    for queue, needed in (("local", THROUGHPUT), ("redis", None)):
        samples = results[f"throughput {queue}"]
        rates = of_rounds(lambda sample: sample["per_s"], samples)
        reached = verdict(rates, lambda rate: rate >= (needed or 0))
        failed |= reached == "no"
        if reached == "yes" and not needed:
            reached = ""
        columns = [shown(rates, ",.0f")]
        for key in ("p50", "p99", "server", "tool"):
            columns.append(shown(of_rounds(lambda sample: sample[key], samples), ",.1f"))
        # If the load tool's own core was saturated, the server could have done more.
        bound = of_rounds(lambda sample: sample["tool_bound"], samples)
        note = " (tool bound)" if any(bound) else ""
        limit = f"≥ {needed:,}" if needed else ""
        print(f"| --queue {queue} | {' | '.join(columns)} | {limit} | {reached}{note} |")
    return failed


def report_storm(args, samples):
    # The load tool fails if an event is lost, doubled or out of order.
    reached = "no" if None in samples else "yes"
    print(f"\n| storm of {args.connections:,} clients | connects/s | events/s |", end="")
    print(" welcome to event, p50 (us) | p99 (us) | events a read | needed | reached |")
    print("|---|" + "---:|" * 5 + "---|---|")
    for where, title in (("near", "the same node"), ("far", "the other node")):
        keys = ("per_s", f"{where} events", f"{where} p50", f"{where} p99")
        columns = [shown(of_rounds(lambda s: s[key], samples), ",.0f") for key in keys]
        columns.append(shown(of_rounds(lambda s: s["events_per_read"], samples), ".2f"))
        print(f"| business server at {title} | {' | '.join(columns)} |", end="")
        print(f" each once, in order | {reached} |")
    # Both are then read in one turn and get the same time.
    print("\nA welcome and an event that come within one turn of the load tool are 0 us apart.")
    return reached == "no"


if __name__ == "__main__":
    main()
