"""After zero replicas, or after an outage: how what was held is let go. Pure.

Whatever is let go at once goes to the first replica that serves, for it is the only one, and stays bound to it while
others come. What stays at the door goes to whichever can take it first. A replica whose queue of prompts is short works
as fast as one whose queue is long, so nothing is lost by waiting here.
"""

MOST_QUEUED_TOKENS = 16_384
"""Prompt tokens at one replica whose first byte is still to come: two or more steps of an engine, so that it never
waits for the next."""
LEAST_IN_FLIGHT = 4
"""Requests that any replica may have, however long their prompts."""


def paced_room(free_slots: int, in_flight: int, queued_tokens: int) -> int:
    """Of a replica's free places, how many may be taken before its counts are looked at again: one or none."""
    has_short_queue = queued_tokens < MOST_QUEUED_TOKENS or in_flight < LEAST_IN_FLIGHT
    return min(free_slots, 1) if has_short_queue else min(free_slots, 0)
