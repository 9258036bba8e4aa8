"""Every setting of a run, declared once; this package imports no torch."""

from icpctl.config.run import (
    FOLDER,
    GROUPS,
    RECORDED,
    SELECTION,
    Declared,
    RunConfig,
    choices,
    declaration,
    default_text,
    earlier_settings,
    expanded,
    fault_in_words,
    located,
    option,
    resolve,
    truth_for_number,
)

__all__ = [
    "FOLDER",
    "GROUPS",
    "RECORDED",
    "SELECTION",
    "Declared",
    "RunConfig",
    "choices",
    "declaration",
    "default_text",
    "earlier_settings",
    "expanded",
    "fault_in_words",
    "located",
    "option",
    "resolve",
    "truth_for_number",
]
