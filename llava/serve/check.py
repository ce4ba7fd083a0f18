"""Reports what is missing before the servers can answer: controller, worker or model.

In: the address of the controller. Out: one message per problem, with its remedy. Servers run these
checks when they start, before they import anything slow; the command ends with status 1 if there is
a problem.

    python -m llava.serve.check --controller-address http://localhost:21001
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import requests

from llava.errors import CheckpointError, ConfigError, flag, make_parser
from llava.serve import protocol

MAX_PORT = 65_535


def check_model_path(model_path: str) -> None:
    """Refuses a model folder that does not exist, before anything slow starts.

    A name such as `org/model` may be on the Hub; one that looks like a local path may not.

    Raises:
        CheckpointError: The folder is missing or has no configuration.
    """
    path = Path(model_path).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise CheckpointError(
                f"{model_path} holds neither config.json nor adapter_config.json: "
                "is the training finished, and is this the folder that it wrote?"
            )
        return
    looks_local = model_path.startswith(("/", ".", "~")) or model_path.count("/") != 1
    if looks_local or Path(path.parts[0]).is_dir() or path.parts[0] == "runs":
        raise CheckpointError(
            f"no model folder {model_path} (from {Path.cwd()}): give the folder that a training "
            "wrote, such as runs/mini after `bash scripts/quickstart.sh`"
        )


def check_at_least(args: argparse.Namespace, **least: float) -> None:
    """Refuses flags that are too low.

    Args:
        args: The flags.
        least: The lowest value of each flag.

    Raises:
        ConfigError: A flag is lower than that, or not a number.
    """
    for name, value in least.items():
        if not getattr(args, name) >= value:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}; expected {value} or more"
            )


def check_port_is_free(host: str, port: int, flag: str = "--port") -> None:
    """Refuses a port that another program uses.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        flag: Flag that sets the port.

    Raises:
        ConfigError: The port is in use, forbidden or invalid, or the host is unknown.
    """
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"{flag} is {port}; expected 0 to {MAX_PORT}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}") from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}): another program may use it; "
                f"give another port with {flag}"
            ) from None


def find_problems(controller: str) -> list[str]:
    """Asks the controller and its workers for their state.

    Returns:
        One message per problem, with its remedy.
    """
    try:
        models = protocol.get_model_list(controller)
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
            address = protocol.get_worker_address(controller, model)
            is_served = model in protocol.get_worker_status(address)["model_names"]
        except (requests.RequestException, ValueError, KeyError):
            is_served = False
        if not is_served:
            problems.append(
                f"the worker {address or '(none)'} of model {model} does not answer from here: "
                "does its --worker-address hold an address that this machine can reach?"
            )
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = make_parser(
        __doc__,
        flag("--controller-address", default="http://localhost:21001"),
        prog="python -m llava.serve.check",
    )
    address = parser.parse_args(argv).controller_address.rstrip("/")
    problems = find_problems(address)
    if problems:
        sys.stderr.write("".join(f"{problem}\n" for problem in problems))
        return 1
    sys.stdout.write(f"ready: {', '.join(protocol.get_model_list(address))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
