"""What logs call the state of a curriculum."""

from typing import Any

STAGE_NAMES = {"num_levels": "N", "stage": "stage"}  # by the logs' names, those of plots


def stage_key(entries: list[dict[str, Any]]) -> str:
    """What the entries of a run's log call its stages, one of STAGE_NAMES; empty where they have none."""
    return next((key for key in STAGE_NAMES if entries and key in entries[0]), "")
