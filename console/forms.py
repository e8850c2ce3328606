"""What a page needs to know of a form that cannot be read."""

from __future__ import annotations


class FieldError(ValueError):
    """A field of a form cannot be read. Pages show it at its field, as they show an `ApiError`."""

    def __init__(self, param: str, message: str = "This is not a number.") -> None:
        """Take the field's name, and what the page says there."""
        super().__init__(message)
        self.param = param
        self.message = message
