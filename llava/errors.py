"""Errors that a user can mend.

Their text says what was found, what was expected, where, and what to do. Mistakes of our own are
plain assertions. Entry points print a `UserError` without its traceback.
"""


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
