"""The agent: fetches one model into a directory, tells how far it is, and stays beside the engine."""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from quire_api.errors import UserError
from quire_runtime.agent.errors import EXIT_CODES
from quire_runtime.agent.fetch import fetch_into
from quire_runtime.agent.pages import Pages
from quire_runtime.agent.progress import Meter, Phase, Stopped
from quire_runtime.agent.retry import Retry
from quire_runtime.agent.shape import read_shape
from quire_runtime.agent.source import parse_source

log = logging.getLogger("quire.agent")

INTERNAL_KEY = "QUIRE_INTERNAL_KEY"
TERMINATION_LOG = "QUIRE_TERMINATION_LOG"
TERMINATION_BYTES = 4096
"""What the kubelet keeps of a termination message."""
TOLD_EVERY_S = 10.0
STOP_GRACE_S = 3.0
"""What a fetch that waits for the network may take to notice SIGTERM."""
STOPPED = 128 + signal.SIGTERM
UNKNOWN = 1


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 after SIGTERM once all is here, 143 after SIGTERM before, else that of `EXIT_CODES`."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    meter = Meter(options.source, str(options.destination))
    wake = threading.Event()

    def stop(*_: object) -> None:
        meter.stop()
        wake.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        pages = Pages(options.host, options.port, meter, os.environ.get(INTERNAL_KEY, ""))
    except OSError as error:
        return _failed(options, "PortTaken", f"{options.host}:{options.port} cannot be listened on ({error.strerror}).")
    log.info("progress at %s/progress", pages.url)
    codes: list[int] = []

    def work() -> None:
        codes.append(_fetch(options, meter))
        wake.set()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while not wake.wait(TOLD_EVERY_S):
        log.info("%s", meter.standing().sentence)
    worker.join(STOP_GRACE_S)
    code = codes[0] if codes else STOPPED
    if code == 0 and not options.once:
        meter.wait_for_stop()
    pages.close()
    return code


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """`main`, then end at once, whatever a thread may still wait for."""
    code = main(argv)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _fetch(options: argparse.Namespace, meter: Meter) -> int:
    try:
        place = fetch_into(
            parse_source(options.source, options.revision),
            options.destination,
            progress=meter.report,
            retry=Retry(options.attempts, options.backoff_s, pause=meter.pause, heard=meter.fails),
            waiting=meter.waits,
            described=lambda directory, weights: meter.describe(read_shape(directory, weights)),
            allow_pickle=options.allow_pickle,
        )
    except Stopped:
        meter.ended(Phase.STOPPED)
        log.info("stopped before the model was complete; the next start goes on from here")
        return STOPPED
    except UserError as error:
        meter.ended(Phase.FAILED, type(error).__name__, str(error))
        return _failed(options, type(error).__name__, str(error), EXIT_CODES.get(type(error), UNKNOWN))
    except Exception as error:
        meter.ended(Phase.FAILED, "AgentFailed", str(error))
        log.exception("this is a bug of the agent")
        return _failed(options, "AgentFailed", f"{options.source}: {type(error).__name__}: {error}")
    meter.ended(Phase.COMPLETE)
    log.info("%s is in %s (%s)", options.source, place, meter.standing().sentence)
    return 0


def _failed(options: argparse.Namespace, reason: str, message: str, code: int = UNKNOWN) -> int:
    """Say why on standard error and where the kubelet reads it."""
    print(f"quire agent: {message}", file=sys.stderr, flush=True)
    if options.termination_log is not None:
        room = TERMINATION_BYTES - 256
        said = json.dumps({"reason": reason, "message": message.encode()[:room].decode(errors="ignore")})
        try:
            options.termination_log.write_text(said)
        except OSError as error:
            log.warning("%s cannot be written: %s", options.termination_log, error)
    return code


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quire agent",
        description="Fetch one model into a directory, resuming what is there; serve /progress, /healthz and /metrics.",
        epilog="Credentials: HF_TOKEN; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and whatever else "
        "AWS clients read; config.json in $DOCKER_CONFIG. With QUIRE_INTERNAL_KEY set, /progress asks for it.",
    )
    parser.add_argument("--source", required=True, help="hf://, s3://, oci://, pvc:// or file:// address")
    parser.add_argument("--revision", help="branch, tag or commit of an hf:// source")
    parser.add_argument(
        "--destination",
        type=Path,
        required=True,
        help="directory of the model; for pvc:// where it is mounted, for file:// not used",
    )
    parser.add_argument("--host", default="0.0.0.0", help="address of the pages (default %(default)s)")
    parser.add_argument("--port", type=int, default=8001, help="port of the pages (default %(default)s); 0 is any")
    parser.add_argument(
        "--attempts", type=_at_least_one, default=6, help="tries in a row without a byte (default %(default)s)"
    )
    parser.add_argument("--backoff-s", type=float, default=1.0, help="first wait between tries; it doubles up to 30 s")
    parser.add_argument("--allow-pickle", action="store_true", help="take .bin weights where there are no safetensors")
    parser.add_argument("--once", action="store_true", help="end when the model is complete")
    standard = os.environ.get(TERMINATION_LOG)
    parser.add_argument(
        "--termination-log",
        type=Path,
        default=Path(standard) if standard else None,
        help=f"file for a JSON reason and message on failure (default ${TERMINATION_LOG})",
    )
    return parser
