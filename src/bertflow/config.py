"""From words on a command line to a validated config.

Hydra composes, the plugins' typed `Config` classes validate, and every complaint becomes one line with a suggestion.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import BooleanNode, DictConfig, OmegaConf, StringNode, open_dict
from omegaconf.errors import OmegaConfBaseException

from bertflow.catalogue import GROUPS, Catalogue, discover
from bertflow.errors import BertflowError, ConfigError
from bertflow.explain import explain
from bertflow.plugins import Active, activate, failure

PRIMARY = "config"
"""The config that a run starts from: `conf/config.yaml`, or the user's own with `--config-name`."""


@dataclass(frozen=True)
class Composition:
    """A composed and validated config, the option chosen in each group, and the activated plugins.

    `config` holds the values as Hydra reads them, `typed` the same in the types of the plugins' `Config` classes.
    """

    config: DictConfig
    typed: DictConfig
    choices: Mapping[str, str]
    active: Active
    catalogue: Catalogue

    def settings(self) -> dict[str, Any]:
        """Return each plugin's part of the config as an instance of its `Config`.

        Raises:
            ConfigError: a value is missing, or the plugin's own `__post_init__` refuses it.
        """
        try:
            missing = sorted(OmegaConf.missing_keys(self.typed))
            if missing:
                raise ConfigError("a value is missing", missing[0], f"give it: {missing[0]}=...")
        except OmegaConfBaseException as error:
            raise explain(error) from error
        return {key: self._settings_of(key) for key in self.active.modules}

    def _settings_of(self, key: str) -> Any:
        try:
            return OmegaConf.to_object(OmegaConf.select(self.typed, key))
        except BertflowError:
            raise
        except OmegaConfBaseException as error:
            raise explain(error) from error
        except Exception as error:
            raise failure(error, self.active.names[key], "its Config") from error


def conf_dir() -> Path:
    """Return the folder of the core's YAML files: inside the wheel, else at the root of the checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parents[1] / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError("bertflow's conf folder is missing", str(here / "conf"), "reinstall bertflow")


def catalogue(config_dirs: Sequence[str | Path] = ()) -> Catalogue:
    """List what can be selected, the user's own config folders included. Imports no plugin."""
    folders = [Path(folder).expanduser().resolve() for folder in config_dirs]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError("config folder not found", str(folder), "give an existing folder to --config-dir")
        refuse_code(folder)
    return discover(conf_dir(), folders)


CODE_KEYS = ("_target_", "callbacks", "hydra_logging", "job_logging", "searchpath")
"""What makes Hydra call or open something: only installed packages may bring it, never a word or a foreign folder."""


def refuse_code(folder: Path) -> None:
    """Raise ConfigError where a config folder of the user's could make Hydra run code or open files."""
    for path in sorted(folder.rglob("*.yaml")):
        inside = path.relative_to(folder).parts[:-1]
        text = path.read_text(encoding="utf-8", errors="replace")
        headers = re.findall(r"^\s*#\s*@package\s+(\S+)", text, flags=re.MULTILINE)
        names = {*inside, *(part for header in headers for part in header.split("."))}
        with contextlib.suppress(Exception):  # What is no YAML is said when it is selected.
            names |= set(_keys(OmegaConf.to_container(OmegaConf.load(path))))
        for key in sorted(names & set(CODE_KEYS)):
            fix = "take it out: a config never names code, log handlers or other folders"
            raise ConfigError(f"{key} is not allowed in a config folder", str(path), fix)


def _keys(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from str(key).replace("/", ".").split(".")
            yield from _keys(value)
    elif isinstance(content, list):
        for item in content:
            yield from _keys(item)


_hydra_lock = threading.RLock()


@contextlib.contextmanager
def hydra_app(available: Catalogue) -> Iterator[Hydra]:
    """Open Hydra with every conf folder on its search path, and leave its global state as it was found.

    Hydra's public `initialize` takes one folder only; the others could be given as `hydra.searchpath`, but then shell
    completion does not see them. So the search path is built as Hydra's own `main` builds it.
    """
    with _hydra_lock:
        instance, base = GlobalHydra.instance(), version.VersionBase.instance()
        job_name = JobRuntime.instance().get("name")
        saved = instance.hydra, base.version_base
        instance.hydra = None  # It may be that of the application around us.
        version.setbase("1.3")
        path = create_config_search_path(f"file://{available.core_conf}")
        for folder, owner in available.conf_dirs[1:]:
            path.prepend(provider=owner, path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
        try:
            yield Hydra.create_main_hydra2("bertflow", path)
        finally:
            instance.hydra, base.version_base = saved
            JobRuntime.instance().set("name", job_name)


def compose(*overrides: str, config_dir: str | Path | None = None, config_name: str = PRIMARY) -> DictConfig:
    """Compose the config of a run without running it.

    Args:
        overrides: words as on the command line, such as `"model=pretrained"`.
        config_dir: a folder of your own options and presets, searched after the packages'.
        config_name: the primary config to start from.

    Raises:
        ConfigError: an unknown option or key, a value of the wrong type, or a word that cannot be read.
        PluginError: a selected plugin is broken.
    """
    return compose_run(overrides, catalogue([config_dir] if config_dir else []), config_name).config


def compose_run(words: Sequence[str], available: Catalogue, config_name: str = PRIMARY) -> Composition:
    """Compose, activate the selected plugins, and merge the config into their types. Raises as `compose` does."""
    composed = compose_hydra(words, available, config_name)
    choices = dict(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    return validate(composed, choices, words, available)


def compose_hydra(words: Sequence[str], available: Catalogue, config_name: str = PRIMARY) -> DictConfig:
    """Compose with Hydra alone, its own node included. Imports no plugin. Raises ConfigError."""
    readable = [literal(word) for word in words]
    with hydra_app(available) as hydra:
        try:
            return hydra.compose_config(config_name, readable, RunMode.RUN, from_shell=False)
        except Exception as error:  # Hydra answers some words with a ValueError or an assertion.
            raise explain(error, available, dict(word.partition("=")[::2] for word in readable)) from error


def validate(
    composed: DictConfig, choices: Mapping[str, str], words: Sequence[str], available: Catalogue
) -> Composition:
    """Activate what the composed config selects, and check every value against the plugins' types."""
    active = activate(_selection(composed, choices), available)
    types = OmegaConf.create({"debug": BooleanNode(False)})
    for key, node in active.types.items():
        OmegaConf.update(types, key, node, force_add=True)
    _keep_text(composed, types, words)
    values = copy.deepcopy(composed)
    for key in active.modules:
        node = OmegaConf.select(values, key)
        with open_dict(node):
            del node["plugin"]
    try:
        typed = OmegaConf.merge(types, values)
    except OmegaConfBaseException as error:
        raise explain(error, available, choices) from error
    assert isinstance(typed, DictConfig)
    return Composition(composed, typed, choices, active, available)


def _selection(composed: DictConfig, choices: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (group, option, plugin module) of every selected option."""
    for key, node in selected(composed):
        group, _, extension = key.partition(".")
        option = extension or str(choices.get(group))
        if node is None:
            raise ConfigError("no option is selected", group, f"write {group}=<option>; --help lists them")
        plugin = node.get("plugin") if isinstance(node, DictConfig) else None
        if not isinstance(plugin, str):
            raise ConfigError("option names no plugin", f"{group}={option}", "its YAML starts with `plugin: <module>`")
        yield group, option, plugin


def selected(composed: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield the key and the config of every selected plugin; an extension's key is `extension.<option>`."""
    for group in GROUPS:
        node = composed.get(group)
        if group != "extension":
            yield group, node
        else:
            yield from ((f"{group}.{name}", part) for name, part in (node or {}).items())


def _keep_text(composed: DictConfig, types: DictConfig, words: Sequence[str]) -> None:
    """Give keys typed as string the text that was typed: revision `1.10` is not the number 1.1."""
    for word in words:
        key, _, text = word.lstrip("+").partition("=")
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(types, parent) if parent else None
        field = node._get_node(name, validate_access=False) if isinstance(node, DictConfig) else None
        is_text = isinstance(field, StringNode) and "${" not in text
        value = OmegaConf.select(composed, key) if is_text else None
        if isinstance(value, bool | int | float):
            OmegaConf.update(composed, key, text)


def literal(word: str, multirun: bool = False) -> str:
    """Return an override that Hydra can read: a value beyond its grammar is quoted, so that it stands for itself.

    Paths and sentences need no quotes that way. What opens a quote, bracket or brace was meant as Hydra's syntax and is
    an error; except under `input.`, where the plugin reads the data and can say which row is wrong.

    Raises:
        ConfigError: the word is no `key=value`, or its value cannot be read.
    """
    key, equals, value = word.partition("=")
    target = re.search(r"(^|[.{,+\s])_target_\s*[:=]", word)
    if target or (key.lstrip("+~").startswith("hydra") and set(re.split(r"[./]", key)) & set(CODE_KEYS)):
        fix = "leave it out: a word never names code, log handlers or config folders"
        raise ConfigError("not allowed on the command line", word, fix)
    try:
        parsed: Override | None = OverridesParser.create().parse_override(word)
    except HydraException:
        parsed = None
    if parsed is None and not (equals and re.fullmatch(r"(~|\+\+?)?[\w./@-]+", key)):
        raise ConfigError("not a setting", word, "write group=option or group.key=value")
    if key in GROUPS and value in ("", "null"):
        raise ConfigError("no option is selected", word, f"write {key}=<option>; --help lists them")
    if parsed is None:
        if value[:1] in tuple("'\"[{") and not key.startswith("input."):
            raise ConfigError("value cannot be read", word, "close its quote, bracket or brace")
    elif multirun or not parsed.is_sweep_override():
        return word
    elif "." not in key:
        raise ConfigError("several values at once", word, "choose one, or add --multirun to run them all")
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
