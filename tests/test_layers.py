"""Imports point one way: `lrm_ext` imports `llava`, and a layer of `lrm_ext` only those below."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    {"languages"},
    {"instructions", "corpus", "emoji"},
    {"mixture", "translate"},
    {"training", "evaluate"},
    {"report"},
    {"export", "plan", "demo", "vocabulary", "new_language"},
    {"cli"},
)
"""Packages and modules of `lrm_ext`, lowest first; those of one layer may import each other."""


LIGHT = (
    "llava",
    "lrm_ext.cli",
    "lrm_ext.demo",
    "lrm_ext.evaluate.runner",
    "lrm_ext.report.evaluation",
    "lrm_ext.report.training",
    "llava.serve.controller",
    "llava.serve.openai_api",
)
"""What a user waits for, and what runs beside a worker: they load no model."""


def imports(package):
    """`(file, module)` for every import below a package, also inside functions."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            yield from ((path.relative_to(ROOT).as_posix(), module) for module in modules)


def test_llava_never_imports_lrm_ext():
    assert [found for found in imports("llava") if found[1].split(".")[0] == "lrm_ext"] == []


def test_layers_of_lrm_ext_point_one_way():
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    upward = set()
    for path, module in imports("lrm_ext"):
        # commands are the command line, which may import everything
        if module.startswith("lrm_ext.") and not path.endswith("commands.py"):
            package, imported = path.split("/")[1].removesuffix(".py"), module.split(".")[1]
            if height[imported] > height[package]:
                upward.add((package, imported))
    assert upward == set(), "imports that point upwards"


def test_what_loads_no_model_imports_no_torch():
    """Torch and transformers take seconds and 200 MiB; gradio is for the page alone."""
    program = f"""
import importlib, sys
heavy = {{"torch", "transformers", "gradio"}}
for module in {LIGHT}:
    importlib.import_module(module)
    print(module, sorted(heavy & sys.modules.keys()))
import llava.serve.gradio_web_server
print("page", sorted(heavy & sys.modules.keys()))
"""
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    assert found == [*(f"{module} []" for module in LIGHT), "page ['gradio']"]
