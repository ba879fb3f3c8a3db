"""`quire chat`: a dialogue with a served model in the terminal."""

import sys
import time
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from rich.console import Console

from quire.address import base_address, is_loopback
from quire_api.errors import UserError
from quire_api.wire import HEADER_CACHED_TOKENS, HEADER_REASON, HEADER_REPLICA

NO_KEY = "none"
HELP = "/clear forgets the dialogue, /exit ends it, /help shows this line. Ctrl-C stops an answer."


class ServerUnreachable(UserError):
    """Nothing answers at the address."""


class ServerRefused(UserError):
    """The server answered with an error."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer and what its headers and usage said. Times in seconds."""

    text: str
    completion_tokens: int
    prompt_tokens: int
    cached_tokens: int
    ttft_s: float
    total_s: float
    replica: str
    reason: str
    expected_cached_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first over the time after the first."""
        decode_s = self.total_s - self.ttft_s
        return (self.completion_tokens - 1) / decode_s if self.completion_tokens > 1 and decode_s > 0 else 0.0


def connect(url: str, key: str = "") -> openai.OpenAI:
    """A client of the server at `url`, given with or without /v1; proxies of the environment are for other machines.

    Raises:
        BadAddress
    """
    base = base_address(url)
    http = openai.DefaultHttpxClient(trust_env=not is_loopback(base))
    return openai.OpenAI(base_url=f"{base}/v1", api_key=key or NO_KEY, max_retries=0, http_client=http)


def first_model(client: openai.OpenAI) -> str:
    """The first served name.

    Raises:
        ServerUnreachable, ServerRefused
    """
    try:
        names = [model.id for model in client.models.list()]
    except openai.APIError as error:
        raise explain(error, client) from error
    if not names:
        raise ServerRefused(f"{client.base_url} serves no model yet. `quire status` shows what it waits for.")
    return names[0]


def ask(
    client: openai.OpenAI, model: str, messages: list[dict[str, str]], console: Console | None = None, **sampling: Any
) -> Answer:
    """Stream one chat answer, printing pieces to `console` as they come.

    Raises:
        ServerUnreachable, ServerRefused
    """
    start = time.perf_counter()
    first = 0.0
    pieces: list[str] = []
    usage = None
    try:
        raw = client.chat.completions.with_raw_response.create(
            model=model,
            messages=messages,  # type: ignore[arg-type]
            stream=True,
            stream_options={"include_usage": True},
            **sampling,
        )
        with raw.parse() as stream:
            for chunk in stream:
                usage = chunk.usage or usage
                piece = chunk.choices[0].delta.content if chunk.choices else None
                if not piece:
                    continue
                first = first or time.perf_counter()
                pieces.append(piece)
                if console:
                    console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    except openai.APIError as error:
        raise explain(error, client) from error
    if console:
        console.print()
    end = time.perf_counter()
    details = usage.prompt_tokens_details if usage else None
    return Answer(
        text="".join(pieces),
        completion_tokens=usage.completion_tokens if usage else 0,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        ttft_s=(first or end) - start,
        total_s=end - start,
        replica=raw.headers.get(HEADER_REPLICA, ""),
        reason=raw.headers.get(HEADER_REASON, ""),
        expected_cached_tokens=int(raw.headers.get(HEADER_CACHED_TOKENS) or 0),
    )


def explain(error: openai.APIError, client: openai.OpenAI) -> UserError:
    """The sentence a person at the terminal needs for an error of the client library."""
    if isinstance(error, openai.APIConnectionError):
        return ServerUnreachable(
            f"nothing answers at {client.base_url} . Start a server with `quire up FILE.yaml` or name one with --url."
        )
    if isinstance(error, openai.AuthenticationError):
        is_given = client.api_key != NO_KEY
        wants = "refused this key: pass another with" if is_given else "wants a key: pass"
        return ServerRefused(f"the server {wants} --api-key or set QUIRE_API_KEY.")
    return ServerRefused(f"the server refused: {error.message}")


def run_chat(
    question: str | None,
    *,
    url: str,
    model: str,
    system: str,
    max_tokens: int | None,
    temperature: float | None,
    key: str,
) -> None:
    """One question, or a dialogue until /exit or the end of input."""
    console = Console()
    client = connect(url, key)
    model = model or first_model(client)
    sampling = {k: v for k, v in {"max_tokens": max_tokens, "temperature": temperature}.items() if v is not None}
    opening = [{"role": "system", "content": system}] if system else []
    if question is not None:
        ask(client, model, [*opening, {"role": "user", "content": question}], console, **sampling)
        return
    console.print(f"[bold]{model}[/] at {url}. {HELP}")
    messages = list(opening)
    while (line := _read_line(console)) is not None:
        match line.strip():
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/help":
                console.print(HELP)
            case "/clear":
                messages = list(opening)
            case text:
                messages.append({"role": "user", "content": text})
                try:
                    answer = ask(client, model, messages, console, **sampling)
                except KeyboardInterrupt:
                    console.print("\n[dim]stopped[/]")
                    messages.pop()
                    continue
                except ServerRefused as refusal:
                    console.print(f"[red]{refusal}[/]")
                    messages.pop()
                    continue
                messages.append({"role": "assistant", "content": answer.text})
                where = f" · {answer.replica}" if answer.replica else ""
                console.print(
                    f"[dim]{answer.completion_tokens} tokens · {answer.tokens_per_second:.0f} tokens/s{where}[/]"
                )


def _read_line(console: Console) -> str | None:
    try:
        return console.input("[bold cyan]you>[/] ") if sys.stdin.isatty() else input()
    except (EOFError, KeyboardInterrupt):
        return None


def is_ready(url: str) -> bool:
    """Whether a gateway or engine at `url` says that it is ready."""
    try:
        return httpx.get(f"{url}/ready", timeout=2.0, trust_env=not is_loopback(url)).status_code == 200
    except httpx.HTTPError:
        return False
