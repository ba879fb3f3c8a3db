"""Every query of the written dashboards and rules, as Prometheus takes it: for tests that ask a running one."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "quire" / "monitoring"
GRAFANA_WORDS = {"$__rate_interval": "1m", "$__range": "5m", "$ttft_target": "2.5"}
_SELECTOR = re.compile(r"([a-zA-Z_][\w:]*)\s*(\{[^}]*\})?(?=[\s\[)]|$)")
_METRIC = re.compile(r"^(?:quire|vllm|deployment|process)[_:]")


def panel_queries() -> Iterator[tuple[str, str]]:
    """(dashboard / panel, query), every variable at All."""
    for file in sorted(FOLDER.glob("*.json")):
        board = json.loads(file.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"]
                for word, value in GRAFANA_WORDS.items():
                    query = query.replace(word, value)
                yield f"{board['title']} / {panel['title']}", re.sub(r"\$\w+", ".*", query)


def rules() -> Iterator[tuple[str, str]]:
    """(name of the record or alert, query)."""
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule.get("record") or rule["alert"], rule["expr"]


def metrics_of(query: str) -> set[str]:
    """Names of the metrics that a query reads."""
    bare = re.sub(r'"[^"]*"', '""', query)
    return {name for name, _ in _SELECTOR.findall(bare) if _METRIC.match(name)}
