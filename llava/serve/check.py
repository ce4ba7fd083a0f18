"""Says what is missing before anybody can ask: no controller, no worker, no model.

In: the controller's address. Out: sentences, each with what to do; none when all is well. Servers
call it when they start; the command ends with status 1 when something is missing.

    python -m llava.serve.check --controller-address http://localhost:21001
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import requests

from llava.serve import client


def find_problems(controller: str) -> list[str]:
    """Ask controller and workers.

    Returns:
        What is missing, and what to do.
    """
    try:
        models = client.get_model_list(controller)
    except (requests.RequestException, ValueError, KeyError):
        return [
            f"no controller answers at {controller}: start `python -m llava.serve.controller`, or "
            "give the address of the one that runs"
        ]
    if not models:
        return [
            f"no worker has registered with {controller}: start `python -m "
            f"llava.serve.model_worker --controller-address {controller} --model-path FOLDER`; "
            "one that has just been started is known once its model is loaded"
        ]
    problems = []
    for model in models:
        address = ""
        try:
            address = client.get_worker_address(controller, model)
            served = client.get_worker_status(address)["model_names"] if address else []
        except (requests.RequestException, ValueError, KeyError):
            served = []
        if model not in served:
            problems.append(
                f"the worker {address or '(none)'} of model {model} does not answer from here: "
                "does its --worker-address hold an address that this machine can reach?"
            )
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m llava.serve.check", description=__doc__)
    parser.add_argument("--controller-address", default="http://localhost:21001")
    args = parser.parse_args(argv)
    problems = find_problems(args.controller_address.rstrip("/"))
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if not problems:
        models = client.get_model_list(args.controller_address.rstrip("/"))
        sys.stdout.write(f"ready: {', '.join(models)}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
