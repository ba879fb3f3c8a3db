"""`quire top`: deployments and replicas under load, live, from the gateway's and the engines' own measurements."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from quire.chat import ServerUnreachable
from quire.gateway_pages import GatewayPages
from quire.up.display import plain_table
from quire_api import wire

ENGINE_TIMEOUT_S = 2.0
WIDTH_OF_A_FILE = 400
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{.*\})? (?P<value>\S+)")
_NEEDED = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:generation_tokens_total",
}
Samples = Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """Everything at one moment."""

    at: float
    load: wire.GatewayLoad
    report: wire.GatewayReport
    engines: Mapping[str, Samples] = field(default_factory=dict)
    """By replica; without those whose metrics cannot be reached."""


def run_top(*, url: str, internal_key: str, every_s: float, is_once: bool, console: Console | None = None) -> None:
    """Show a picture each `every_s` seconds until Ctrl-C, or one and end.

    Raises:
        ServerUnreachable, ServerRefused
    """
    console = console or Console()
    pages = GatewayPages(url, internal_key)
    picture = look(pages)
    if is_once:
        if not console.is_terminal:
            console.width = WIDTH_OF_A_FILE
        console.print(tables(None, picture))
        return
    try:
        with Live(tables(None, picture), console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                time.sleep(every_s)
                before = picture
                try:
                    picture = look(pages)
                    live.update(tables(before, picture), refresh=True)
                except ServerUnreachable as error:
                    live.update(Group(tables(None, picture), Text(f"\n{error}", "red")), refresh=True)
    except KeyboardInterrupt:
        return


def look(pages: GatewayPages) -> Picture:
    """Ask the gateway, and each engine that it names."""
    report = pages.ask(wire.GatewayReport, "/internal/v1/replicas")
    load = pages.ask(wire.GatewayLoad, "/internal/v1/load")
    engines = {}
    for replica in report.replicas:
        try:
            # The gateway's key is none of an engine's business.
            answer = httpx.get(f"{replica.url}/metrics", timeout=ENGINE_TIMEOUT_S, trust_env=False)
        except (httpx.HTTPError, httpx.InvalidURL):
            continue
        if answer.is_success:
            engines[replica.replica] = samples_of(answer.text)
    return Picture(time.monotonic(), load, report, engines)


def samples_of(exposition: str) -> Samples:
    """The needed metrics of an engine; those with several label sets added up."""
    samples: dict[str, float] = {}
    for line in exposition.splitlines():
        match = _SAMPLE.match(line)
        if match and match["name"] in _NEEDED:
            samples[match["name"]] = samples.get(match["name"], 0.0) + float(match["value"])
    return samples


def tables(before: Picture | None, now: Picture) -> Group:
    """Deployments above, replicas below; rates are over the time since `before`, or since the start without one."""
    return Group(deployment_table(before, now), Text(), replica_table(before, now))


def deployment_table(before: Picture | None, now: Picture) -> Table:
    table = plain_table(
        "DEPLOYMENT", "REPLICAS", "IN FLIGHT", "HELD", "REQ/S", "TTFT p50", "p90", "ITL p50", "p90", "IDLE"
    )
    earlier = {_who(entry): entry for entry in before.load.deployments} if before else {}
    is_same_gateway = before is not None and before.load.gateway == now.load.gateway
    for entry in now.load.deployments:
        replicas = [replica for replica in now.report.replicas if _who(replica) == _who(entry)]
        routable = sum(replica.is_routable and not replica.reason for replica in replicas)
        rate = "-"
        if before is not None and is_same_gateway and _who(entry) in earlier:
            came = entry.requests - earlier[_who(entry)].requests
            rate = f"{came / max(now.at - before.at, 1e-9):.1f}"
        table.add_row(
            entry.deployment,
            f"{routable}/{len(replicas)}",
            str(entry.in_flight),
            Text(str(entry.held), "yellow" if entry.held else ""),
            rate,
            span(entry.ttft_p50_s),
            span(entry.ttft_p90_s),
            span(entry.itl_p50_s),
            span(entry.itl_p90_s),
            span(entry.idle_s) if entry.idle_s else "",
        )
    return table


def replica_table(before: Picture | None, now: Picture) -> Table:
    table = plain_table(
        "REPLICA", "STATE", "IN FLIGHT", "QUEUED", "RUNNING", "WAITING", "KV USE", "HIT RATE", "TOKENS/S"
    )
    for replica in sorted(now.report.replicas, key=lambda replica: replica.replica):
        engine = now.engines.get(replica.replica)
        earlier = before.engines.get(replica.replica) if before else None
        state = (replica.reason.split(":")[0].lower() or "serving") if replica.is_routable or replica.reason else "new"
        table.add_row(
            replica.replica,
            Text(state, "green" if state == "serving" else "yellow"),
            str(replica.in_flight),
            f"{replica.queued_tokens:,}",
            *(_engine_cells(earlier, engine, now.at - before.at if before else 0.0) if engine else ["-"] * 5),
        )
    return table


def span(seconds: float | None) -> str:
    """A time to read at a glance: 850us, 12ms, 1.25s, 3m."""
    if seconds is None:
        return "-"
    for limit, factor, unit in ((0.001, 1e6, "us"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g}{unit}"
    return f"{seconds / 60:.0f}m"


def _engine_cells(before: Samples | None, now: Samples, passed_s: float) -> list[str]:
    def since(name: str) -> float:
        was = before.get(name, 0.0) if before else 0.0
        # A smaller counter is that of a new process.
        return now.get(name, 0.0) - (was if was <= now.get(name, 0.0) else 0.0)

    looked_up = since("vllm:prefix_cache_queries_total")
    hits = since("vllm:prefix_cache_hits_total")
    return [
        f"{now.get('vllm:num_requests_running', 0):.0f}",
        f"{now.get('vllm:num_requests_waiting', 0):.0f}",
        f"{now.get('vllm:kv_cache_usage_perc', 0):.1%}",
        f"{hits / looked_up:.0%}" if looked_up else "-",
        f"{since('vllm:generation_tokens_total') / passed_s:,.0f}" if before and passed_s else "-",
    ]


def _who(entry: wire.DeploymentLoad | wire.ReplicaReport) -> tuple[str, str]:
    return entry.namespace, entry.deployment
