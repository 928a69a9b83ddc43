"""``python -m data_prep.stand_in --answers facts.jsonl``: the stand-in on its own, for several processes at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.stand_in.faults import KINDS
from data_prep.stand_in.server import StandIn


def main() -> None:
    """Serve until interrupted; the first line that is printed is the URL."""
    kinds = "\n".join(f"  {kind:12} {meaning}" for kind, meaning in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.stand_in",
        epilog=f"kinds of faults:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--answers", type=Path, required=True, help="JSONL with image_sha256 and qas")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--fault", action="append", default=[], metavar="KIND=SHARE", help="repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry-delay", type=float, default=1.0, help="seconds that a 429 asks to wait")
    parser.add_argument("--requests-per-minute", type=int)
    parser.add_argument("--requests-per-day", type=int)
    parser.add_argument("--log", type=Path, help="file for one line a request")
    arguments = parser.parse_args()
    faults = {kind: float(share) for kind, _, share in (fault.partition("=") for fault in arguments.fault)}
    server = StandIn(
        arguments.answers,
        latency=arguments.latency,
        faults=faults,
        seed=arguments.seed,
        retry_delay=arguments.retry_delay,
        requests_per_minute=arguments.requests_per_minute,
        requests_per_day=arguments.requests_per_day,
        log=arguments.log,
        port=arguments.port,
    )
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
