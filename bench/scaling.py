#!/usr/bin/env python3
"""How the server's figures grow from ten thousand connections to a million.

    make scaling                               # about 20 minutes; writes docs/scaling.svg
    bench/scaling.py --at 10000,100000 --svg /tmp/scaling.svg

Each size has a server and a load tool of its own, one after the other, on the same machine: a ramp,
an idle minute, pushes to all, and a drain. Prints a table as Markdown and draws the chart.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import types

import million
from coalesce_svg import STYLE, linear_ticks, rule, short, text
from coalesce_svg import LEFT, PLOT_HEIGHT, PLOT_WIDTH, TOP, GAP_X, GAP_Y
from side_by_side import HERE, cpu_model

# (title, unit): the figures to draw, in this order.
FIGURES = {
    "bytes": ("server's RSS", "bytes a connection"),
    "slope": ("RSS beyond the fixed part", "bytes a connection"),
    "idle": ("idle CPU", "us per second and connection"),
    "delivery": ("push to all, to the last delivery", "us a connection"),
    "connects": ("connects", "1/s"),
    "pause": ("longest own pause of a worker", "ms"),
}

SCENARIO = """
[population]
connections = {connections}
uid_prefix = "s"
tags = 1000
tags_per_client = 1
concurrency = 512
timeout = 60

[[phase]]
name = "ramp"
open = {connections}
hold = 5

[[phase]]
name = "idle"
duration = {idle}

[[phase]]
name = "project"
project_pushes = {pushes}

[[phase]]
name = "drain"
drain = true
"""


def main():
    args = arguments()
    results = {}
    for connections in args.at:
        print(f"{connections:,} connections", file=sys.stderr)
        results[connections] = measure(args, connections)
        print(json.dumps(results[connections]), file=sys.stderr)
    if args.million:
        with open(args.million, encoding="utf-8") as file:
            run = json.load(file)
        results[1_000_000] = figures(run["report"], run["memory"], 1_000_000, run["workers"])
    print(table(args, results))
    if args.svg:
        with open(args.svg, "w", encoding="utf-8") as file:
            file.write(draw(results))


def arguments():
    release = os.path.join(HERE, "target", "release")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default=os.path.join(release, "ws-cluster"))
    parser.add_argument("--loadtest", default=os.path.join(release, "loadtest"))
    parser.add_argument(
        "--at",
        type=lambda text: [int(one) for one in text.split(",")],
        default=[10_000, 100_000, 300_000, 1_000_000],
        help="connections, comma-separated",
    )
    parser.add_argument("--million", metavar="FILE", help="the last row, of million.py --json")
    parser.add_argument("--idle", type=int, default=60, help="seconds in which nothing is sent")
    parser.add_argument("--pushes", type=int, default=5, help="to all, one after the other")
    parser.add_argument("--svg", default=os.path.join(HERE, "docs", "scaling.svg"))
    return parser.parse_args()


def measure(args, connections):
    one = types.SimpleNamespace(
        connections=connections,
        server=args.server,
        loadtest=args.loadtest,
        server_arg=[],
        workers=None,
        report=None,
        picture=None,
        seconds=args.idle,
    )
    plan = million.check(one)
    with tempfile.TemporaryDirectory() as folder:
        scenario = os.path.join(folder, "scaling.toml")
        with open(scenario, "w", encoding="utf-8") as file:
            text_ = SCENARIO.format(connections=connections, idle=args.idle, pushes=args.pushes)
            file.write(text_)
        out, watched = million.run(one, plan, scenario)
    if not out.get("ok"):
        sys.exit(f"the run with {connections} connections failed: {json.dumps(out)}")
    return figures(out, watched, connections, plan["workers"])


def figures(out, watched, connections, workers):
    ramp, idle, project = (out["phases"][name] for name in ("ramp", "idle", "project"))
    grown = idle["server_rss_bytes_at_start"] - ramp["server_rss_bytes_at_start"]
    return {
        "workers": workers,
        "bytes": idle["server_rss_bytes_per_connection"],
        "slope": grown / connections,
        "fixed": ramp["server_rss_bytes_at_start"],
        "idle": idle["server_cpu_us_per_second_and_connection"],
        "last_ms": project["accepted_to_last_delivery_us"]["p50"] / 1e3,
        "delivery": project["accepted_to_last_delivery_us"]["p50"] / connections,
        "connects": ramp["connects_per_s"],
        "pause": watched["own_pause_ms"],
        "pause_wall": watched["wall_pause_ms"],
        "drain_s": out["phases"]["drain"]["drain_s"],
    }


def table(args, results):
    lines = [
        f"\nMachine: {os.cpu_count()} cores, {cpu_model()}, Linux {platform.release()}",
        f"Command: {' '.join([os.path.relpath(sys.argv[0], HERE), *sys.argv[1:]])}\n",
        "| Connections | Workers | RSS, bytes each | beyond the fixed part | Idle CPU, us per second"
        " and connection | Push to all, to the last delivery | us a connection | Connects/s |"
        " Longest own pause | by the clock | Drain |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for connections, one in results.items():
        lines.append(
            f"| {connections:,} | {one['workers']} | {one['bytes']:.0f} | {one['slope']:.0f} |"
            f" {one['idle']:.3f} | {one['last_ms']:,.0f} ms | {one['delivery']:.2f} |"
            f" {one['connects']:,.0f} | {one['pause']:.2f} ms | {one['pause_wall']:.0f} ms |"
            f" {one['drain_s']:.1f} s |"
        )
    return "\n".join(lines)


def draw(results):
    """Six panels; a figure that grows in proportion to the connections is a level line."""
    sizes = list(results)
    width = LEFT + 3 * PLOT_WIDTH + 2 * GAP_X + 30
    height = TOP + 2 * PLOT_HEIGHT + GAP_Y + 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' width="{width}" height="{height}" aria-label="Figures by number of connections">',
        f"<style>{STYLE}</style>",
        text(LEFT, 24, "From ten thousand to a million connections in one process", "title"),
        text(LEFT, 46, "Growth with the connections alone is a level line.", "note"),
    ]
    for number, (figure, (title, unit)) in enumerate(FIGURES.items()):
        x0 = LEFT + number % 3 * (PLOT_WIDTH + GAP_X)
        y0 = TOP + number // 3 * (PLOT_HEIGHT + GAP_Y)
        values = [results[size][figure] for size in sizes]
        ticks = linear_ticks(max(max(values), 1e-3))
        out += [text(x0, y0 - 26, title, "title"), text(x0, y0 - 8, unit, "note")]
        y_of = lambda value: y0 + PLOT_HEIGHT * (1 - value / ticks[-1])
        for tick in ticks:
            out.append(rule("grid", x0, y_of(tick)))
            out.append(text(x0 - 6, y_of(tick) + 4, short(tick), "note", "end"))
        out.append(rule("axis", x0, y0 + PLOT_HEIGHT))
        step = PLOT_WIDTH / max(1, len(sizes) - 1)
        points = [(x0 + step * i, y_of(value)) for i, value in enumerate(values)]
        for (x, _), size in zip(points, sizes):
            out.append(text(x, y0 + PLOT_HEIGHT + 18, short(size), "note", "middle"))
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points)
        out.append(f'<g class="s0"><path d="M{path}"/>{dots}</g>')
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    main()
