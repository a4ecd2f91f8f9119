"""Commands that the README and the page on reproducing the paper tell people to type are understood."""

import importlib
import re
import shlex
import sys
from argparse import Namespace
from inspect import signature
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.settings import StreamConfig
from sharding.recipe import load_recipe
from training.run_config import RunConfig

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/reproduce.md")


def commands(page: str) -> list[list[str]]:
    """Words of every indented line that runs this project's code, continued lines joined."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = re.findall(r"^ {4,}(?:\.venv/bin/)?((?:python|deepspeed) .*)", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """What the command's own parser makes of it. Raises SystemExit."""
    if words[:2] == ["python", "-m"]:
        parser = importlib.import_module(f"{words[2]}.__main__")._parser()
        return parser.parse_args(words[3:])  # type: ignore[no-any-return]
    at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    monkeypatch.setattr(sys, "argv", words[at:])
    script = importlib.import_module(words[at].removesuffix(".py").replace("/", "."))
    described = [script.__doc__] * len(signature(script.parse_arguments).parameters)
    return script.parse_arguments(*described)  # type: ignore[no-any-return]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_the_files_and_settings_they_name_are_understood(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = commands(page)
    assert len(found) >= 10
    for words in found:
        options = understood(words, monkeypatch)
        config = str(getattr(options, "config", None) or "")
        if config.startswith("launch/configs/sharding"):
            load_recipe(config, options.set)
        elif words[1:3] == ["-m", "pipeline"] and config:
            load_config(StreamConfig, config, options.set, options.section)
        elif config:
            load_config(RunConfig, config, options.set)
