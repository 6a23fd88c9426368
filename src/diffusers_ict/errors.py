"""Exceptions that end a program with one sentence, and the first line of other libraries' messages."""


class UserError(ValueError):
    """Bad input. The message is one sentence: the allowed values, the given one, and the remedy. Programs exit with 2.

    Settings stand in backticks, by their names as arguments (`resolution`); a program shows them as its flags.
    """


class TrainingDiverged(RuntimeError):
    """A loss, a weight or a moment is no longer finite. Programs print it and exit with 1."""


class TrainingStopped(RuntimeError):
    """A run was asked to stop before its end, and wrote a checkpoint. Programs print it and exit with 3."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where the message is empty.

    What other libraries put in backticks is no setting of ours.
    """
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if isinstance(error, UserError) else line.replace("`", "'")
