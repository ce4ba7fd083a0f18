"""Module paths, public names, signatures and flags that LLaVA's users rely on.

The table is `tests/golden/llava/contract.json`. A list after a name holds its first parameters:
`name`, or `name=<default as JSON>`; `**` means that further keywords are accepted.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import re
import types
import typing
from pathlib import Path

import pytest

from llava import constants
from llava.train import train as train_module

ROOT = Path(__file__).parents[2]
CONTRACT = json.loads((ROOT / "tests/golden/llava/contract.json").read_text(encoding="utf-8"))
MODULES, PROGRAMS = CONTRACT["modules"], CONTRACT["programs"]


def look_up(module, dotted):
    found = importlib.import_module(module)
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_has_its_public_names(module):
    for name, parameters in MODULES[module].items():
        found = look_up(module, name)
        if parameters is not None:
            check_signature(f"{module}.{name}", inspect.signature(found), parameters)


def check_signature(where, signature, expected):
    """The expected parameters come first, in order; what follows them has a default."""
    found = list(signature.parameters.values())
    keywords = [p for p in found if p.kind is p.VAR_KEYWORD]
    named = [p for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if expected[-1:] == ["**"]:
        assert keywords, f"{where} takes no further keywords"
        expected = expected[:-1]
    for parameter, text in zip(named, expected, strict=False):
        name, has_default, default = text.partition("=")
        assert parameter.name == name, where
        if has_default:
            assert parameter.default == json.loads(default), f"{where}({name})"
    assert len(named) >= len(expected), f"{where}: {signature}"
    for parameter in named[len(expected) :]:
        assert parameter.default is not parameter.empty, f"{where}: {parameter} has no default"


def test_what_is_not_there_is_documented():
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    for name in CONTRACT["not_supported"]:
        assert importlib.util.find_spec(name) is None, f"{name} exists: move it to `modules`"
        assert name in text


def test_every_module_of_the_package_imports():
    # by file: the folders without __init__.py are namespace packages, which pkgutil leaves out
    files = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "llava").rglob("*.py")]
    names = [".".join(path.parts) for path in files if path.name != "__init__"]
    assert len(names) > 50
    for name in sorted(names):
        importlib.import_module(name)


def test_constants():
    found = {name: getattr(constants, name) for name in CONTRACT["constants"]}
    assert found == CONTRACT["constants"]


def plain_type(annotation):
    """`str` for `str`, `Optional[str]` and `str | None`."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    return annotation.__name__


@pytest.mark.parametrize("kind", CONTRACT["training"])
def test_training_flags(kind):
    arguments = getattr(train_module, kind)
    hints = typing.get_type_hints(arguments)
    fields = {field.name: field for field in dataclasses.fields(arguments)}
    for name, (wanted_type, default) in CONTRACT["training"][kind].items():
        assert name in fields, f"--{name} is missing"
        assert [plain_type(hints[name]), fields[name].default] == [wanted_type, default], name


class Captured(Exception):
    def __init__(self, parser):
        super().__init__()
        self.parser = parser


def parser_of(module, entry, monkeypatch):
    """The parser that a program really uses."""

    def capture(self, *args, **kwargs):
        raise Captured(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", capture)
    with pytest.raises(Captured) as caught:
        getattr(importlib.import_module(module), entry)([])
    monkeypatch.undo()
    return caught.value.parser


@pytest.mark.parametrize("module", PROGRAMS)
def test_program_flags(module, monkeypatch):
    program = PROGRAMS[module]
    parser = parser_of(module, program["entry"], monkeypatch)
    actions = {option: a for a in parser._actions for option in a.option_strings}
    for flag, (kind, default) in program["flags"].items():
        assert flag in actions, f"{module} {flag} is missing"
        action = actions[flag]
        is_switch = isinstance(action, argparse._StoreTrueAction)
        found = "switch" if is_switch else (action.type or str).__name__
        if kind == "required":
            assert action.required and action.default is None, flag
        else:
            assert [found, action.default] == [kind, default], f"{module} {flag}"
    for short, full in program.get("abbreviations", {}).items():
        matches = {a.option_strings[-1] for o, a in actions.items() if o.startswith(short)}
        assert matches == {full}, f"{module} {short} is ambiguous"


def test_unknown_flags_are_errors(monkeypatch, capsys):
    for module, program in PROGRAMS.items():
        parser = parser_of(module, program["entry"], monkeypatch)
        needed = [[a.option_strings[0], "x"] for a in parser._actions if a.required]
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([*sum(needed, []), "--no-such-flag", "1"])
        assert stopped.value.code == 2, module
        assert "unrecognized arguments: --no-such-flag" in capsys.readouterr().err, module


def test_deepspeed_files():
    files = {name: json.loads((ROOT / "scripts" / f"{name}.json").read_text())
             for name in ("zero2", "zero3", "zero3_offload")}  # fmt: skip
    for name, content in files.items():
        zero = content["zero_optimization"]
        assert zero["stage"] == (2 if name == "zero2" else 3), name
        assert zero["overlap_comm"] and zero["contiguous_gradients"], name
        assert content["fp16"]["enabled"] == content["bf16"]["enabled"] == "auto", name
        for key in ("train_micro_batch_size_per_gpu", "train_batch_size"):
            assert content[key] == content["gradient_accumulation_steps"] == "auto", name
        assert zero.get("stage3_gather_16bit_weights_on_model_save", False) == (name != "zero2")
    for part in ("offload_optimizer", "offload_param"):
        place = files["zero3_offload"]["zero_optimization"][part]
        assert place["device"] == "cpu" and place["pin_memory"], part


def test_the_package_uses_no_banned_import():
    """`llava` knows nothing of `lrm_ext`; a checkpoint never runs code."""
    for path in (ROOT / "llava").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "lrm_ext" for name in names), path
        assert not re.search(r"weights_only\s*=\s*False|trust_remote_code\s*=\s*True", text), path
