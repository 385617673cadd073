"""From words on a command line to a validated config.

Hydra composes, the plugins' typed `Config` classes validate, and every complaint becomes one line with a suggestion.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import BooleanNode, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bertflow.catalogue import GROUPS, Catalogue, discover
from bertflow.errors import BertflowError, ConfigError, StorageError, did_you_mean
from bertflow.explain import explain
from bertflow.plugins import Active, activate, failure
from bertflow.words import keep_text, literal

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
    folders = [Path(os.path.expanduser(folder)).resolve() for folder in config_dirs]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError("config folder not found", str(folder), "give an existing folder to --config-dir")
        if (folder / f"{PRIMARY}.yaml").is_file():
            where = str(folder / f"{PRIMARY}.yaml")
            raise ConfigError("this name is that of bertflow's own config", where, "rename it and use --config-name")
    return discover(conf_dir(), folders)


_LIVE = ("callbacks", "hydra_logging", "job_logging", "launcher", "sweeper")
"""The parts of `hydra` that Hydra acts on; everything else it only reads."""


class ClosedConfigLoader(ConfigLoaderImpl):
    """Composes configs in which Hydra finds nothing to call and no file to open, whatever words and folders say.

    Hydra calls what `hydra.callbacks` and any `_target_` name, and opens what its log handlers name. Only launchers and
    sweepers of installed packages may do so; bertflow itself has no callback and no log handler.
    """

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Compose as Hydra does, and refuse code. Raises ConfigError."""
        composed = super().load_configuration(*args, **kwargs)
        parts = {name: composed.hydra.get(name) for name in _LIVE}
        hydra: Any = {name: OmegaConf.to_container(part) if part else {} for name, part in parts.items()}
        logs = hydra["hydra_logging"], hydra["job_logging"]
        if hydra["callbacks"] or any(log.get(part) for log in logs for part in ("handlers", "formatters", "filters")):
            fix = "take it out: a config never names callbacks or log handlers"
            raise ConfigError("not allowed in a config", "hydra.callbacks, hydra_logging or job_logging", fix)
        for target in _targets([hydra["launcher"], hydra["sweeper"]]):
            if not str(target).startswith(("hydra._internal.core_plugins.", "hydra_plugins.")):
                raise ConfigError("not allowed in a config", f"_target_: {target}", "a config never names code")
        return composed


def _targets(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        yield from (value for key, value in content.items() if key == "_target_")
        for value in content.values():
            yield from _targets(value)
    elif isinstance(content, list):
        for item in content:
            yield from _targets(item)


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
            hydra = Hydra("bertflow", ClosedConfigLoader(path))
            instance.initialize(hydra)
            yield hydra
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
        except BertflowError:
            raise
        except Exception as error:  # Hydra answers some words with a ValueError or an assertion.
            if isinstance(error, OSError) and not isinstance(error, MissingConfigException):
                raise StorageError.of(error) from error
            raise explain(error, available, dict(word.partition("=")[::2] for word in readable)) from error


def validate(
    composed: DictConfig, choices: Mapping[str, str], words: Sequence[str], available: Catalogue
) -> Composition:
    """Activate what the composed config selects, and check every value against the plugins' types."""
    for key in composed:
        if key not in (*GROUPS, "debug"):
            raise ConfigError("no such setting", str(key), did_you_mean(str(key), [*GROUPS, "debug"]))
    active = activate(_selection(composed, choices), available)
    types = OmegaConf.create({"debug": BooleanNode(False)})
    for key, node in active.types.items():
        OmegaConf.update(types, key, node, force_add=True)
    keep_text(composed, types, words)
    try:
        # Resolved first: an interpolation must not get past the types.
        values: Any = OmegaConf.to_container(composed, resolve=True)
        for key in active.modules:
            functools.reduce(dict.__getitem__, key.split("."), values).pop("plugin")
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
        if node is None or option == "None":
            raise ConfigError("not one option is selected", group, f"write {group}=<option>; --help lists them")
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
