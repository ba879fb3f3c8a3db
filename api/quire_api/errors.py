"""The root of every error that a user can cause."""


class UserError(Exception):
    """A mistake in input or surroundings: one clear sentence that says what to do next, never a traceback."""
