"""What Hydra and OmegaConf complain of, as one line with a suggestion."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, EnumNode, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from bertflow.catalogue import GROUPS, Catalogue, Option
from bertflow.errors import ConfigError, did_you_mean

Options = Mapping[str, Mapping[str, tuple[Option, ...]]]


def explain(
    error: Exception, available: Catalogue | None = None, choices: Mapping[str, str] | None = None
) -> ConfigError:
    """Turn what Hydra and OmegaConf say into one line with a suggestion.

    Args:
        error: their exception.
        available: what there is, for a suggestion from another option.
        choices: the option chosen in each group, as far as it is known.
    """
    options = available.options if available else {}
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        primaries = (
            [path.stem for folder, _ in available.conf_dirs for path in folder.glob("*.yaml")] if available else []
        )
        known = error.options or list(options.get(group, primaries))
        return ConfigError("no such option", f"{group}={option}".lstrip("="), did_you_mean(option, known))
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _wrong_setting(cause, options, choices or {})
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return ConfigError("not valid YAML", f"{mark.name}, line {mark.line + 1}", "mend the file")
    text = str(error).strip() or str(cause)
    unmatched = re.match(r"Could not override '([^']+)'", text)
    if unmatched and unmatched[1] in GROUPS:
        fix = f"add `- {unmatched[1]}: <option>` to its defaults, or start them with `- config`"
        return ConfigError("the primary config lacks a group", unmatched[1], fix)
    if unmatched:
        return ConfigError("no such group", unmatched[1], did_you_mean(unmatched[1], [*GROUPS, "debug"]))
    return ConfigError("config cannot be composed", text.splitlines()[0], "see --help for groups, options and keys")


def _wrong_setting(error: OmegaConfBaseException, options: Options, choices: Mapping[str, str]) -> ConfigError:
    key = str(error.full_key)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(error, options, choices)
    if isinstance(error, ValidationError) and error.value is None:
        return ConfigError("a value is missing", key, f"give it: {key}=...")
    return ConfigError("wrong value", key, _value_hint(error))


def _unknown_key(error: OmegaConfBaseException, options: Options, choices: Mapping[str, str]) -> ConfigError:
    full_key = str(error.full_key)
    group, _, key = full_key.partition(".")
    if not key or group not in GROUPS:
        return ConfigError("no such setting", full_key, did_you_mean(group, [*GROUPS, "debug"]))
    # The default option of a group is named like its plugin.
    root = error.parent_node._get_root() if error.parent_node is not None else {}
    chosen = choices.get(group) or (root.get(group) or {}).get("plugin")
    option = key.partition(".")[0] if group == "extension" else chosen
    place = f"{full_key} in {group}={option}"
    # An option that names a plugin lists all its keys; a preset only those that it changes.
    owners = [name for name, places in options.get(group, {}).items() if _lists_key(places[0].path, key)]
    siblings = [str(k) for k in error.parent_node if k != "plugin"] if error.parent_node is not None else []
    if owners and chosen not in owners:
        have = " and ".join(f"{group}={name}" for name in owners)
        verb = "has" if len(owners) == 1 else "have"
        return ConfigError("no such setting", place, f"{have} {verb} it: add {group}={owners[0]}")
    return ConfigError("no such setting", place, did_you_mean(key.rpartition(".")[2], siblings))


def _lists_key(path: Path, key: str) -> bool:
    content: Any = None
    with contextlib.suppress(Exception):  # A broken file is nobody's suggestion.
        content = OmegaConf.load(path)
    if not isinstance(content, DictConfig) or "plugin" not in content:
        return False
    *parents, last = key.split(".")
    for name in parents:
        content = content.get(name) if isinstance(content, DictConfig) else None
    return isinstance(content, DictConfig) and last in list(content)


def _value_hint(error: OmegaConfBaseException) -> str:
    value = getattr(error, "value", None)
    reason = next(iter((str(error.msg) or str(error.__cause__) or type(error).__name__).splitlines()), "")
    kind = None
    with contextlib.suppress(OmegaConfBaseException, TypeError, AttributeError):  # The key itself may be the fault.
        kind = error.parent_node._get_node(error.key, validate_access=False)
    if isinstance(kind, EnumNode) and isinstance(error, ValidationError) and value is not None:
        return f"{value} is none of its values, {did_you_mean(str(value), kind.enum_type.__members__)}"
    if isinstance(value, str) and "," in value:
        return f"{reason}; to run several values add --multirun"
    return reason
