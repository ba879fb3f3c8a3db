"""What is installed and built is of known versions, from wherever a package manager is told to look."""

import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PINNED = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split())
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
BACKEND_NEEDS = {"editables", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers"}


def name(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")


def test_every_requirement_and_the_build_backend_with_all_it_needs_are_pinned():
    wanted = {name(each) for each in (*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"])}
    wanted |= {name(each) for extra in PROJECT["project"]["optional-dependencies"].values() for each in extra}
    assert (wanted | BACKEND_NEEDS) - {"quire"} - PINNED.keys() == set()


def test_no_lock_file_says_where_to_download_from():
    locks = [REPOSITORY / "constraints.txt", *(REPOSITORY / "e2e" / "cluster" / "go").glob("*/go.*")]
    assert len(locks) > 10
    assert [str(lock) for lock in locks if "://" in lock.read_text()] == []
