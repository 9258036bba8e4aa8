"""Every setting of a run, declared once; this package imports no torch."""

from icpctl.config.fields import GROUPS, Declared
from icpctl.config.names import (
    FOLDER,
    HUGGING_FACE,
    as_factory,
    as_folder,
    expanded,
    is_path,
    located,
    short_name,
)
from icpctl.config.run import (
    POSITIONAL,
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
    "POSITIONAL",
    "RECORDED",
    "SELECTION",
    "Declared",
    "RunConfig",
    "as_factory",
    "as_folder",
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
