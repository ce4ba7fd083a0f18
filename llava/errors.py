"""Defines the errors that a user can fix, and runs entry points that print them.

Their text says what was found, what was expected, where, and what to do. Our own mistakes are plain
assertions. Entry points run in `run_command`, which prints a `UserError` without its
traceback, and what the system refuses (a full disk, a folder without permission) as well.
`RejectedError` and `ExhaustedError` are for code that asks a service and decides about the request.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Flag = tuple[tuple[str, ...], dict[str, Any]]
_STDOUT = 1  # its descriptor


class UserError(ValueError):
    """Base class of all errors that a user can fix."""


class DataError(UserError):
    """Raised for an invalid sample, image or data file."""


class ConfigError(UserError):
    """Raised for an invalid flag, preset or configuration file."""


class CheckpointError(UserError):
    """Raised for a checkpoint that is missing, incomplete or does not fit the model."""


class TemplateError(UserError):
    """Raised for a conversation template that is unknown or does not fit the tokenizer."""


class ServiceError(UserError):
    """Raised if a service cannot be used: the key is refused, the model unknown, or it is down."""


class RejectedError(Exception):
    """Raised if a service refuses this request but may accept others.

    Attributes:
        is_final: The reason is the request itself (its content, its length), so that asking again
            gives the same result.
    """

    def __init__(self, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class ExhaustedError(Exception):
    """Raised if all tries failed for reasons that may pass."""


def refuse(problems: Mapping[str, object]) -> None:
    """Raises the first problem that applies.

    Args:
        problems: Messages, and whether each applies.

    Raises:
        ConfigError: A problem applies.
    """
    for problem, applies in problems.items():
        if applies:
            raise ConfigError(problem)


def is_disk_full(error: OSError) -> bool:
    """Tells whether a disk, a quota or a limit of the process leaves no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException) -> str | None:
    """Returns a message for an error that a user can fix; None for our own mistakes.

    Args:
        error: A `UserError`, or an `OSError` about a file. Libraries derive their own errors from
            the latter, and those of connections name no file.
    """
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError) or isinstance(error, ConnectionError) or not error.strerror:
        return None
    if type(error).__module__ != "builtins":
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    if is_disk_full(error):
        return (
            f"{where}{error.strerror}. What was whole before is kept: make room and run the same "
            "command again"
        )
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{where}{error.strerror}; expected a folder"
    return f"{where}{error.strerror}"


def run_command(main: Callable[[], object], status: int = 2) -> None:
    """Runs an entry point; an error that a user can fix is printed without its traceback.

    Args:
        main: The entry point.
        status: Exit status after such an error. It is 141 if the reader of the output is gone
            (`| head`), as of other tools.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            # the rest of the buffer would be written at exit, and fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
            sys.exit(128 + signal.SIGPIPE)
        text = explain(error)
        if text is None:
            raise
        is_coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        heading = "\x1b[1;31merror:\x1b[0m" if is_coloured else "error:"
        if status == 1:  # Python's status for a text; callers find it in the exception
            sys.exit(f"{heading} {text}")
        sys.stderr.write(f"{heading} {text}\n")
        sys.exit(status)


def run_script(
    action: Callable[[argparse.Namespace], object],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
) -> None:
    """Runs one of LLaVA's scripts; a user's mistake ends it with one line and no traceback.

    Args:
        action: What the script does with its flags.
        parser: Of the command line.
        argv: The command line; None for that of the process.
    """
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run_command(lambda: action(args), status=1)


def script_main(
    description: str, action: Callable[[argparse.Namespace], object], *flags: Flag
) -> Callable[..., None]:
    """Makes the `main(argv=None)` of one of LLaVA's scripts; see `run_script`."""

    def main(argv: Sequence[str] | None = None) -> None:
        """Reads the command line and runs the script."""
        run_script(action, make_parser(description, *flags), argv)

    return main


def flag(*names: str, **options: Any) -> Flag:
    """Describes a flag of `make_parser`; the arguments are those of `add_argument`."""
    return names, options


def make_parser(
    description: str | None, *flags: Flag, prog: str | None = None
) -> argparse.ArgumentParser:
    """Makes the parser of a script from its flags, each made by `flag`."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    for names, options in flags:
        parser.add_argument(*names, **options)
    return parser


def _is_output_closed() -> bool:
    """Tells whether the reader of our output is gone, and not of another process's pipe."""
    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0))


def split_names(texts: list[str]) -> tuple[str, ...]:
    """Splits texts at commas; returns each name once, in order."""
    names = (name.strip() for text in texts for name in text.split(","))
    return tuple(dict.fromkeys(filter(None, names)))
