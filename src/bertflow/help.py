"""The text of `--help`: one compose and a walk of the conf folders; no plugin is imported.

Every word about an option or a key comes from its YAML: the file's first comment describes the option, the comment on a
key's line describes the key.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bertflow.catalogue import GROUPS, Catalogue
from bertflow.config import compose_hydra, selected

_KEY_WIDTH = 52
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w-]+):(?P<rest>.*)$")


def help_text(words: Sequence[str], available: Catalogue, config_name: str, parser: argparse.ArgumentParser) -> str:
    """Describe groups, options, the keys of the selected options, and flags."""
    composed = compose_hydra(words, available, config_name)
    version = importlib.metadata.version("bertflow")
    lines = [
        f"bertflow {version}: a transformer from config to weights to saved checkpoint to results",
        "",
        "usage: python -m bertflow [group=option ...] [group.key=value ...] [flags]",
        "",
        "Groups and options (* selected), and the package that brings each:",
    ]
    lines += _options(composed, available)
    lines += ["", "Keys of what is selected:"]
    lines += _keys(composed, available)
    lines += ["", "Flags:"]
    for action in parser._actions:
        if action.option_strings:
            lines.append(f"  {', '.join(action.option_strings):<26}{action.help}")
    return "\n".join(lines) + "\n"


def _options(composed: DictConfig, available: Catalogue) -> Iterator[str]:
    for group, about in GROUPS.items():
        yield f"  {group}: {about.purpose}"
        chosen = composed.hydra.runtime.choices.get(group)
        for name, places in sorted(available.options[group].items()):
            mark = "*" if name == chosen or (group == "extension" and name in (composed.get(group) or {})) else " "
            for place in places:
                yield f"   {mark} {name:<18}{description(place.path):<72} {place.owner}"


def _keys(composed: DictConfig, available: Catalogue) -> Iterator[str]:
    for prefix, node in selected(composed):
        # A preset inherits its plugin; the plugin's own option is where the keys are described.
        if not isinstance(node, DictConfig):
            continue
        places = available.options[prefix.partition(".")[0]].get(str(node.get("plugin")), ())
        words = key_words(places[0].path) if places else {}
        for key, value in _leaves(OmegaConf.to_container(node)):
            if key != "plugin":
                yield _key(f"{prefix}.{key}", value, words.get(key, ""))
    primary = key_words(available.core_conf / "config.yaml")
    yield _key("debug", composed.get("debug"), primary.get("debug", ""))


def _key(key: str, value: object, words: str) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    setting = f"{key}={shown}"
    gap = "\n" + " " * _KEY_WIDTH if len(setting) > _KEY_WIDTH else ""
    return f"  {setting:<{_KEY_WIDTH}}{gap}{'  ' if gap else ''} {words}".rstrip()


def _leaves(plain: Any, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def description(path: Path) -> str:
    """Return an option's one line: the first comment of its YAML that is not a Hydra header."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").rstrip()
        if line.strip() and not line.startswith("#"):
            break
    return ""


def key_words(path: Path) -> dict[str, str]:
    """Return dotted key -> the comment on its line."""
    words: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _KEY.match(line)
        if not match:
            continue
        indent = len(match["indent"])
        parents = [(depth, name) for depth, name in parents if depth < indent]
        dotted = ".".join([*(name for _, name in parents), match["key"]])
        parents.append((indent, match["key"]))
        _, mark, comment = match["rest"].partition(" # ")
        if mark:
            words[dotted] = comment.strip()
    return words
