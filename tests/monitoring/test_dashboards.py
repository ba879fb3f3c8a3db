"""The dashboards are fresh, and everything they read exists in the code that measures it."""

import json
import re
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest

import quire_operator.metrics  # noqa: F401
from quire.reference import pages

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "charts"))

from dashboards import __main__ as dashboards  # noqa: E402
from dashboards import queries  # noqa: E402

BOARDS = {file.stem: json.loads(file.read_text()) for file in queries.FOLDER.glob("*.json")}
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in board["panels"] if panel["type"] != "row"]
RUNBOOKS = {file.stem for file in (REPOSITORY / "docs" / "runbooks").glob("*.md")}
ENDINGS = re.compile(r"_(bucket|count|sum)$")
UNITS = {"s", "reqps", "ops", "percentunit", "short", "bytes"}


def measured() -> set[str]:
    """Names of all series that engine, gateway and operator can show."""
    told = set(re.findall(r"^\| `([\w:]+)` \|", pages()["metrics.md"], re.MULTILINE))
    told |= set(re.findall(r"^# TYPE (\S+)", generate_latest(REGISTRY).decode(), re.MULTILINE))
    return told | {name for name, _ in queries.rules()}


@pytest.mark.parametrize("name", dashboards.texts())
def test_they_are_fresh(name):
    assert (queries.FOLDER / name).read_text() == dashboards.texts()[name], "run `make dashboards`"


@pytest.mark.parametrize(("where", "query"), [*queries.panel_queries(), *queries.rules()])
def test_every_metric_that_is_read_is_measured(where, query):
    names = queries.metrics_of(query)
    assert names, where
    known = measured()
    assert {name for name in names if name not in known and ENDINGS.sub("", name) not in known} == set()


@pytest.mark.parametrize("name", BOARDS)
def test_the_service_level_comes_first(name):
    first = BOARDS[name]["panels"][0]
    assert (first["type"], first["title"]) == ("row", "Service level")


@pytest.mark.parametrize("name", BOARDS)
def test_panels_neither_overlap_nor_share_a_number(name):
    panels = BOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize(
    ("name", "panel"), PANELS, ids=lambda value: value if isinstance(value, str) else value["title"]
)
def test_every_panel_says_what_it_shows_in_which_unit(name, panel):
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    for link in panel.get("links", []):
        assert re.fullmatch(r"\$\{runbooks\}/(\w+)\.md", link["url"])[1] in RUNBOOKS


def test_every_variable_that_is_read_is_defined():
    for board in BOARDS.values():
        defined = {variable["name"] for variable in board["templating"]["list"]}
        read = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]) + json.dumps(board["templating"])))
        assert {name for name in read if not name.startswith("__")} <= defined


def test_every_runbook_is_linked_from_a_panel_or_an_alert_about_the_whole():
    linked = set(re.findall(r"runbooks\}/(\w+)\.md", "".join(map(json.dumps, BOARDS.values()))))
    assert linked == RUNBOOKS
