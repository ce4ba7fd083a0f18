"""Registers a worker with a controller by hand.

In: the two addresses. Out: a registered worker, or an error.

    python -m llava.serve.register_worker --controller-address http://localhost:21001 \
        --worker-name http://localhost:21002
"""

from __future__ import annotations

from collections.abc import Sequence

import requests

from llava.errors import ConfigError, flag, make_parser, run_script
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
    run_script(
        lambda args: register(args.controller_address, args.worker_name, args.check_heart_beat),
        make_parser(
            __doc__,
            flag("--controller-address", required=True),
            flag("--worker-name", required=True),
            flag("--check-heart-beat", action="store_true"),
            prog="python -m llava.serve.register_worker",
        ),
        argv,
    )


if __name__ == "__main__":
    main()
