"""How often the requests for one deployment may be sent again. Pure."""


class RetryBudget:
    """Retries follow the requests at a fixed ratio, so that a failing fleet is not asked many times over.

    The first retry after a replica was lost is not charged: it cannot become a storm, and the request is innocent.
    """

    def __init__(self, ratio: float = 0.2, floor: float = 10.0) -> None:
        self._ratio = ratio
        self._floor = floor
        self._left = floor

    def request_came(self) -> None:
        """One more request earns its share of a retry."""
        self._left = min(self._floor, self._left + self._ratio)

    def take(self) -> bool:
        """Whether one more retry is allowed; it is charged if so."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
