"""How much memory the bodies of all requests together may take. Pure.

A body counts from its first byte until its request is over. Where there is no room for a byte more, the one that has
held most for longest gives way, bytes times seconds, of those that are still arriving: a slow sender, mostly, never a
request that is being answered.
"""

from collections.abc import Callable


class BodyBudget:
    """limit: bytes. Invariant: `used` is the sum of all shares, and above `limit` only while a share grows."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._arriving: set[Share] = set()

    def begin(self, give_way: Callable[[], None], now: float) -> "Share":
        """The share of a body whose first byte comes `now`; `give_way` is called when it has been taken away."""
        share = Share(self, give_way, now)
        self._arriving.add(share)
        return share

    def _longest_held(self, now: float) -> "Share":
        return max(self._arriving, key=lambda share: share.size * (now - share.since))


class Share:
    """What one body takes."""

    __slots__ = ("_budget", "_give_way", "since", "size")

    def __init__(self, budget: BodyBudget, give_way: Callable[[], None], since: float) -> None:
        self._budget = budget
        self._give_way = give_way
        self.since = since
        self.size = 0

    def grow(self, size: int, now: float) -> bool:
        """Whether `size` more bytes of the body may be kept; otherwise nothing of it may, and the share is released."""
        budget = self._budget
        self.size += size
        budget.used += size
        while budget.used > budget.limit:
            loser = budget._longest_held(now)
            loser.release()
            if loser is self:
                return False
            loser._give_way()
        return True

    def complete(self) -> None:
        """The body is whole: from now on it gives way to none."""
        self._budget._arriving.discard(self)

    def release(self) -> None:
        """The body is kept no longer; once more does nothing."""
        self._budget._arriving.discard(self)
        self._budget.used -= self.size
        self.size = 0
