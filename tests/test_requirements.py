"""The lock for development: all that the tests' extra asks for, at versions that pyproject.toml allows, by hashes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements" / "test.txt").read_text("utf-8")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def stated() -> dict[str, list[str]]:
    """The requirements of each extra; those of the package itself under the empty name."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found, no-redef, unused-ignore]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {"": project["dependencies"]} | project["optional-dependencies"]


def asked(extra: str) -> list[Requirement]:
    """What an extra asks for, with what the extras that it names ask for."""
    found = []
    for requirement in map(Requirement, stated()[extra]):
        own = requirement.name == "mbexport"
        found += [one for name in sorted(requirement.extras) for one in asked(name)] if own else [requirement]
    return found


def locked(python: str, platform: str) -> dict[str, str]:
    """The locked versions by name, for one Python and platform."""
    environment = default_environment() | {
        "python_version": python, "python_full_version": f"{python}.1", "sys_platform": platform,
    }  # fmt: skip
    lines = [Requirement(line) for line in re.findall(r"^(\w[^\\\n]*?) *\\$", LOCK, re.MULTILINE)]
    chosen = [one for one in lines if one.marker is None or one.marker.evaluate(environment)]
    versions = {one.name: str(one.specifier).removeprefix("==") for one in chosen}
    assert len(versions) == len(chosen), "a package is locked twice"
    return versions


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_all_that_tests_need_is_locked(python: str, platform: str) -> None:
    versions = locked(python, platform)
    environment = {"sys_platform": platform, "python_version": python}
    for requirement in [*asked(""), *asked("test")]:
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        if requirement.name == "torch":  # each machine has its own build: the Makefile's TORCH
            assert "torch" not in versions
            continue
        name = requirement.name.lower().replace("_", "-")
        assert name in versions, f"{name} is not locked: make lock"
        assert versions[name] in requirement.specifier, f"{name} is locked at {versions[name]}: make lock"


def test_every_locked_package_has_hashes_and_no_address() -> None:
    blocks = re.split(r"^(?=\w)", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    assert len(blocks) > 100
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in LOCK
    assert not re.search(r"^--(?!hash)", LOCK, re.MULTILINE)  # no index is named, nothing is installed in place
