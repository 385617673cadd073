"""Finding plugins without importing them, and activating those that a config selects.

A plugin package is named by an entry point of group `bertflow` and holds two kinds of folder:
`conf/<group>/<option>.yaml` and `<group>/<module>.py`. Discovery reads metadata and lists folders; only `activate`
imports, and only what is selected.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from bertflow import defaults, hookspecs
from bertflow.errors import BertflowError, ConfigError, PluginError, did_you_mean

ENTRY_POINTS = "bertflow"
DISABLE = "BERTFLOW_DISABLE"
"""Environment variable: names of plugin packages to leave out, separated by commas."""


@dataclass(frozen=True)
class Group:
    """One config group: what it decides, and the hooks that its plugin owes."""

    purpose: str
    owes: tuple[str, ...]


GROUPS: Mapping[str, Group] = {
    "model": Group(
        "what is built and which weights it gets",
        ("build_model", "load_weights", "tokenize", "forward", "save_model"),
    ),
    "task": Group("what is done with it", ("run_task",)),
    "input": Group("where the rows come from", ("read_rows",)),
    "output": Group("where the result goes", ("write_result", "render_result")),
    "runtime": Group("device, dtype, seed and batches", ("place_model", "make_batches")),
    "save": Group("whether the model is saved", ("save_checkpoint",)),
    "engine": Group("where the work runs", ("map_work",)),
    "extension": Group("what wraps hooks; several may be chosen", ()),
}

OWNERS: Mapping[str, str] = {hook: name for name, group in GROUPS.items() for hook in group.owes} | {
    "describe_model": "model"
}
"""Hook -> the group whose plugin implements it."""


@dataclass(frozen=True)
class Package:
    """A plugin package as its metadata and folders describe it; nothing of it has been imported."""

    name: str
    import_name: str
    distribution: str
    version: str
    requires: tuple[str, ...] = ()
    folder: Path | None = None
    conf: Path | None = None

    def __str__(self) -> str:
        return f"{self.import_name} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Option:
    """One selectable option: the YAML that defines it and who brings it."""

    name: str
    path: Path
    owner: str


@dataclass(frozen=True)
class Catalogue:
    """All that can be selected: the packages, in the order of the search path, and the user's config folders."""

    core_conf: Path
    packages: tuple[Package, ...] = ()
    config_dirs: tuple[Path, ...] = ()

    @cached_property
    def conf_dirs(self) -> tuple[tuple[Path, str], ...]:
        """Folder and owner of every place for YAML files: the core's first, then the packages', then the user's."""
        packages = [(p.conf, p.import_name) for p in self.packages if p.conf]
        standard = next(
            (p.import_name for p in self.packages if p.distribution == "bertflow" and not p.conf), "bertflow"
        )
        return ((self.core_conf, standard), *packages, *((d, str(d)) for d in self.config_dirs))

    @cached_property
    def options(self) -> Mapping[str, Mapping[str, tuple[Option, ...]]]:
        """Group -> option -> where it is defined; two places for one option are refused when it is selected."""
        found: dict[str, dict[str, tuple[Option, ...]]] = {group: {} for group in GROUPS}
        for folder, owner in self.conf_dirs:
            for group, options in found.items():
                for path in sorted((folder / group).glob("*.yaml")):
                    options[path.stem] = (*options.get(path.stem, ()), Option(path.stem, path, owner))
        return found

    @cached_property
    def modules(self) -> Mapping[tuple[str, str], tuple[Package, ...]]:
        """(group, module) -> the packages that hold it, read from their folders."""
        found: dict[tuple[str, str], tuple[Package, ...]] = {}
        for package in self.packages:
            for group in GROUPS:
                for name in _module_names(package.folder, group):
                    found[group, name] = (*found.get((group, name), ()), package)
        return found

    def refuse_duplicates(self, group: str, option: str) -> None:
        """Raise PluginError where two places offer the selected option."""
        places = self.options[group].get(option, ())
        if len(places) > 1:
            owners = " and ".join(place.owner for place in places)
            raise PluginError(f"{group}={option} is offered twice", owners, "uninstall or rename one of them")

    def package_of(self, group: str, module: str) -> Package:
        """Return the one package that holds the plugin module; raise PluginError for none or several."""
        packages = self.modules.get((group, module), ())
        if not packages:
            known = [name for owner, name in self.modules if owner == group]
            raise PluginError("no such plugin module", f"{group}/{module}.py", did_you_mean(module, known))
        rivals = [p for p in self.packages if p.name == packages[0].name] if len(packages) == 1 else packages
        if len(rivals) > 1:
            names = " and ".join(map(str, rivals))
            raise PluginError(f"two plugin packages claim {group} plugin {module}", names, "uninstall one of them")
        return packages[0]


def _module_names(folder: Path | None, group: str) -> Iterator[str]:
    if folder is None:
        return
    for path in sorted((folder / group).glob("*")):
        if path.suffix == ".py" and path.stem.isidentifier() and path.stem != "__init__":
            yield path.stem
        elif (path / "__init__.py").is_file():
            yield path.name


def _package_folder(import_name: str) -> Path | None:
    """Find a package's folder; only its top level is looked up, since a dotted lookup would import the parents."""
    top, *rest = import_name.split(".")
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(top)
        for place in (spec and spec.submodule_search_locations) or ():
            folder = Path(place, *rest)
            if folder.is_dir():
                return folder
    return None


def discover(core_conf: Path, config_dirs: Iterable[Path] = ()) -> Catalogue:
    """List the installed plugin packages, without those that `BERTFLOW_DISABLE` names. Imports none of them.

    Raises:
        ConfigError: `BERTFLOW_DISABLE` names a package that is not there.
    """
    packages = [_package(point) for point in sorted(_entry_points(), key=lambda point: (point.name, point.value))]
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")} - {""}
    for name in sorted(disabled - {package.name for package in packages}):
        fix = did_you_mean(name, {package.name for package in packages})
        raise ConfigError("no such plugin package", f"{DISABLE}={name}", fix)
    return Catalogue(core_conf, tuple(p for p in packages if p.name not in disabled), tuple(config_dirs))


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    with contextlib.suppress(Exception):
        return importlib.metadata.entry_points(group=ENTRY_POINTS)
    # One distribution's metadata cannot be read; the others are found one by one.
    found: dict[tuple[str, str], importlib.metadata.EntryPoint] = {}
    for dist in importlib.metadata.distributions():
        with contextlib.suppress(Exception):
            for point in dist.entry_points.select(group=ENTRY_POINTS):
                found.setdefault((dist.name, point.name), point)
    return found.values()


def _package(point: importlib.metadata.EntryPoint) -> Package:
    dist, folder = point.dist, _package_folder(point.module)
    return Package(
        name=point.name,
        import_name=point.module,
        distribution=dist.name if dist else "unknown distribution",
        version=dist.version if dist else "?",
        requires=tuple(dist.requires or ()) if dist else (),
        folder=folder,
        conf=folder / "conf" if folder and (folder / "conf").is_dir() else None,
    )


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
    from packaging.requirements import InvalidRequirement, Requirement

    ours = importlib.metadata.version("bertflow")
    for text in package.requires:
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
        # pluggy's message is four lines; the last one names the wrong arguments.
        reason = str(error).strip().splitlines()[-1]
        raise PluginError(f"hook does not fit its specification ({reason})", who, "see the hook's signature") from error


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
