"""``python -m data_prep.stand_in --answers facts.jsonl``: the stand-in as a process of its own, for several tasks at once."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from dataclasses import fields
from pathlib import Path

from data_prep.outcomes import UserError
from data_prep.stand_in.faults import BATCH_KINDS, KINDS
from data_prep.stand_in.server import StandIn
from data_prep.stand_in.state import StandInOptions


def main() -> None:
    """Serve until interrupted; the first line that is printed is the URL."""
    kinds = "\n".join(f"  {kind:12} {meaning}" for kind, meaning in KINDS.items())
    kinds += "\nof whole batches:\n" + "\n".join(f"  {kind:12} {meaning}" for kind, meaning in BATCH_KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.stand_in",
        epilog=f"kinds of faults:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--answers", type=Path, required=True, help="JSONL with image_sha256 and qas")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--fault", action="append", default=[], metavar="KIND=SHARE", help="repeatable")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other requests that go wrong")
    parser.add_argument("--opinion-error", type=float, default=0.0, help="share of second opinions that are wrong")
    parser.add_argument(
        "--opinion-copies", type=float, default=0.0, help="share of these that repeat a wrong answer of the generator"
    )
    parser.add_argument("--batch-seconds", type=float, default=0.0, help="until a batch is answered")
    parser.add_argument("--batch-fault", action="append", default=[], metavar="KIND=SHARE", help="repeatable")
    parser.add_argument("--batches-at-once", type=int, help="batches under way at most")
    parser.add_argument("--retry-delay", type=float, default=1.0, help="seconds that a 429 asks to wait")
    parser.add_argument(
        "--requests-per-minute", type=int, help="0: as for a model that is not available to this project"
    )
    parser.add_argument("--tokens-per-minute", type=int, help="in and out together")
    parser.add_argument("--requests-per-day", type=int, help="over the server's lifetime")
    parser.add_argument("--key", action="append", dest="keys", help="a valid API key, repeatable; default: any is")
    parser.add_argument("--model", action="append", dest="models", help="a known model, repeatable; default: any is")
    parser.add_argument("--retired", action="append", default=[], metavar="MODEL", help="answered with 404, repeatable")
    parser.add_argument(
        "--thoughts", type=float, help="mean of thought tokens; tokens are drawn as Gemini 3 counts them"
    )
    parser.add_argument("--outage-seconds", type=float, default=0.0, help="503 for so long after the first request")
    parser.add_argument("--log", type=Path, help="file for one line a request")
    arguments = parser.parse_args()
    # Every other argument is an option of the same name.
    given = {field.name: getattr(arguments, field.name) for field in fields(StandInOptions) if field.name in arguments}
    try:
        faults, batch_faults = dict(map(_share, arguments.fault)), dict(map(_share, arguments.batch_fault))
        options = StandInOptions(**given, faults=faults, batch_faults=batch_faults)
        server = StandIn(arguments.answers, options, log=arguments.log, port=arguments.port)
    except UserError as error:
        sys.exit(f"error: {error}")
    # A container or a test ends it with SIGTERM, which Python does not turn into an exception by itself.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    print(server.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


def _share(fault: str) -> tuple[str, float]:
    kind, _, share = fault.partition("=")
    try:
        return kind, float(share)
    except ValueError:
        raise UserError(f"--fault {fault}: write KIND=SHARE, such as status_429=0.1") from None


if __name__ == "__main__":
    main()
