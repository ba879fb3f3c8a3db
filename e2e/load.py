"""Streams against the gateway until told to end; one JSON line at the end: how many were answered, and what failed.

python load.py URL MODEL CLIENTS STOPFILE
"""

import asyncio
import json
import sys
from pathlib import Path

import httpx


async def client(http: httpx.AsyncClient, model: str, stop: Path, answered: list[int], failed: list[str]) -> None:
    body = {"model": model, "prompt": "Once", "max_tokens": 24, "stream": True, "ignore_eos": True}
    while not await asyncio.to_thread(stop.exists):
        try:
            async with http.stream("POST", "completions", json=body) as stream:
                text = (await stream.aread()).decode()
            if stream.status_code != 200 or "data: [DONE]" not in text:
                failed.append(f"{stream.status_code}: {text[-300:]}")
            else:
                answered.append(1)
        except httpx.HTTPError as error:
            failed.append(repr(error))


async def main(url: str, model: str, clients: int, stop: Path) -> None:
    answered: list[int] = []
    failed: list[str] = []
    async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as http:
        await asyncio.gather(*(client(http, model, stop, answered, failed) for _ in range(clients)))
    print(json.dumps({"answered": len(answered), "failed": failed}))


asyncio.run(main(sys.argv[1] + "/", sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
