"""Ask until the first token comes; prints the wall-clock time of it. python first_token.py URL MODEL"""

import asyncio
import sys
import time

import httpx

DEADLINE_S = 300.0


async def first_token(http: httpx.AsyncClient, model: str) -> float | None:
    """When it came; None where the model is not served yet."""
    body = {"model": model, "prompt": "Once", "max_tokens": 2, "stream": True}
    async with http.stream("POST", "completions", json=body) as stream:
        async for line in stream.aiter_lines():
            if stream.status_code == 200 and line.startswith("data: {") and '"choices"' in line:
                return time.time()
    return None


async def main(url: str, model: str) -> None:
    end = time.monotonic() + DEADLINE_S
    async with httpx.AsyncClient(base_url=url + "/", timeout=DEADLINE_S, trust_env=False) as http:
        while time.monotonic() < end:
            if at := await first_token(http, model):
                print(at)
                return
            await asyncio.sleep(0.1)
    sys.exit("no token came")


asyncio.run(main(sys.argv[1], sys.argv[2]))
