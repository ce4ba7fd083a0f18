"""Errors that a user can mend.

Their text says what was found, what was expected, where, and what to do. Mistakes of our own are
plain assertions. Entry points run in `run_command`, which prints a `UserError` without its
traceback, and what the system refuses (a full disk, a folder without permission) as well.
`RejectedError` and `ExhaustedError` are for whoever asks a service and decides what becomes of the
request.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

Flag = tuple[tuple[str, ...], dict[str, Any]]
_STDOUT = 1  # its descriptor


class UserError(ValueError):
    """Base of all errors that a user can mend."""


class DataError(UserError):
    """A sample, a picture or a data file is not as it must be."""


class ConfigError(UserError):
    """A flag, a preset or a configuration file is not as it must be."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or does not fit the model."""


class TemplateError(UserError):
    """A conversation template is unknown or does not fit the tokenizer."""


class ServiceError(UserError):
    """A service cannot be used: it refuses the key, does not know the model, or is down."""


class RejectedError(Exception):
    """A service refuses this request and may accept others.

    Attributes:
        is_final: The reason lies in what is asked (its content, its length), so that asking again
            gives the same.
    """

    def __init__(self, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class ExhaustedError(Exception):
    """All tries failed for reasons that may pass."""


def is_disk_full(error: OSError) -> bool:
    """Whether a disk, a quota or a limit of the process leaves no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException) -> str | None:
    """Say in words what a user can mend; None for a mistake of our own.

    Args:
        error: A `UserError`, or an `OSError` about a file. Libraries derive their own errors from
            the latter, and those of connections name nobody.
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
    """Run an entry point; an error that a user can mend is printed without its traceback.

    Args:
        main: The entry point.
        status: Exit status after such an error. It is 141 where nobody reads the output any more
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
            # what is left in the buffer would be written, and fail, at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
            sys.exit(128 + signal.SIGPIPE)
        text = explain(error)
        if text is None:
            raise
        is_coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        heading = "\x1b[1;31merror:\x1b[0m" if is_coloured else "error:"
        if status == 1:  # what Python makes of a text; callers find it in the exception
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


def flag(*names: str, **options: Any) -> Flag:
    """Describes a flag of `make_main`; the arguments are those of `ArgumentParser.add_argument`."""
    return names, options


def make_main(
    description: str, action: Callable[[argparse.Namespace], object], *flags: Flag
) -> Callable[[Sequence[str] | None], None]:
    """Makes the `main` of one of LLaVA's scripts, which takes a command line; see `run_script`.

    Args:
        description: What `--help` says of it.
        action: What the script does with its flags.
        flags: Made by `flag`.
    """

    def main(argv: Sequence[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=description)
        for names, options in flags:
            parser.add_argument(*names, **options)
        run_script(action, parser, argv)

    return main


def _is_output_closed() -> bool:
    """Whether the reader of the output is gone; a broken pipe to another process is an error."""
    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0))
