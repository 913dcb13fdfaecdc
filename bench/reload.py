#!/usr/bin/env python3
"""What a reload of many projects costs a node under load: pauses, refusals, time.

    cargo build --release
    bench/reload.py                            # 10,000 projects, 20 reloads, a minute
    bench/reload.py --workers 2 --clients 5000

Signed pushes arrive throughout. Each reload gives every project another secret; a last one removes a
project with all its clients. The longest pause is the node's own figure, of each worker's own work.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(HERE, "tests", "python"))


def main():
    args = arguments()
    # The harness takes the binary from the environment when it is imported.
    os.environ["WS_CLUSTER_BIN"] = args.server
    from harness import Server, eventually
    from test_reload import Files, Pushers, project, reload

    own, other = project("1", "dev-secret"), project("other", "secret-of-other")
    many = lambda secret: "".join(
        project(f"p{number}", f"{secret}-of-project-{number}") for number in range(args.projects)
    )
    with tempfile.TemporaryDirectory() as folder:
        files = Files(pathlib.Path(folder))
        files.write(own + other + many("first"))
        server = Server("--workers", str(args.workers), "--config", str(files.config))
        with server:
            clients = []
            for number in range(args.clients):
                clients.append(server.raw_ws(f"u{number}"))
                clients.append(server.raw_ws(f"u{number}", "secret-of-other", pid="other"))
            times = []
            with Pushers(server, ["dev-secret"], threads=args.threads) as pushers:
                time.sleep(args.seconds)
                quiet_ms = longest_ms(server, "own")
                for number in range(args.reloads):
                    files.write(own + other + many(f"secret-{number}"))
                    began = time.monotonic()
                    answer = reload(server)
                    times.append(1_000 * (time.monotonic() - began))
                    assert answer["projects"]["count"]["changed"] == args.projects, answer
                before_removal_ms = longest_ms(server, "own")
                files.write(own + many("last"))
                assert reload(server)["projects"]["removed"] == ["other"]
                closed = lambda: server.metric("ws_cluster_close_total", reason="project_removed")
                eventually(lambda: closed() == args.clients, "the closes", timeout=60)
            print(json.dumps({
                "projects": args.projects,
                "reloads": args.reloads + 1,
                "clients": 2 * args.clients,
                "workers": args.workers,
                "signed_requests_per_s": round(pushers.sent / pushers.seconds),
                "refused": pushers.statuses["refused"],
                "reload_ms_median": round(statistics.median(times)),
                "reload_ms_max": round(max(times)),
                "longest_own_pause_before_the_reloads_ms": quiet_ms,
                "longest_own_pause_before_the_removal_ms": before_removal_ms,
                "longest_own_pause_ms": longest_ms(server, "own"),
                "longest_pause_ms": longest_ms(server, "wall"),
            }, indent=2))


def longest_ms(server, kind):
    """The longest pause of any worker so far: its own work, or by the clock on the wall."""
    name = "ws_cluster_worker_longest_pause_seconds"
    series = ((one, value) for one, value in server.metrics().items() if one.startswith(name))
    return round(1_000 * max(value for one, value in series if f'"{kind}"' in one), 2)


def arguments():
    release = os.path.join(HERE, "target", "release")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default=os.path.join(release, "ws-cluster"))
    parser.add_argument("--projects", type=int, default=10_000)
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--clients", type=int, default=1_000, help="of each of two projects")
    parser.add_argument("--seconds", type=float, default=10, help="of load before the reloads")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
