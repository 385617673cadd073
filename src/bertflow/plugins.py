"""Activating the plugins that a config selects, and only those.

An activated plugin is imported, registered in the run's own plugin manager, and held to the rules of its group.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pluggy

from bertflow import defaults, hookspecs
from bertflow.catalogue import GROUPS, Catalogue, Option, Package
from bertflow.errors import BertflowError, PluginError, did_you_mean


@dataclass
class Active:
    """The plugins of one run: a fresh manager, and for each registered module the words that name it in an error."""

    manager: pluggy.PluginManager
    modules: dict[str, ModuleType] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def blame(self, error: BaseException, default: str) -> str:
        """Name the plugin whose code raised: the innermost frame that belongs to a plugin module of this run."""
        name, trace = self.names.get(default, default), error.__traceback__
        while trace:
            name = self.names.get(trace.tb_frame.f_globals.get("__name__", ""), name)
            trace = trace.tb_next
        return name


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
        package = catalogue.package_of(group, name)
        who = f"{group}={option} of {package}"
        _check_requirement(package, who)
        module = _import(f"{package.import_name}.{group}.{name}", who)
        _register(manager, module, who)
        _check_owed(manager, module, group, who)
        key = f"extension.{option}" if group == "extension" else group
        active.modules[key] = module
        active.names[key] = active.names[module.__name__] = who
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
            if need.name == "bertflow" and not need.specifier.contains(ours, prereleases=True):
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
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.split(".")[0]
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


def _check_owed(manager: pluggy.PluginManager, module: ModuleType, group: str, who: str) -> None:
    callers = manager.get_hookcallers(module) or []
    fix = "mark it with @bertflow.hookimpl, the marker of project bertflow"
    for hook in GROUPS[group].owes:
        owners = [i for c in callers if c.name == hook for i in c.get_hookimpls() if i.plugin is module]
        if not any(not impl.wrapper and not impl.hookwrapper for impl in owners):
            raise PluginError(f"plugin does not implement {hook}, which {group} owes", who, fix)
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
    except PluginError as error:
        return [], str(error)
    callers = active.manager.get_hookcallers(next(iter(active.modules.values()))) if active else None
    return sorted(caller.name for caller in callers or ()), None
