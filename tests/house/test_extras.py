"""Each component runs with only its own extra: what the others bring is blocked, every module imported."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {
    "pydantic-settings": "pydantic_settings",
    "prometheus-client": "prometheus_client",
    "pyyaml": "yaml",
}
BORNE_BY = {"huggingface_hub": {"httpx", "tqdm", "yaml"}, "kopf": {"httpx", "yaml"}, "typer": {"rich"}}
"""What a distribution brings along by itself, of those that other extras name."""

COMPONENTS = [
    ("", ["quire_api"]),
    ("text", ["quire_text"]),
    ("agent", ["quire_runtime.agent"]),
    ("gateway", ["quire_gateway"]),
    ("operator", ["quire_operator"]),
]
PROGRAM = """
import importlib, pkgutil, sys
blocked, packages = set(sys.argv[1].split(",")), sys.argv[2:]

class Installed:
    # What is blocked is not found, as if it were not installed.
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *more):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, *more)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Installed(finder) for finder in sys.meta_path]
for package in packages:
    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(module.__path__, package + "."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)
"""


def modules(extra: str) -> set[str]:
    """Top-level modules that `quire[extra]` names, those of the extras it includes too."""
    found = set()
    requirements = PROJECT["dependencies"] if not extra else PROJECT["optional-dependencies"][extra]
    for requirement in requirements:
        name = re.match(r"[\w-]+", requirement)[0]
        if name == "quire":
            found |= set().union(*(modules(part) for part in re.search(r"\[(.*)\]", requirement)[1].split(",")))
        else:
            module = IMPORTED_AS.get(name, name.replace("-", "_"))
            found |= {module, *BORNE_BY.get(module, ())}
    return found


@pytest.mark.parametrize(("extra", "packages"), COMPONENTS, ids=[extra or "none" for extra, _ in COMPONENTS])
def test_a_component_needs_only_its_extra(extra: str, packages: list[str]) -> None:
    everything = modules("dev") | {"transformers", "accelerate"}
    blocked = everything - modules("") - (modules(extra) if extra else set())
    assert "torch" in blocked
    ran = subprocess.run([sys.executable, "-c", PROGRAM, ",".join(blocked), *packages], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_decisions_need_nothing_but_the_contract() -> None:
    blocked = modules("dev") - modules("")
    program = PROGRAM + "\nimport quire_operator.decide, quire_operator.resource, quire_operator.conditions\n"
    ran = subprocess.run([sys.executable, "-c", program, ",".join(blocked)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_the_command_starts_with_only_the_extra_cli() -> None:
    blocked = modules("dev") - modules("") - modules("cli")
    program = PROGRAM + "\nfrom quire.app import app\nimport quire.chat, quire.demo, quire.status\n"
    ran = subprocess.run([sys.executable, "-c", program, ",".join(blocked)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
