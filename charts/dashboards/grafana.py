"""The few things of Grafana that our dashboards are made of, and their JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

WIDTH = 24
SCHEMA = 39
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
Thresholds = Sequence[tuple[float | None, str]]
"""Colours from a value on; the first begins at None."""


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture. `unit` is Grafana's name of it (s, reqps, percentunit, short, bytes)."""

    title: str
    queries: Sequence[Query]
    unit: str
    description: str
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    thresholds: Thresholds = ((None, "green"),)
    width: int = 8
    height: int = 7
    is_stacked: bool = False
    ceiling: float | None = None
    """Top of the axis, where there is one: 1 for shares."""
    runbook: str = ""
    """Alert whose page says what to do."""


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    variables: Sequence[dict[str, Any]]
    rows: Sequence[Row]

    def to_object(self) -> dict[str, Any]:
        """As Grafana imports it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["quire"],
            "schemaVersion": SCHEMA,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "",
            "templating": {"list": [DATASOURCE_VARIABLE, *self.variables, RUNBOOKS_VARIABLE]},
            "links": [
                {"type": "dashboards", "title": "Quire", "tags": ["quire"], "keepTime": True, "asDropdown": True}
            ],
            "panels": list(self._panels()),
        }

    def _panels(self) -> Iterator[dict[str, Any]]:
        number, top = 1, 0
        for row in self.rows:
            place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
            yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
            number, top, left, tallest = number + 1, top + 1, 0, 0
            for panel in row.panels:
                if left + panel.width > WIDTH:
                    top, left, tallest = top + tallest, 0, 0
                place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
                yield {"id": number, "gridPos": place, **_panel(panel)}
                number, left, tallest = number + 1, left + panel.width, max(tallest, panel.height)
            top += tallest


DATASOURCE_VARIABLE = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
RUNBOOKS_VARIABLE = {
    "name": "runbooks",
    "type": "constant",
    "label": "Where the runbooks are",
    "hide": 2,
    "query": "docs/runbooks",
    "current": {"text": "docs/runbooks", "value": "docs/runbooks"},
}


def label_variable(name: str, label: str, query: str) -> dict[str, Any]:
    """Values of a label to choose from; all at first."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def choice_variable(name: str, label: str, choices: Sequence[str], chosen: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "custom",
        "query": ",".join(choices),
        "options": [{"text": choice, "value": choice, "selected": choice == chosen} for choice in choices],
        "current": {"text": chosen, "value": chosen},
    }


def _panel(panel: Panel) -> dict[str, Any]:
    is_instant = panel.kind == "table"
    found: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                **({"instant": True, "format": "table"} if is_instant else {}),
            }
            for number, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }
    if is_instant:
        columns = {f"Value #{chr(ord('A') + number)}": query.legend for number, query in enumerate(panel.queries)}
        organize = {"excludeByName": {"Time": True}, "renameByName": columns}
        found["transformations"] = [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    if panel.runbook:
        found["links"] = [{"title": "Runbook", "url": f"${{runbooks}}/{panel.runbook}.md", "targetBlank": True}]
    return found


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"value": value, "color": colour} for value, colour in panel.thresholds]
    found: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.ceiling is not None:
        found |= {"min": 0, "max": panel.ceiling}
    if panel.kind == "timeseries":
        found["custom"] = {
            "fillOpacity": 20 if panel.is_stacked else 0,
            "stacking": {"mode": "normal" if panel.is_stacked else "none"},
            "thresholdsStyle": {"mode": "line" if len(panel.thresholds) > 1 else "off"},
        }
    return found


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    if panel.kind == "table":
        return {"showHeader": True}
    legend = {"displayMode": "list", "placement": "bottom"}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
