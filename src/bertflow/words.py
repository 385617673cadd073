"""The words of the command line: read so that a path, a sentence or a version needs no quotes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException

from bertflow.catalogue import GROUPS
from bertflow.errors import ConfigError


def keep_text(composed: DictConfig, types: DictConfig, words: Sequence[str]) -> None:
    """Give keys typed as string the text that was typed: revision `1.10` is not the number 1.1."""
    typed = dict(word.lstrip("+").partition("=")[::2] for word in words)  # The last word for a key counts.
    for key, text in typed.items():
        parent, _, name = key.rpartition(".")
        with contextlib.suppress(OmegaConfBaseException, AttributeError):  # A wrong key is said when it is merged.
            node = OmegaConf.select(types, parent) if parent else None
            field = node._get_node(name, validate_access=False) if isinstance(node, DictConfig) else None
            is_text = isinstance(field, StringNode) and "${" not in text
            if is_text and isinstance(OmegaConf.select(composed, key), bool | int | float):
                OmegaConf.update(composed, key, text)


def _exact(text: str) -> str:
    """Quote a number or boolean that Hydra's sweeper would write in another way; a typed key reads it back."""
    with contextlib.suppress(ValueError):
        if str(float(text)) != text and str(int(text) if text.strip("+-").isdigit() else None) != text:
            return f"'{text}'"
    return f"'{text}'" if text.lower() in ("true", "false") and text not in ("true", "false") else text


def refuse_hydra_words(words: Sequence[str]) -> None:
    """Raise ConfigError for settings of Hydra that one run, which has no folder of its own, would ignore."""
    for word in words:
        if re.match(r"(~|\+\+?)?hydra[./]", word) and "hydra.searchpath=" not in word:
            raise ConfigError("setting has no effect on one run", word, "it works with --multirun only")


def _check_option(key: str, value: str) -> None:
    if key in GROUPS and value in ("", "null"):
        raise ConfigError("no option is selected", f"{key}={value}", f"write {key}=<option>; --help lists them")
    if key in GROUPS and key != "extension" and value[:1] in ("[", "{"):
        raise ConfigError("several options at once", f"{key}={value}", f"write {key}=<option>, or add --multirun")


def literal(word: str, multirun: bool = False) -> str:
    """Return an override that Hydra can read: a value beyond its grammar is quoted, so that it stands for itself.

    Paths and sentences need no quotes that way. What opens a quote, bracket or brace was meant as Hydra's syntax and is
    an error; except under `input.`, where the plugin reads the data and can say which row is wrong.

    Raises:
        ConfigError: the word is no `key=value`, or its value cannot be read.
    """
    key, equals, value = word.partition("=")
    try:
        parsed: Override | None = OverridesParser.create().parse_override(word)
    except HydraException:
        parsed = None
    if parsed is None and not (equals and re.fullmatch(r"(~|\+\+?)?[\w./@-]+", key)):
        raise ConfigError("not a setting", word, "write group=option or group.key=value")
    _check_option(key, value)
    if key.startswith("input.") and value[:1] == "{":
        parsed = None  # No input has such a value; its plugin says so, with the answer of bad input.
    if parsed is None:
        if value[:1] in tuple("'\"[{") and not key.startswith("input."):
            raise ConfigError("value cannot be read", word, "close its quote, bracket or brace")
    elif multirun:
        return f"{key}={','.join(map(_exact, value.split(',')))}" if re.fullmatch(r"[\w.+, -]+", value) else word
    elif not parsed.is_sweep_override():
        return word
    elif "." not in key:
        raise ConfigError("several values at once", word, "choose one, or add --multirun to run them all")
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
