"""What can be selected: groups, packages, options. Nothing here imports a plugin.

A plugin package is named by an entry point of group `bertflow` and holds two kinds of folder:
`conf/<group>/<option>.yaml` and `<group>/<module>.py`. Discovery reads metadata and lists folders.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bertflow.errors import ConfigError, PluginError, did_you_mean

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
    "runtime": Group("device, dtype, seed and batches", ("place_model", "make_batches", "run_batch")),
    "save": Group("whether the model is saved", ("save_checkpoint",)),
    "engine": Group("where the work runs", ("map_work",)),
    "extension": Group("what wraps hooks; several may be chosen", ()),
}

OWNERS: Mapping[str, str] = {hook: name for name, group in GROUPS.items() for hook in group.owes} | {
    "describe_model": "model",
    "describe_input": "input",
    "describe_runtime": "runtime",
    "run_rows": "runtime",
    "open_output": "output",
    "inspect_model": "model",
    "verify_model": "model",
}
"""Hook -> the group whose plugin implements it."""


@dataclass(frozen=True)
class Package:
    """A plugin package as its entry point and folders describe it; nothing of it has been imported."""

    point: importlib.metadata.EntryPoint
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The entry point's name, which `BERTFLOW_DISABLE` takes."""
        return self.point.name

    @property
    def import_name(self) -> str:
        """The package to import."""
        return self.point.module

    # The metadata of a distribution takes a millisecond to read, so it is read when it is asked for.
    @cached_property
    def distribution(self) -> str:
        """The name of the distribution that brings the package."""
        return self.point.dist.name if self.point.dist else "unknown distribution"

    @cached_property
    def version(self) -> str:
        """The distribution's version."""
        return self.point.dist.version if self.point.dist else "?"

    @cached_property
    def requires(self) -> Sequence[str]:
        """What the distribution depends on."""
        return (self.point.dist.requires if self.point.dist else None) or ()

    @cached_property
    def conf(self) -> Path | None:
        """The package's own folder of YAML files."""
        folder = self.folder / "conf" if self.folder else None
        return folder if folder and folder.is_dir() else None

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
        ours = (p.import_name for p in self.packages if not p.conf and p.distribution == "bertflow")
        standard = next(ours, "bertflow")
        return ((self.core_conf, standard), *packages, *((d, str(d)) for d in self.config_dirs))

    @cached_property
    def options(self) -> Mapping[str, Mapping[str, tuple[Option, ...]]]:
        """Group -> option -> where it is defined; two places for one option are refused when it is selected."""
        found: dict[str, dict[str, tuple[Option, ...]]] = {group: {} for group in GROUPS}
        for folder, owner in self.conf_dirs:
            for group, options in found.items():
                for file in _listdir(folder / group):
                    name, dot, suffix = file.rpartition(".")
                    if dot and suffix == "yaml":
                        options[name] = (*options.get(name, ()), Option(name, folder / group / file, owner))
        return found

    @cached_property
    def modules(self) -> Mapping[tuple[str, str], tuple[Package, ...]]:
        """(group, module) -> the packages that hold it, read from their folders."""
        found: dict[tuple[str, str], tuple[Package, ...]] = {}
        for package in self.packages:
            for group in GROUPS:
                for name in _module_names(package.folder, group) if package.folder else ():
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


def _listdir(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:  # Most packages have few of the groups.
        return []


def _module_names(folder: Path, group: str) -> Iterator[str]:
    for file in _listdir(folder / group):
        name, dot, suffix = file.rpartition(".")
        if dot and suffix == "py" and name.isidentifier() and name != "__init__":
            yield name
        elif not dot and (folder / group / file / "__init__.py").is_file():
            yield file


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
    points = sorted(_entry_points(), key=lambda point: (point.name, point.value))
    packages = [Package(point, _package_folder(point.module)) for point in points]
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
