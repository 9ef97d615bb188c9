"""The error that a command answers bad input with."""


class UsageError(Exception):
    """Input that a command cannot use.

    The message is one line that names the file or flag, what was found and what was expected.
    """


def first_line(error: BaseException) -> str:
    """An exception's message on one line: its first one, or its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
