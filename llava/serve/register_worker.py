"""Registers a worker with a controller by hand.

In: the two addresses. Out: a registered worker, or an error.

    python -m llava.serve.register_worker --controller-address http://localhost:21001 \
        --worker-name http://localhost:21002
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import requests

from llava.errors import ConfigError, run_script
from llava.serve.protocol import post_json


def register(controller_address: str, worker_name: str, check_heart_beat: bool) -> None:
    """Makes a controller register a worker; the controller asks it for its status.

    Raises:
        ConfigError: If the controller does not answer or refuses.
    """
    body = {
        "worker_name": worker_name,
        "check_heart_beat": check_heart_beat,
        "worker_status": None,
    }
    try:
        post_json(controller_address + "/register_worker", body)
    except requests.RequestException as error:
        raise ConfigError(
            f"the controller at {controller_address} did not take the worker: {error}"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m llava.serve.register_worker")
    parser.add_argument("--controller-address", required=True)
    parser.add_argument("--worker-name", required=True)
    parser.add_argument("--check-heart-beat", action="store_true")
    run_script(
        lambda args: register(args.controller_address, args.worker_name, args.check_heart_beat),
        parser,
        argv,
    )


if __name__ == "__main__":
    main()
