"""`quire bench URL`: load on any OpenAI endpoint, and how it held up.

Closed loop: N clients that each ask again when they are answered. Open loop: requests come at random (a Poisson
process) whatever the server does, as users do; a request's times count from when it was due, so that a server that
stalls cannot hide it by being asked less.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Literal

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from quire.address import base_address
from quire.chat import connect, first_model
from quire.main import INTERRUPTED
from quire.up.display import plain_table
from quire_api.errors import UserError

Api = Literal["chat", "completions"]
_TEXT = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over"
)
WORDS = _TEXT.split()
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_BAR = 40
_BINS = 12


class NothingMeasured(UserError):
    """No request was answered."""


class NotWritable(UserError):
    """The file for the figures cannot be written."""


@dataclass(frozen=True)
class Plan:
    """What is asked of the endpoint."""

    url: str
    model: str = ""
    api: Api = "chat"
    requests: int = 100
    concurrency: int = 8
    """Clients of the closed loop."""
    rate: float | None = None
    """Requests a second; makes it an open loop."""
    input_words: int = 128
    shared_words: int = 0
    """Of these, words that every prompt begins with."""
    output_tokens: int = 64
    temperature: float = 0.0
    ignore_eos: bool = False
    """Sent where set: not every endpoint knows it."""
    seed: int = 0
    timeout_s: float = 600.0

    def prompts(self) -> list[str]:
        """One prompt a request; the same for the same seed."""
        rng = random.Random(self.seed)
        shared = rng.choices(WORDS, k=min(self.shared_words, self.input_words))
        own = self.input_words - len(shared)
        return [" ".join([*shared, *rng.choices(WORDS, k=own)]) for _ in range(self.requests)]

    def due(self) -> list[float]:
        """When each request of the open loop comes, in seconds from the start."""
        rng, at, times = random.Random(self.seed + 1), 0.0, []
        for _ in range(self.requests):
            times.append(at)
            at += rng.expovariate(self.rate or 1.0)
        return times


@dataclass
class Sample:
    """One request, in seconds from when it was due."""

    due_s: float
    ttft_s: float | None = None
    total_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    """Between events of the stream."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    says: str = ""
    """The server's sentence about the error."""


def run_bench(
    plan: Plan, *, key: str = "", json_file: str = "", has_plot: bool = False, console: Console | None = None
) -> None:
    """Measure, print the table, and write the JSON to a file (`-`: print it instead of the table).

    Raises:
        ServerUnreachable, ServerRefused: nothing answers, or no model is served.
        NothingMeasured: every request failed.
        NotWritable: told before anything is sent.
        SystemExit: Ctrl-C came; what was measured until then is told first.
    """
    console = console or Console()
    file = Path(json_file) if json_file not in ("", "-") else None
    if file is not None:
        _check_writable(file)
    if not plan.model:
        plan = Plan(**{**asdict(plan), "model": first_model(connect(plan.url, key))})
    samples, passed_s = asyncio.run(measure(plan, key, console))
    figures = figures_of(plan, samples, passed_s)
    if json_file == "-":
        console.print(json.dumps(figures, indent=1), markup=False, highlight=False, soft_wrap=True)
    else:
        _print(console, figures, samples, has_plot)
        if file is not None:
            file.write_text(json.dumps(figures, indent=1) + "\n")
    if all(sample.error for sample in samples):
        why = Counter(sample.error for sample in samples).most_common(1)[0][0] if samples else "none was sent"
        hint = f". Is a server at {plan.url}? Start one, or name its address." if why == "ConnectError" else ""
        raise NothingMeasured(f"no request was answered: {_with_sentence(why, samples)}{hint}")
    if len(samples) < plan.requests:
        sys.exit(INTERRUPTED)


def _with_sentence(error: str, samples: Sequence[Sample]) -> str:
    """The error, and what the server said when it came first."""
    says = next((sample.says for sample in samples if sample.error == error), "")
    return f"{error}: {says}" if says else error


def _check_writable(file: Path) -> None:
    try:
        with file.open("a"):
            pass
    except OSError as error:
        raise NotWritable(f"{file} cannot be written: {error.strerror}. Give another file with --json.") from None


async def measure(plan: Plan, key: str, console: Console) -> tuple[list[Sample], float]:
    """Send the plan's requests; the samples, and how long it took from the first to the last answer."""
    samples: list[Sample] = []
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    began = time.perf_counter()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{plan.model} at {plan.url}", total=plan.requests)
        async with httpx.AsyncClient(headers=headers, timeout=plan.timeout_s, limits=limits, trust_env=False) as http:

            async def one(prompt: str, due_s: float) -> None:
                samples.append(await _ask(http, plan, prompt, began, due_s))
                progress.advance(bar)

            try:
                if plan.rate:
                    await _open_loop(plan, one, began)
                else:
                    await _closed_loop(plan, one, began)
            except asyncio.CancelledError:
                console.print("stopped; this is what was measured until now")
    return samples, time.perf_counter() - began


async def _open_loop(plan: Plan, one: Any, began: float) -> None:
    async with asyncio.TaskGroup() as group:
        for prompt, due_s in zip(plan.prompts(), plan.due(), strict=True):
            await asyncio.sleep(max(0.0, began + due_s - time.perf_counter()))
            group.create_task(one(prompt, due_s))


async def _closed_loop(plan: Plan, one: Any, began: float) -> None:
    waiting = iter(plan.prompts())

    async def client() -> None:
        for prompt in waiting:
            await one(prompt, time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(plan.concurrency, plan.requests)):
            group.create_task(client())


async def _ask(http: httpx.AsyncClient, plan: Plan, prompt: str, began: float, due_s: float) -> Sample:
    sample = Sample(due_s)
    body: dict[str, Any] = {
        "model": plan.model,
        "max_tokens": plan.output_tokens,
        "temperature": plan.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= {"messages": [{"role": "user", "content": prompt}]} if plan.api == "chat" else {"prompt": prompt}
    if plan.ignore_eos:
        body["ignore_eos"] = True
    path = "/v1/chat/completions" if plan.api == "chat" else "/v1/completions"
    pieces, last = 0, 0.0
    try:
        async with http.stream("POST", plan.url + path, json=body) as answer:
            if answer.status_code != 200:
                sample.error, sample.says = _refusal(answer.status_code, await answer.aread())
            async for event in _events(answer):
                now = time.perf_counter() - began - due_s
                if "error" in event:
                    sample.error = f"in mid-stream: {event['error'].get('message', event['error'])}"
                    break
                if usage := event.get("usage"):
                    sample.prompt_tokens = usage.get("prompt_tokens") or 0
                    sample.output_tokens = usage.get("completion_tokens") or 0
                    sample.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                if not _has_text(event):
                    continue
                pieces += 1
                if sample.ttft_s is None:
                    sample.ttft_s = now
                else:
                    sample.gaps_s.append(now - last)
                last = now
    except httpx.HTTPError as error:
        sample.error = type(error).__name__
    sample.total_s = time.perf_counter() - began - due_s
    sample.output_tokens = sample.output_tokens or pieces
    if not sample.error and not sample.output_tokens:
        sample.error = "no token came"
    return sample


async def _events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    if answer.status_code != 200:
        return
    async for line in answer.aiter_lines():
        if line.startswith("data:") and (data := line[5:].strip()) and data != "[DONE]":
            try:
                event = json.loads(data)
            except ValueError:
                event = {"error": {"message": "an event that is not JSON"}}
            if isinstance(event, dict):
                yield event


def _has_text(event: dict[str, Any]) -> bool:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"):
            return True
    return False


def _refusal(status: int, body: bytes) -> tuple[str, str]:
    """What to count the answer as, and the server's sentence."""
    try:
        error = json.loads(body)["error"]
        code, says = error.get("code"), str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return str(status), ""
    return (f"{status} {code}", says) if code else (f"{status} {says}", "")


def figures_of(plan: Plan, samples: Sequence[Sample], passed_s: float) -> dict[str, Any]:
    """All that was measured, as plain data; times in milliseconds."""
    good = [sample for sample in samples if not sample.error]
    passed_s = max(passed_s, 1e-9)
    outputs = sum(sample.output_tokens for sample in good)
    prompts = sum(sample.prompt_tokens for sample in good)
    tpots = [
        (sample.total_s - sample.ttft_s) / (sample.output_tokens - 1)
        for sample in good
        if sample.ttft_s is not None and sample.output_tokens > 1
    ]
    return {
        "plan": {**asdict(plan), "loop": "open" if plan.rate else "closed"},
        "requests": len(samples),
        "failed": len(samples) - len(good),
        "errors": dict(Counter(sample.error for sample in samples if sample.error)),
        "duration_s": round(passed_s, 3),
        "requests_per_s": round(len(good) / passed_s, 3),
        "prompt_tokens": prompts,
        "cached_tokens": sum(sample.cached_tokens for sample in good),
        "output_tokens": outputs,
        "output_tokens_per_s": round(outputs / passed_s, 1),
        "ttft_ms": distribution([sample.ttft_s for sample in good if sample.ttft_s is not None]),
        "itl_ms": distribution([gap for sample in good for gap in sample.gaps_s]),
        "tpot_ms": distribution(tpots),
        "total_ms": distribution([sample.total_s for sample in good]),
    }


def distribution(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean, nearest-rank quantiles and the largest, in milliseconds; None of nothing."""
    ranked = sorted(seconds)
    if not ranked:
        return None
    shares = {name: ranked[max(ceil(share * len(ranked)) - 1, 0)] for name, share in SHARES.items()}
    values = {"mean": sum(ranked) / len(ranked), **shares, "max": ranked[-1]}
    return {name: round(value * 1000, 3) for name, value in values.items()}


def _print(console: Console, figures: dict[str, Any], samples: Sequence[Sample], has_plot: bool) -> None:
    plan = figures["plan"]
    how = f"{plan['rate']:g} requests/s" if plan["rate"] else f"{plan['concurrency']} at a time"
    lines = [
        f"{plan['model']} at {plan['url']}: {figures['requests']} requests, {how}, {figures['duration_s']:.1f} s",
        f"{figures['requests_per_s']:.2f} requests/s, {figures['output_tokens_per_s']:,.0f} output tokens/s; "
        f"{figures['prompt_tokens']:,} prompt tokens ({figures['cached_tokens']:,} cached), "
        f"{figures['output_tokens']:,} output tokens",
    ]
    lines += [f"{count} failed: {_with_sentence(error, samples)}" for error, count in figures["errors"].items()]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print(_times(figures))
    good = [sample.ttft_s for sample in samples if not sample.error and sample.ttft_s is not None]
    if has_plot and good:
        console.print("\nTTFT, requests by milliseconds", markup=False, highlight=False)
        for line in histogram([second * 1000 for second in good]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _times(figures: dict[str, Any]) -> Table:
    table = plain_table("MILLISECONDS", "MEAN", "P50", "P90", "P99", "MAX")
    names = {"ttft_ms": "TTFT", "itl_ms": "between events", "tpot_ms": "per output token", "total_ms": "whole answer"}
    for field_name, name in names.items():
        values = figures[field_name]
        table.add_row(name, *(f"{value:,.1f}" for value in values.values()) if values else "-----")
    return table


def histogram(values: Sequence[float]) -> list[str]:
    """Equal bins from the smallest value to the largest, one line each."""
    low, high = min(values), max(values)
    width = (high - low) / _BINS or 1.0
    counts = Counter(min(int((value - low) / width), _BINS - 1) for value in values)
    top = max(counts.values())
    return [
        f"{low + width * index:>10,.1f} {'#' * ceil(_BAR * counts[index] / top)} {counts[index] or ''}".rstrip()
        for index in range(max(counts) + 1)
    ]


def plan_for(url: str, **settings: Any) -> Plan:
    """A plan for the base address of an endpoint, given with or without /v1.

    Raises:
        BadAddress
        UserError: more words are to be shared than there are.
    """
    plan = Plan(base_address(url), **settings)
    if plan.shared_words > plan.input_words:
        raise UserError(
            f"--shared-words {plan.shared_words} is more than a prompt's {plan.input_words} words. Raise --input-words."
        )
    return plan
