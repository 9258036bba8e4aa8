"""Every setting of a run, declared once; this package imports no torch."""

from icpctl.config.fields import GROUPS, Declared
from icpctl.config.names import FOLDER, HUGGING_FACE, expanded, is_path, located, short_name
from icpctl.config.run import (
    RECORDED,
    SELECTION,
    RunConfig,
    choices,
    declaration,
    default_text,
    earlier_settings,
    fault_in_words,
    option,
    resolve,
    settings_of_methods,
    truth_for_number,
)

__all__ = [
    "FOLDER",
    "GROUPS",
    "HUGGING_FACE",
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
    "is_path",
    "located",
    "option",
    "resolve",
    "settings_of_methods",
    "short_name",
    "truth_for_number",
]
