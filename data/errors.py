"""The one exception type that stands for a mistake of the user or of an input, not of the program."""


class UserError(ValueError):
    """Says what is wrong, where (file, line, key) and what to do; entry points print it without a traceback."""
