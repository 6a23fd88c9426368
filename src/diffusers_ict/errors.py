"""The one exception for what a user can mend."""


class UserError(ValueError):
    """Bad input, said in one sentence: what is allowed, what came, what to do. Programs print it and exit with 2."""
