"""The modules of version 0.1 are found under their old names."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from icpctl.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_module_where_it_is_now(old: str) -> None:
    sys.modules.pop(f"icpctl.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"icpctl.{old} is now icpctl.{MOVED[old]}"):
        module = import_module(f"icpctl.{old}")
    assert module is import_module(f"icpctl.{MOVED[old]}")
    assert module.__name__ == f"icpctl.{MOVED[old]}"
    assert module.__spec__ is not None
    assert module.__spec__.name == f"icpctl.{MOVED[old]}"


def test_scripts_for_version_0_1_go_on() -> None:
    script = (
        "import sys, icpctl; from icpctl.fastpath import fold; from icpctl.icp import Adam; from icpctl import engine\n"
        "assert icpctl.distill.SelfDistiller is icpctl.SelfDistiller; assert engine.train is icpctl.train; fold; Adam"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_another_name_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"icpctl\.fastpaths"):
        import_module("icpctl.fastpaths")
