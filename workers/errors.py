"""Errors that people cause, as one sentence: what, where, what was seen, and what to do."""


class UserError(ValueError):
    """The user can mend this: one sentence that says what, where, what was seen, and the remedy."""
