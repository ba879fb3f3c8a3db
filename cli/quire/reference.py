"""docs/metrics.md and docs/settings.md, written from the code that they describe.

python -m quire.reference docs, in the root of the repository
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from prometheus_client import REGISTRY, generate_latest

import quire_operator.metrics  # noqa: F401  (fills the registry)
from quire.serve import ENVIRONMENT, setting_help, settings_fields
from quire_gateway.config import settings as gateway_settings
from quire_gateway.fleet import Fleet
from quire_gateway.metrics import Metrics as GatewayMetrics
from quire_runtime.config import EngineConfig
from quire_runtime.engine.messages import EngineReady
from quire_runtime.server.metrics import Exposition, Metrics, registry

RULES = Path(__file__).parents[2] / "charts" / "quire" / "monitoring" / "rules.yaml"
METRICS = """\
# Metrics

Written by `make docs` from the code. Prometheus text at `GET /metrics`, open without a key, on every engine
(`quire serve`, the pod), on the gateway and on the operator.

## Engine

Labels `model_name` and `engine`, and those named below. A series marked *both* is there twice, as `quire:NAME` and as
`vllm:NAME` with vLLM's meaning and labels, so that dashboards, HPA rules and the inference extension's picker that
were made for vLLM work unchanged. Of vLLM's own list these are missing because there is nothing to count:
`engine_sleep_state`, `external_prefix_cache_*`, `mm_cache_*`, `spec_decode_*`; and these are not measured:
`kv_block_*_seconds`, `estimated_*_per_gpu`.

A request's time is cut in three: *queue* from its arrival at the front end until it is first scheduled, *prefill*
until its first token, *decode* until its last; *inference* is prefill and decode. A request with several prompts
counts once a prompt. `num_requests_waiting_by_reason` has `reason`: all wait for `capacity`, none is `deferred`.
`request_success_total` has `finished_reason`: `stop`, `length`, `abort` or `error`.

{engine}

## Gateway

Labels `namespace` and `deployment`, and those named: `code`, `reason`, `cause` or `winner`. Both are empty for
requests that were refused before it was known whose they are. Of `quire_gateway_refusals_total` the `reason` is
`malformed_http` (400), `request_timeout` (408), `body_too_large` (413), `headers_too_large` (431) or
`too_much_buffered` (503) for what was no whole HTTP request, else the [code of the error](http-api.md#errors). Of
`quire_gateway_index_losses_total` the `cause` is what happened to the stream of events: `cut`, `silent` for 3 s, a
`gap`, or `malformed`. The reasons of `quire_gateway_prefix_misses_total` are explained
[here](kv-events.md#why-a-prefix-was-not-cached).

{gateway}

## Operator

At `/metrics` of its port 8080. `namespace` and `deployment` name an LLMDeployment; `state` is `wanted`, `existing` or
`ready`. Followers show the same deployments as the leader: take the `max`.

{operator}

## Prometheus and Grafana

In `charts/quire/monitoring` are recording and alert rules (`rules.yaml`), a scrape configuration (`scrape.yaml`) and
three dashboards (`fleet.json`, `engine.json`, `gateway.json`). The chart installs them as a PrometheusRule, PodMonitors
and ConfigMaps that Grafana's sidecar finds, each behind its switch under `monitoring`. Each alert has a page in
[runbooks](runbooks/):

{alerts}

A test asks a real Prometheus, which scrapes real engines, a gateway and an operator under load, for every panel and
every rule's metrics; that each alert fires where it should, and nowhere else, is held by promtool with its own series.
The Prometheus is given their addresses: PodMonitors are compared with the scrape configuration, and no Prometheus
operator has found pods by them yet.
"""
SETTINGS = """\
# Settings

Written by `make docs` from the code.

## `quire serve`

A flag goes before the environment, that before the YAML file of `--config` (`max-num-seqs: 64`), that before the
default. `quire serve MODEL ... --explain` prints every value and where it came from. The internal key has no flag, so
that no process list shows it.

{serve}

## The gateway

`quire up` starts it by itself. By hand: `python -m quire_gateway --routing-table FILE`. A flag goes before the
environment, that before the default.

{gateway}
"""


def pages() -> dict[str, str]:
    """File name -> content."""
    return {
        "metrics.md": METRICS.format(
            engine=_table(_engine_metrics()),
            gateway=_table(_gateway_metrics()),
            operator=_table(_operator_metrics()),
            alerts=_table(_alerts()),
        ),
        "settings.md": SETTINGS.format(serve=_table(_serve_settings()), gateway=_table(_gateway_settings())),
    }


def _engine_metrics() -> Iterator[tuple[str, ...]]:
    yield "name", "kind", "", "meaning"
    exposition = Exposition(Metrics(), "model")
    exposition.info = EngineReady("revision", 16, 1, 1, 1, "epoch", {"total": 0.0})
    described = list(_described(generate_latest(registry(exposition)).decode()))
    names = {name for name, _, _ in described}
    for name, kind, text in described:
        prefix, _, bare = name.rpartition(":")
        if prefix != "vllm":
            yield f"`{name}`", kind, "both" if f"vllm:{bare}" in names else "", text


def _gateway_metrics() -> Iterator[tuple[str, ...]]:
    yield "name", "kind", "meaning"
    for name, kind, text in _described(GatewayMetrics().render(Fleet(), False).decode()):
        if not name.endswith("_created"):
            yield f"`{name}`", kind, text


def _operator_metrics() -> Iterator[tuple[str, ...]]:
    yield "name", "kind", "meaning"
    for name, kind, text in _described(generate_latest(REGISTRY).decode()):
        if name.startswith("quire_operator_") and not name.endswith("_created"):
            yield f"`{name}`", kind, text


def _alerts() -> Iterator[tuple[str, ...]]:
    yield "alert", "severity", "meaning"
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if name := rule.get("alert"):
                yield f"[{name}](runbooks/{name}.md)", rule["labels"]["severity"], rule["annotations"]["description"]


def _described(exposition: str) -> Iterator[tuple[str, str, str]]:
    """(name, kind, help) of each family in Prometheus text."""
    helps: dict[str, str] = {}
    for line in exposition.splitlines():
        if line.startswith("# HELP "):
            name, _, text = line[7:].partition(" ")
            helps[name] = text
        elif line.startswith("# TYPE "):
            name, _, kind = line[7:].partition(" ")
            yield name, kind, helps[name]


def _serve_settings() -> Iterator[tuple[str, ...]]:
    yield "flag", "of", "meaning"
    for name, field in settings_fields():
        if name != "model":
            flag = f"`--{name.replace('_', '-')}`" if name != "internal_key" else f"`{ENVIRONMENT[name]}`"
            yield flag, "engine" if name in EngineConfig.model_fields else "server", setting_help(name, field)


def _gateway_settings() -> Iterator[tuple[str, ...]]:
    yield "flag", "environment", "default", "meaning"
    for each in gateway_settings():
        default = f"`{each.default}`" if each.default else ""
        yield f"`{each.flag}`", f"`{each.variables[0]}`", default, each.meaning


def _table(rows: Iterator[tuple[str, ...]]) -> str:
    header, *body = rows
    lines = [header, tuple("---" for _ in header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> None:
    folder = Path(sys.argv[1])
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
