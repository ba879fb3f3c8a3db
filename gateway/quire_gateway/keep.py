"""Tasks that have to go on for as long as the gateway does."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0


async def keep_going(what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Await `work`, and begin it anew whenever it raises, sooner the longer it had gone well; return when it does.

    Without it a fault of ours would leave a gateway that answers, says that it is ready, and follows nothing.
    """
    loop = asyncio.get_running_loop()
    delay_s = _FIRST_DELAY_S
    while True:
        began = loop.time()
        try:
            await work()
        except Exception:
            if loop.time() - began > _LONGEST_DELAY_S:
                delay_s = _FIRST_DELAY_S
            log.exception("%s failed, which is a fault of the gateway; it begins anew in %g s", what, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
        else:
            return
