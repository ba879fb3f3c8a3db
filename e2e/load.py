"""Streams against the gateway until told to end. A line when the first is answered, and a line of JSON at the end: how
many were answered, what failed before its first token (`lost`) and what failed after it (`cut`).

python load.py URL MODEL CLIENTS STOPFILE
"""

import asyncio
import json
import sys
from pathlib import Path

import httpx


class Outcome:
    def __init__(self) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self.cut: list[str] = []


async def ask(http: httpx.AsyncClient, body: dict[str, object], outcome: Outcome) -> None:
    lines: list[str] = []
    try:
        async with http.stream("POST", "completions", json=body) as stream:
            status = stream.status_code
            async for line in stream.aiter_lines():
                lines.append(line)
    except httpx.HTTPError as error:
        status, lines = 0, [*lines, repr(error)]
    if status == 200 and "data: [DONE]" in lines:
        if not outcome.answered:
            print("under way", flush=True)
        outcome.answered += 1
        return
    has_begun = any(line.startswith("data: {") and '"choices"' in line for line in lines)
    (outcome.cut if has_begun else outcome.lost).append(f"{status}: {' '.join(lines)[-300:]}")


async def client(http: httpx.AsyncClient, body: dict[str, object], stop: Path, outcome: Outcome) -> None:
    while not await asyncio.to_thread(stop.exists):
        await ask(http, body, outcome)


async def main(url: str, model: str, clients: int, stop: Path) -> None:
    outcome = Outcome()
    body = {"model": model, "prompt": "Once", "max_tokens": 24, "stream": True, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as http:
        await asyncio.gather(*(client(http, body, stop, outcome) for _ in range(clients)))
    print(json.dumps(vars(outcome)))


asyncio.run(main(sys.argv[1] + "/", sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
