"""Exceptions that end a program with one sentence, and the first line of other libraries' messages."""

import errno


class UserError(ValueError):
    """Bad input. The message is one sentence: the allowed values, the given one, and the remedy. Programs exit with 2.

    Settings stand in backticks, by their names as arguments (`resolution`); a program shows them as its flags.
    """


class LabelsError(UserError):
    """Classes are wanted, and the labels of the data are missing or of no use; without them, it may do."""


class TrainingDiverged(RuntimeError):
    """A loss, a weight or a moment is no longer finite. Programs print it and exit with 1."""


class TrainingStopped(RuntimeError):
    """A run was asked to stop before its end, and wrote a checkpoint. Programs print it and exit with 3."""


NO_MEMORY = (  # what PyTorch's errors say
    *("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED"),
    "can't start new thread",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, of the machine or of a device."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # PyTorch is not imported for a message
    if kinds & {"MemoryError", "OutOfMemoryError"}:
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where the message is empty."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def foreign_line(error: BaseException) -> str:
    """The same of another library's error, in which backticks mark no settings of ours."""
    return first_line(error).replace("`", "'")
