"""Engines by name, other people's too, and what the command line shows of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import DistributionFinder, PathDistribution
from pathlib import Path

import pytest
from fake_chat import NoLedger
from fake_engine import FakeEngine
from typer.testing import CliRunner

from llava.errors import ConfigError
from lrm_ext.cli import app
from lrm_ext.corpus.store import Corpus
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import (
    EngineSpec,
    TranslationEngine,
    build_engine,
    describe_options,
    engine_names,
    engines_of_other_packages,
    get_spec,
    parse_options,
    split_options,
)


@dataclass(frozen=True)
class MirrorOptions:
    """Options of the engine.

    Attributes:
        mark: What it puts around a text,
            on both sides.
    """

    mark: str = "*"


def build_mirror(
    options: MirrorOptions, source: str, target: str, ledger: Cache
) -> TranslationEngine:
    return FakeEngine(lambda text: f"{options.mark}{text}{options.mark}", name="mirror")


MIRROR = EngineSpec(
    name="mirror",
    summary="somebody's own",
    licence="theirs",
    cost="nothing",
    options=MirrorOptions,
    build=build_mirror,
    languages=lambda: ("cs", "hr"),
)
NOT_A_SPEC = "text"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with entry points, found as an installed one is."""
    folder = tmp_path / "their_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[lrm_llava.engines]\n"
        "mirror = test_engine_registry:MIRROR\n"
        "broken = no_such_module_at_all:SPEC\n"
        "odd = test_engine_registry:NOT_A_SPEC\n"
        "openai = test_engine_registry:MIRROR\n"
    )

    class Finder(DistributionFinder):
        def find_distributions(self, context: object = None) -> Iterator[PathDistribution]:
            yield PathDistribution(folder)

        def find_spec(self, *args: object) -> None:
            return None

    engines_of_other_packages.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
        yield
    engines_of_other_packages.cache_clear()


def lrm(*words: str, columns: int = 100) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": str(columns)})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_another_package_s_engine_translates(make_corpus, package, tmp_path: Path) -> None:
    record = {
        "id": "a",
        "conversations": [
            {"from": "human", "value": "What is there?"},
            {"from": "gpt", "value": "There is a dog."},
        ],
    }
    corpus = make_corpus([record])
    lrm("translate", str(corpus), "--to", "cs", "--engine", "mirror", "-o", "mark=~", "--no-check")
    turns = Corpus.open(corpus).turns("cs", 0)
    assert turns is not None and [t.text for t in turns] == [
        "~What is there?~",
        "~There is a dog.~",
    ]


def test_another_package_s_engine_is_listed_and_ours_come_first(package) -> None:
    assert engine_names()[0] == "memory" and engine_names()[-3:] == ("broken", "mirror", "odd")
    assert get_spec("openai").licence != "theirs"
    with pytest.raises(ConfigError, match="'broken'.*cannot be loaded.*no_such_module_at_all"):
        get_spec("broken")
    with pytest.raises(ConfigError, match="entry point .* is str, expected an EngineSpec"):
        get_spec("odd")
    shown = lrm("translate", "--list", "--engine", "mirror")
    assert "somebody's own" in shown and "What it puts around a text, on both sides." in shown
    listed = lrm("translate", "--list")
    assert "theirs" in listed and "cannot be loaded" in listed


def test_the_list_shows_languages_licence_and_cost_at_100_columns() -> None:
    listed = lrm("translate", "--list")
    assert max(map(len, listed.splitlines())) <= 100
    assert "…" not in listed
    for name in engine_names():
        spec = get_spec(name)
        assert f"│ {name} " in listed
        assert spec.licence and spec.cost and spec.languages()


@pytest.mark.parametrize("name", engine_names())
def test_every_option_is_explained(name: str) -> None:
    for option, default, meaning in describe_options(get_spec(name)):
        assert meaning.rstrip('"').endswith(".") and len(meaning) > 8, f"{name}.{option}"
        assert default != "must be given" or name == "openai"
    shown = lrm("translate", "--list", "--engine", name).partition(" needs: ")[0]
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("name", ["nllb", "m2m100", "madlad", "opus-mt", "google", "deepl"])
def test_engines_for_all_our_languages(name: str) -> None:
    assert set(get_spec(name).languages()) >= set("cs de es fr hr it ro ru zh".split())


def test_options_go_to_the_engines_that_have_them() -> None:
    found = split_options(["concurrency=3", "deepl.formality=more"], ["deepl", "openai"])
    assert found == {
        "deepl": {"concurrency": "3", "formality": "more"},
        "openai": {"concurrency": "3"},
    }
    with pytest.raises(ConfigError, match="no engine has it"):
        split_options(["beam=3"], ["deepl", "nllb"])


@dataclass(frozen=True)
class FolderOptions:
    folder: Path
    name: str


def test_options_of_another_package_may_be_needed_and_of_any_type() -> None:
    spec = replace(MIRROR, options=FolderOptions)
    with pytest.raises(ConfigError, match="needs --option folder=..., --option name=...\\.$"):
        parse_options(spec, {})
    found = parse_options(spec, {"folder": "a/b", "name": "c"})
    assert found == FolderOptions(Path("a/b"), "c")


def test_what_does_not_exist_is_said() -> None:
    with pytest.raises(ConfigError, match="unknown engine 'babel'; choose from: memory, "):
        build_engine("babel", {}, "cs", NoLedger())
    with pytest.raises(ConfigError, match="does not translate into 'cs'; it has: fr"):
        build_engine("apertium", {}, "cs", NoLedger())
    with pytest.raises(ConfigError, match="concurrency is 'many', expected int"):
        build_engine("deepl", {"concurrency": "many"}, "cs", NoLedger())
