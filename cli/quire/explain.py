"""`quire explain`: where the gateway would send a prompt now, and why."""

import sys
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.table import Table

from quire.chat import connect, first_model
from quire.gateway_pages import GatewayPages
from quire.up.display import plain_table
from quire_api import wire

Output = Literal["table", "json"]

MODES = {
    "EXACT": "the engines' own events say what they hold",
    "DEGRADED": "events had a gap; the engine's snapshot is awaited",
    "FALLBACK": "the gateway believes what it has sent, no engine has confirmed it",
}

MISSES = {
    "novel": "the rest has not been seen",
    "evicted": "the next block was cached until lately",
    "elsewhere": "another replica has more of it",
    "other_salt": "it was sent under another key or salt, and those never share",
    "other_model": "it was sent to another revision of the model",
    "other_adapter": "it was sent to engines with another adapter",
    "other_block_size": "it was sent to engines with another block size",
    "other_block_format": "the replica's blocks are of a version that this gateway cannot compute",
    "unknown": "the gateway cannot tokenise it",
}


def run_explain(
    prompt: str,
    *,
    url: str,
    model: str,
    system: str,
    is_raw: bool,
    api_key: str,
    internal_key: str,
    output: Output,
    console: Console | None = None,
) -> None:
    """Print the choice for `prompt` (`-` reads it from standard input).

    Raises:
        ServerUnreachable, ServerRefused
    """
    console = console or Console()
    pages = GatewayPages(url, internal_key, api_key)
    text = sys.stdin.read() if prompt == "-" else prompt
    body: dict[str, Any] = {"model": model or first_model(connect(pages.url, api_key))}
    if is_raw:
        body["prompt"] = text
    else:
        opening = [{"role": "system", "content": system}] if system else []
        body["messages"] = [*opening, {"role": "user", "content": text}]
    explanation = pages.ask(wire.RouteExplanation, "/debug/route", body)
    pages.close()
    if output == "json":
        plain = msgspec.json.format(msgspec.json.encode(explanation)).decode()
        console.print(plain, markup=False, highlight=False, soft_wrap=True)
        return
    for line in summary(explanation):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if explanation.replicas:
        console.print()
        console.print(score_table(explanation))


def summary(explanation: wire.RouteExplanation) -> list[str]:
    """What is decided, in sentences."""
    counted = "tokens" if explanation.is_tokenised else "tokens (estimated from its length)"
    lines = [f"prompt    {explanation.prompt_tokens} {counted} for {explanation.namespace}/{explanation.deployment}"]
    if explanation.chosen:
        lines.append(f"goes to   {explanation.chosen} ({explanation.reason}, policy {explanation.policy})")
    else:
        lines.append(f"is held   no replica can take it; {explanation.held} requests are held already")
    if explanation.miss:
        lines.append(f"missing   {explanation.miss}: {MISSES.get(explanation.miss, 'no more of it is cached there')}")
    mode = explanation.index_mode
    lines.append(f"index     {mode}" + (f": {MODES[mode]}" if mode in MODES else ""))
    chosen = next((score for score in explanation.replicas if score.replica == explanation.chosen), None)
    if chosen is not None and chosen.index_problem:
        lines.append(f"          {chosen.index_problem}")
    return lines


def score_table(explanation: wire.RouteExplanation) -> Table:
    """One line for each replica, cheapest first."""
    table = plain_table("REPLICA", "COST", "CACHED", "UNCACHED", "QUEUED", "IN FLIGHT", "", wraps="")
    for score in explanation.replicas:
        remark = score.excluded or ("over the load bound" if score.is_over_bound else "")
        if score.replica == explanation.chosen:
            remark = "chosen"
        is_candidate = score.cost is not None
        table.add_row(
            score.replica,
            f"{score.cost:,.0f}" if score.cost is not None else "-",
            str(score.cached_tokens) if is_candidate else "-",
            str(score.uncached_tokens) if is_candidate else "-",
            str(score.queued_tokens),
            str(score.in_flight),
            remark,
        )
    return table
