"""Import paths of the last release."""

import importlib

import pytest

import llava.images
import lrm_ext.demo
import lrm_ext.evaluate.answerer
import lrm_ext.evaluate.reading
import lrm_ext.translate.engines.base


@pytest.mark.parametrize(
    ("old", "name", "module"),
    [
        ("llava.image_file", "open_image", llava.images),
        ("lrm_ext.benchmarks.parse", "parse_yes_no", lrm_ext.evaluate.reading),
        ("lrm_ext.evaluation.answerer", "load_answerer", lrm_ext.evaluate.answerer),
        ("lrm_ext.serve.demo", "run_demo", lrm_ext.demo),
        ("lrm_ext.translation.engines.base", "get_spec", lrm_ext.translate.engines.base),
    ],
)
def test_an_old_path_gives_the_module_that_replaces_it(old, name, module):
    with pytest.warns(DeprecationWarning, match=f"is now {module.__name__}"):
        moved = importlib.reload(importlib.import_module(old))
    assert getattr(moved, name) is getattr(module, name)


def test_engines_of_other_packages_find_what_they_import():
    with pytest.warns(DeprecationWarning):
        old = importlib.reload(importlib.import_module("lrm_ext.translation.engines.base"))
    new = lrm_ext.translate.engines.base
    assert (old.Engine, old.Segment) == (new.TranslationEngine, new.TextSegment)


def test_a_module_that_never_was_is_still_missing():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lrm_ext.evaluation.never_was")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lrm_ext.never_was")
