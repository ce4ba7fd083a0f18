"""The languages: a registry of data files, one file a language."""

from lrm_ext.languages.registry import (
    Language,
    LocalWords,
    any_language,
    get_language,
    in_language_order,
    language_name,
    list_languages,
)

__all__ = [
    "Language",
    "LocalWords",
    "any_language",
    "get_language",
    "in_language_order",
    "language_name",
    "list_languages",
]
