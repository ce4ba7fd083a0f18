"""constraints.txt pins what pyproject.toml asks for."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llava.files import load_toml

ROOT = Path(__file__).parents[2]
# Optional CUDA packages: which version fits depends on the machine.
UNPINNED = {"liger-kernel", "bitsandbytes"}


def direct_requirements() -> list[Requirement]:
    project = load_toml(ROOT / "pyproject.toml")["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in sum(extras, project["dependencies"])]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_every_direct_requirement_has_one_fitting_pin(python: str) -> None:
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                name = canonicalize_name(pin.name)
                assert name not in pins, f"{name} is pinned twice for Python {python}"
                (specifier,) = pin.specifier
                assert specifier.operator == "=="
                pins[name] = specifier.version
    for requirement in direct_requirements():
        name = canonicalize_name(requirement.name)
        if name not in UNPINNED:
            assert name in pins, f"constraints.txt has no {name}"
            assert requirement.specifier.contains(pins[name]), f"{requirement}: {pins[name]}"
