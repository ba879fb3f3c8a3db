"""What the pages and examples say is what the code does."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from fastapi import APIRouter
from typer.main import get_command

from quire import reference
from quire.app import app
from quire.serve import settings_fields
from quire_api import wire
from quire_gateway.routes import _TABLE
from quire_runtime import server
from quire_runtime.engine.process import REJECTION_CODES

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "http-api.md").read_text()
NO_ROUTES = APIRouter()
SOURCES = [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "runtime/quire_runtime/server").glob("*.py")]


@pytest.mark.parametrize("page", reference.pages())
def test_generated_pages_are_fresh(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == reference.pages()[page], "run `make docs` and commit the result"


def test_every_path_is_in_the_page() -> None:
    served = {
        (method, route.path.replace(":path}", "}"))
        for room in pkgutil.iter_modules(server.__path__)
        for route in getattr(importlib.import_module(f"{server.__name__}.{room.name}"), "router", NO_ROUTES).routes
        for method in route.methods
    }
    served |= {(method, path) for path, (methods, _) in _TABLE.items() for method in methods}
    told = set(re.findall(r"(GET|POST) (/[\w/{}.-]*)", API))
    assert {entry for entry in served if entry[0] != "HEAD"} == told


def test_every_header_is_in_the_page() -> None:
    headers = {value for name, value in vars(wire).items() if name.startswith("HEADER_")}
    assert headers <= set(re.findall(r"`(x-[\w-]+)`", API))


def test_every_error_code_is_in_the_page() -> None:
    codes = set(REJECTION_CODES.values())
    for source in SOURCES:
        text = source.read_text()
        codes |= set(re.findall(r'Refusal\(\s*\d+,\s*"(\w+)"', text))
        codes |= set(re.findall(r'\bcode="(\w+)"', text))
        codes |= set(re.findall(r'NotReady\([^"]*"[^"]*",\s*"(\w+)"', text))
    assert len(codes) > 25
    assert codes <= set(re.findall(r"`(\w+)`", API))


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
)
def test_commands_in_the_pages_exist(page: str) -> None:
    commands = get_command(app).commands
    flags = {
        name: {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        for name, command in commands.items()
    }
    flags["serve"] = {f"--{name.replace('_', '-')}" for name, _ in settings_fields()} | {
        "--explain",
        "--config",
        "--help",
    }
    for name, rest in re.findall(r"(?:\$ |`)(?:\.venv/bin/)?quire ([a-z]+)([^`\n|#]*)", (ROOT / page).read_text()):
        assert name in commands, f"{page} names `quire {name}`"
        for flag in re.findall(r"(?<!\S)--[\w-]+", rest):
            assert flag in flags[name] | {"--help"}, f"{page}: quire {name} has no {flag}"


def test_every_command_shows_an_example() -> None:
    for name, command in get_command(app).commands.items():
        if name != "serve":
            assert f"quire {name}" in (command.epilog or ""), name


def test_every_setting_says_what_it_is_for() -> None:
    silent = [name for name, field in settings_fields() if not field.description]
    assert silent in ([], ["uvicorn_log_level"])
