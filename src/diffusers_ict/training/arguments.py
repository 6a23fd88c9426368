"""Command lines whose mistakes are told in one sentence."""

import argparse
from typing import NoReturn

from ..errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, but a mistake raises UserError instead of printing the usage and leaving the program.

    Flags are not abbreviated: a new flag must not change what an old command means.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.")
