"""Activating the plugins that a config selects, and only those.

An activated plugin is imported, registered in the run's own plugin manager, and held to the rules of its group.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import CodeType, ModuleType
from typing import Any

import pluggy
from omegaconf import DictConfig, OmegaConf

from bertflow import defaults, hookspecs
from bertflow.catalogue import GROUPS, OWNERS, Catalogue, Option, Package
from bertflow.errors import BertflowError, ConfigError, PluginError, did_you_mean


@dataclass
class Active:
    """The plugins of one run, in a manager of their own.

    Keys are groups, or `extension.<option>`: `modules` and `types` (each plugin's settings, as OmegaConf's structured
    config of its `Config`) go by them, `names` too: the words that name the plugin in an error.
    """

    manager: pluggy.PluginManager
    modules: dict[str, ModuleType] = field(default_factory=dict)
    types: dict[str, DictConfig] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    _code: dict[CodeType, str] = field(default_factory=dict)

    def add(self, key: str, module: ModuleType, who: str) -> None:
        """Note an activated plugin."""
        self.modules[key], self.names[key] = module, who
        for caller in self.manager.get_hookcallers(module) or ():
            for impl in caller.get_hookimpls():
                if impl.plugin is module:
                    self._code[impl.function.__code__] = who

    def blame(self, error: BaseException, default: str) -> str:
        """Name the plugin whose code raised: the innermost frame that is one of this run's hooks."""
        name, trace = self.names.get(default, default), error.__traceback__
        while trace:
            name = self._code.get(trace.tb_frame.f_code, name)
            trace = trace.tb_next
        return name


@dataclass
class NoSettings:
    """The `Config` of a plugin that has no keys."""


def activate(selection: Iterable[tuple[str, str, str]], catalogue: Catalogue) -> Active:
    """Import and register the selected plugins, and check that each keeps the rules of its group.

    Args:
        selection: (group, option, module) of each selected option.
        catalogue: what there is.

    Raises:
        PluginError: a plugin that cannot be imported, is ambiguous, needs another bertflow, or breaks the hook rules.
    """
    manager = pluggy.PluginManager("bertflow")
    manager.add_hookspecs(hookspecs)
    manager.register(defaults, "defaults")
    active = Active(manager)
    for group, option, name in selection:
        catalogue.refuse_duplicates(group, option)
        catalogue.refuse_duplicates(group, name)  # A preset inherits the option that is named like its plugin.
        package = catalogue.package_of(group, name)
        who = f"{group}={option} of {package}"
        _check_requirement(package, who)
        module = _import(f"{package.import_name}.{group}.{name}", who)
        if module in active.modules.values():
            raise ConfigError(
                "one plugin is selected twice", f"{group}={option}", "choose one of the options that use it"
            )
        _register(manager, module, who)
        _check_hooks(manager, module, group, who)
        key = f"extension.{option}" if group == "extension" else group
        active.add(key, module, who)
        try:
            active.types[key] = OmegaConf.structured(getattr(module, "Config", NoSettings))
        except Exception as error:
            raise failure(error, who, "the types of its Config") from error
    return active


def _check_requirement(package: Package, who: str) -> None:
    about_us = [text for text in package.requires if re.match(r"bertflow\b(?![-_.])", text)]
    if not about_us:  # packaging takes longer to import than most plugins.
        return
    from packaging.requirements import InvalidRequirement, Requirement

    ours = importlib.metadata.version("bertflow")
    for text in about_us:
        with contextlib.suppress(InvalidRequirement):
            need = Requirement(text)
            wanted = need.marker is None or need.marker.evaluate({"extra": ""})
            if wanted and need.name == "bertflow" and not need.specifier.contains(ours, prereleases=True):
                fix = f"install bertflow{need.specifier} or another release of {package.distribution}"
                raise PluginError(f"plugin needs bertflow{need.specifier}, this is {ours}", who, fix)


def _import(module_name: str, who: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except BertflowError:
        raise
    except (Exception, SystemExit) as error:
        raise failure(error, who, "the import") from error


def failure(error: BaseException, who: str, where: str) -> PluginError:
    """Return the error that a plugin's own exception ends in."""
    missing = error.name.split(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else ""
    if missing and importlib.util.find_spec(missing) is None:
        fix = f"pip install {missing.replace('_', '-')}"
        return PluginError(f"plugin needs the package {missing}, which is not installed", who, fix)
    reason = " ".join(f"{type(error).__name__} in {where}, {error}".split())
    return PluginError(f"plugin failed ({reason.rstrip(' ,')})", who, "debug=true shows where")


def _register(manager: pluggy.PluginManager, module: ModuleType, who: str) -> None:
    specified = {name for name in dir(hookspecs) if hasattr(getattr(hookspecs, name), "bertflow_spec")}
    for name in vars(module):
        if manager.parse_hookimpl_opts(module, name) is not None and name not in specified:
            raise PluginError(f"there is no hook {name}", who, did_you_mean(name, specified))
    try:
        manager.register(module, who)
    except pluggy.PluginValidationError as error:
        # The first of pluggy's lines names the hook, the last one the wrong arguments.
        first, *_, reason = str(error).strip().splitlines()
        hook = first.rpartition("for hook ")[2]
        raise PluginError(f"hook {hook} does not fit its specification ({reason})", who, _signature(hook)) from error


def _signature(hook: str) -> str:
    specification = getattr(hookspecs, hook.strip("'"), None)
    return f"it takes {', '.join(inspect.signature(specification).parameters)}" if specification else "see its page"


def _check_hooks(manager: pluggy.PluginManager, module: ModuleType, group: str, who: str) -> None:
    callers = manager.get_hookcallers(module) or []
    own = {
        caller.name
        for caller in callers
        for impl in caller.get_hookimpls()
        if impl.plugin is module and not (impl.wrapper or impl.hookwrapper)
    }
    for hook in sorted(own):
        if OWNERS.get(hook, group) != group:
            fix = "add wrapper=True to its mark, and yield"
            raise PluginError(f"hook {hook} belongs to {OWNERS[hook]}; {group} may only wrap it", who, fix)
    missing = [hook for hook in GROUPS[group].owes if hook not in own]
    fix = "mark it with @bertflow.hookimpl, the marker of project bertflow"
    if missing:
        raise PluginError(f"plugin does not implement {missing[0]}, which {group} owes", who, fix)
    if not callers:
        raise PluginError("plugin implements no hook", who, fix)


def survey(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Import every installed plugin by itself, and say what each option brings and what is wrong with it.

    Returns:
        One mapping per option: `option` (as `group=name`), `package`, `distribution`, `version`, `hooks` (the names of
        those that its plugin implements; a preset has none of its own) and `problem` (None for none). A package that
        offers nothing has one too, with `option` None.
    """
    rows = []
    for package in catalogue.packages:
        who = {"package": package.import_name, "distribution": package.distribution, "version": package.version}
        offered = [
            (group, place)
            for group, options in catalogue.options.items()
            for places in options.values()
            for place in places
            if place.owner == package.import_name
        ]
        for group, place in offered:
            hooks, problem = _try(catalogue, group, place)
            rows.append({"option": f"{group}={place.name}", **who, "problem": problem, "hooks": hooks})
        if not offered:
            problem = f"folder {package.import_name}/conf holds no option"
            rows.append({"option": None, **who, "problem": problem, "hooks": []})
    return rows


def _try(catalogue: Catalogue, group: str, place: Option) -> tuple[list[str], str | None]:
    """Activate one option's plugin alone; return the hooks that it implements, and its problem."""
    plugin = re.search(r"^plugin:[ \t]*(\w+)", place.path.read_text("utf-8", errors="replace"), re.MULTILINE)
    try:
        catalogue.refuse_duplicates(group, place.name)
        active = activate([(group, place.name, plugin[1])], catalogue) if plugin else None
    except BertflowError as error:
        return [], str(error)
    callers = active.manager.get_hookcallers(next(iter(active.modules.values()))) if active else None
    return sorted(caller.name for caller in callers or ()), None
