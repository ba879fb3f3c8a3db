"""Notices when a watch of kopf's has ended for good: kopf may then go on without it, and see nothing any more."""

import asyncio

CHECK_EVERY_S = 1.0
NAME = "watcher for "
"""How kopf's tasks that follow one kind are called."""


class WatchEnded(Exception):
    """Nothing is heard of one kind any more."""


async def until_a_watch_ends() -> None:
    """
    Raises:
        WatchEnded: with what kopf said of it. A watch that kopf stopped itself, of a namespace that is gone, is none.
    """
    known: set[asyncio.Task[object]] = set()
    while True:
        known |= {task for task in asyncio.all_tasks() if task.get_name().startswith(NAME)}
        for task in [task for task in known if task.done()]:
            known.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise WatchEnded(f"the {task.get_name()} failed: {error}") from error
        await asyncio.sleep(CHECK_EVERY_S)
