"""One version: packages, chart, images, docs and the change log are of the same."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from quire_api.version import __version__
from quire_operator.config import OperatorConfig

ROOT = Path(__file__).parents[2]


def release(root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "charts" / "release.py", *flags], capture_output=True, text=True, check=False
    )


def copied(folder: Path) -> Path:
    """What names the version, in a tree of its own."""
    for pattern in (
        "charts/release.py",
        "charts/quire/Chart.yaml",
        "api/quire_api/version.py",
        "docs/*.md",
        "images/*",
    ):
        for file in ROOT.glob(pattern):
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(file.read_text())
    return folder


def test_every_place_names_the_version_of_the_packages():
    checked = release(ROOT, "--check")
    assert checked.returncode == 0, checked.stderr


def test_packages_take_their_version_from_the_same_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text().count(f'"{__version__}"') == 1


def test_the_operator_starts_engines_and_agents_of_its_own_version_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("QUIRE_OPERATOR_ENGINE_IMAGE", raising=False)
    config = OperatorConfig.from_flags([])
    assert config.engine_image == f"quire/runtime:{__version__}"
    assert config.agent_image == f"quire/agent:{__version__}"


def test_the_newest_section_of_the_change_log_is_of_this_version_or_of_what_comes_after_it():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert __version__ in headings[: 2 if headings[0] == "Unreleased" else 1]


def test_another_version_is_written_everywhere_by_one_command_and_a_place_that_is_left_behind_is_named(tmp_path):
    root = copied(tmp_path)
    assert release(root, "--write", "9.8.7-rc.1").returncode == 0
    assert release(root, "--check").returncode == 0
    chart = yaml.safe_load((root / "charts/quire/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == ("9.8.7-rc.1", "9.8.7-rc.1")
    for file in root.rglob("*"):
        if file.is_file():
            assert not re.search(rf"quire/\S+:{re.escape(__version__)}", file.read_text()), file
    page = root / "docs" / "kubernetes.md"
    page.write_text(page.read_text().replace("quire/agent:9.8.7-rc.1", "quire/agent:0.0.1"))
    left = release(root, "--check")
    assert left.returncode == 1
    assert "docs/kubernetes.md" in left.stderr
    assert "make version" in left.stderr


def test_what_is_no_version_is_told_and_nothing_is_written(tmp_path):
    root = copied(tmp_path)
    for wrong in ("", "latest", "0.3", "0.3.0+build"):
        told = release(root, "--write", wrong)
        assert told.returncode == 2
        assert "write one as 0.3.0" in told.stderr
    assert release(root, "--check").returncode == 0
