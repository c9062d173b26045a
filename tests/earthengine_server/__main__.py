"""The server in a process of its own; it ends with SIGTERM or Ctrl-C.

python -m tests.earthengine_server [--port 8080] [--latency 0.2] [--replay] …
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from datetime import date
from pathlib import Path

from tests.earthengine_server.answers import Limits
from tests.earthengine_server.catalogue import Catalogue, Gap
from tests.earthengine_server.faults import plan_of
from tests.earthengine_server.http import Server
from tests.earthengine_server.service import Service


def _gap(text: str) -> Gap:
    name, start, end = text.split(":")
    return name, date.fromisoformat(start), date.fromisoformat(end)


def main() -> None:
    parser = argparse.ArgumentParser("earthengine_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated world")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds added to every computation")
    parser.add_argument("--in-flight", type=int, default=Limits.in_flight, help="beyond it: 429")
    parser.add_argument("--per-second", type=int, default=Limits.per_second, help="beyond it: 429")
    parser.add_argument(
        "--work", type=float, default=Limits.work, help="pixels x bands: beyond it memory ends"
    )
    parser.add_argument(
        "--replay", action="store_true", help="remember answers: requests met before cost nothing"
    )
    parser.add_argument("--without", type=_gap, action="append", default=[], metavar="COLLECTION:START:END")
    parser.add_argument("--faults", type=Path, help='JSON: [{"kind": "503", "share": 0.1}, …]')
    args = parser.parse_args()
    limits = Limits(in_flight=args.in_flight, per_second=args.per_second, work=args.work)
    service = Service(
        Catalogue(args.seed, args.without), limits=limits, latency=args.latency, replay=args.replay
    )
    if args.faults:
        try:
            service.plan = plan_of(json.loads(args.faults.read_text()))
        except (OSError, ValueError) as error:
            parser.error(f"--faults {args.faults}: {error}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Server(service, args.port) as server:
        sys.stdout.write(f"listening on {server.url}\n")
        sys.stdout.flush()
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
