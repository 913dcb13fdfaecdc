#!/usr/bin/env python3
"""Every part beside its theoretical bound (bench/benches/parts), as Markdown.

    bench/parts.py                             # a short run, about 2 minutes
    bench/parts.py --seconds 3 --only read     # longer, and only parts with "read" in their names
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys

import side_by_side as base


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1, help="for each figure")
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--cargo-arg", action="append", default=[], help="one more for cargo bench")
    args = parser.parse_args()
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(base.HERE, "target"))
    found = os.path.join(target, "criterion")
    # Otherwise figures of an earlier build would appear in the table beside those of this one.
    shutil.rmtree(found, ignore_errors=True)
    command = ["cargo", "bench", "-q", "-p", "bench", "--bench", "parts", *args.cargo_arg, "--"]
    command += ["--noplot", "--warm-up-time", str(args.seconds / 2)]
    command += ["--measurement-time", str(args.seconds), args.only]
    run = subprocess.run(command, cwd=base.HERE, stdout=sys.stderr)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {run.returncode}")
    print(f"Machine: {os.cpu_count()} cores, {base.cpu_model()}, Linux {platform.release()}\n")
    print("| Part | Server | Bound | Its time | Ratio |\n|---|---:|---|---:|---:|")
    for part, sides in sorted(read(found).items(), key=lambda one: one[1]["written"]):
        ours, bound = sides["server"], sides["bound"]
        print(
            f"| {part} | {time(ours)} | {sides['name']} | {time(bound)} | {ours / bound:.2f} |"
        )


def read(found):
    """By part: the medians of part and bound in nanoseconds, and the bound's name."""
    parts = {}
    for folder, _, files in os.walk(found):
        if os.path.basename(folder) != "new" or "estimates.json" not in files:
            continue
        with open(os.path.join(folder, "benchmark.json"), encoding="utf-8") as file:
            benchmark = json.load(file)
        estimates = os.path.join(folder, "estimates.json")
        with open(estimates, encoding="utf-8") as file:
            median = json.load(file)["median"]["point_estimate"]
        part = parts.setdefault(benchmark["group_id"], {})
        part[benchmark["function_id"]] = median
        if benchmark["function_id"] == "bound":
            part["name"] = benchmark["value_str"]
            part["written"] = os.stat(estimates).st_mtime_ns
    return parts


def time(ns):
    return f"{ns / 1000:,.2f} us" if ns >= 1000 else f"{ns:.1f} ns"


if __name__ == "__main__":
    main()
