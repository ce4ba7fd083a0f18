"""Imports point one way: `lrm_ext` imports `llava`, and a layer of `lrm_ext` only those below."""

import ast
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
