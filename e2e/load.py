"""Streams against the gateway until standard input ends. Each tells in lines of JSON that it has `begun`, that a
replica is `streaming` its answer, and how it ended: `answered`, `lost` (before its first token) or `cut` (after it).

python load.py URL MODEL CLIENTS [TOKENS]
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Iterator

import httpx

from quire_api.wire import HEADER_REPLICA


def tell(request: int, state: str, detail: str = "") -> None:
    print(json.dumps({"request": request, "state": state, "detail": detail}), flush=True)


async def ask(http: httpx.AsyncClient, body: dict[str, object], request: int) -> None:
    lines: list[str] = []
    has_begun = False
    tell(request, "begun")
    try:
        async with http.stream("POST", "completions", json=body) as stream:
            status = stream.status_code
            async for line in stream.aiter_lines():
                lines.append(line)
                if not has_begun and line.startswith("data: {") and '"choices"' in line:
                    has_begun = True
                    tell(request, "streaming", stream.headers.get(HEADER_REPLICA, ""))
    except httpx.HTTPError as error:
        status, lines = 0, [*lines, repr(error)]
    if status == 200 and "data: [DONE]" in lines:
        tell(request, "answered")
    else:
        tell(request, "cut" if has_begun else "lost", f"{status}: {' '.join(lines)[-300:]}")


async def client(
    http: httpx.AsyncClient, body: dict[str, object], end: asyncio.Future[str], requests: Iterator[int]
) -> None:
    while not end.done():
        await ask(http, body, next(requests))


async def main(url: str, model: str, clients: int, tokens: int = 24) -> None:
    requests = itertools.count()
    end = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    body = {"model": model, "prompt": "Once", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as http:
        await asyncio.gather(*(client(http, body, end, requests) for _ in range(clients)))


asyncio.run(main(sys.argv[1] + "/", sys.argv[2], *map(int, sys.argv[3:])))
