"""pyproject.toml declares what the packages import, and nothing else."""

import ast
import re
import sys
from pathlib import Path

from llava.files import tomllib

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    "pillow": "PIL",
    "google-cloud-translate": "google",
    "scikit-learn": "sklearn",
    "fonttools": "fontTools",
}
INSTALLED_BY_HAND = {"vllm", "sglang", "xformers", "flash_attn", "comet"}
"""Optional packages that pin their own torch, or need a compiler."""
PART_OF_ANOTHER = {"pydantic_core"}
"""Modules of packages that a declared package brings and documents as its own."""
USED_BY_NAME = {
    "protobuf": "transformers reads SentencePiece models with it",
    "bitsandbytes": "transformers loads quantized weights with it",
    "openpyxl": "imported by name where a sheet is written",
}


def declared_modules():
    """Module -> package, of the dependencies and of the extras for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"]]
    lines += [line for name in extras if name not in ("dev", "browser") for line in extras[name]]
    names = [re.match(r"[\w.-]+", line)[0] for line in lines]
    return {MODULES.get(name, name.replace("-", "_")): name for name in names}


def imported_modules():
    """Third-party modules that `llava` and `lrm_ext` import, also inside functions."""
    found = set()
    for path in [p for d in ("llava", "lrm_ext") for p in (ROOT / d).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"llava", "lrm_ext"}


def test_what_is_imported_is_declared():
    assert (
        imported_modules() - set(declared_modules()) - INSTALLED_BY_HAND - PART_OF_ANOTHER == set()
    )


def test_what_is_declared_is_used():
    unused = set(declared_modules()) - imported_modules()
    assert {declared_modules()[module] for module in unused} - USED_BY_NAME.keys() == set()
