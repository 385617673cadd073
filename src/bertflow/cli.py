"""argv -> discover -> Hydra -> run -> exit code.

stdout carries the result and nothing else: while a command runs, whatever prints goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from bertflow import interruption
from bertflow.errors import BertflowError, ConfigError, StorageError, did_you_mean
from bertflow.interruption import Terminated
from bertflow.redaction import print_error, redact, redacted_stderr

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bertflow.catalogue import Catalogue

EXIT_CLOSED_PIPE = 5
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError("wrong flag", message, "see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bertflow", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*", metavar="group=option | group.key=value")
    flag = parser.add_argument
    flag("-h", "--help", action="store_true", help="show groups, options and the keys of what is selected")
    flag("--version", action="store_true", help="show bertflow's version")
    flag("-c", "--cfg", choices=("job", "hydra", "all"), help="print the config instead of running")
    flag("-p", "--package", help="with --cfg: only this part, such as model")
    flag("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    flag("-m", "--multirun", action="store_true", help="run every combination of comma-separated values")
    flag("--config-dir", "-cd", action="append", default=[], help="a folder of your own options and presets")
    flag("--config-name", "-cn", default="config", help="the primary config to start from")
    flag("-i", "--info", nargs="?", const="all", choices=_INFO, help="Hydra's own report: " + ", ".join(_INFO))
    flag("-sc", "--shell-completion", action="store_true", help="install=bash, install=zsh, install=fish")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Separate flags, which may stand anywhere, from the words of the config."""
    parser = _parser()
    words = list(argv)
    for place, word in enumerate(words):
        # A word of the config behind --info is no kind of report.
        if word in ("-i", "--info") and words[place + 1 : place + 2] and words[place + 1] not in _INFO:
            words[place] = "--info=all"
    flags, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise ConfigError("no such flag", unknown[0], did_you_mean(unknown[0].partition("=")[0], known))
    if (flags.package or flags.resolve) and not flags.cfg:
        raise ConfigError("flag has no effect", "--package, --resolve", "add --cfg job")
    if flags.multirun and (flags.cfg or flags.info):
        raise ConfigError("flags exclude each other", "--multirun, --cfg, --info", "choose one")
    return flags


@interruption.interruptible()
@redacted_stderr()
def main(argv: Sequence[str] | None = None) -> int:
    """Run bertflow as a command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    flags = argparse.Namespace(words=words)
    try:
        with _rare_collections(), _prints_to_stderr():
            flags = parse(words)
            text, code = command(flags)
            interruption.check()
        return code if _write(redact(text)) else EXIT_CLOSED_PIPE
    except BaseException as failure:
        error = interruption.arrived() or failure
        line, code = outcome(error)
        if wants_traceback(flags.words):
            traceback.print_exc()
        print_error(line)
        return code


def script() -> NoReturn:
    """Run bertflow as the process's whole purpose: what `python -m bertflow` and the `bertflow` script call."""
    code = main()
    gc.freeze()  # The interpreter would search all that was imported for garbage once more before it exits.
    sys.exit(code)


def _write(text: str) -> bool:
    """Write the result; return False where the reader of the pipe has left, or stdout is closed."""
    if sys.stdout is None:
        return False
    if isinstance(sys.stdout, io.TextIOWrapper):  # A terminal without the letters of a path still shows the result.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # stdout is pointed elsewhere, so that the interpreter's last flush stays quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextlib.contextmanager
def _prints_to_stderr() -> Iterator[None]:
    """Keep the result clean of what a plugin or a library prints, the native code of a tokenizer included."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # A closed or replaced stream has none.
            sys.stdout.flush()
            stdout, stderr = sys.stdout.fileno(), sys.stderr.fileno()
            before = os.dup(stdout)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, stdout)
            os.dup2(stderr, stdout)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector run rarely: imports make many objects and no garbage, and it would walk them all."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def wants_traceback(words: Sequence[str]) -> bool:
    """Whether the user asked for the traceback of an error."""
    return "debug=true" in map(str.lower, words) or os.environ.get("HYDRA_FULL_ERROR") == "1"


def outcome(error: BaseException) -> tuple[str, int]:
    """Return the one line and the exit code that an exception ends in."""
    if isinstance(error, BertflowError):
        return str(error), error.exit_code
    if isinstance(error, Terminated):
        return "interrupted: SIGTERM - nothing is half-written; run it again", 143
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: SIGINT - nothing is half-written; run it again", 130
    if isinstance(error, OSError):
        return str(StorageError.of(error)), StorageError.exit_code
    reason = " ".join(f"{type(error).__name__} {error}".split())
    return f"internal error: {reason} - debug=true shows where; please report it", 1


def command(flags: argparse.Namespace) -> tuple[str, int]:
    """Do what the flags ask for; return the text for stdout and the exit code."""
    if flags.version:
        import importlib.metadata

        return f"bertflow {importlib.metadata.version('bertflow')}\n", 0
    if flags.multirun and not flags.help:
        from bertflow.multirun import multirun

        return multirun(flags.words, flags.config_dir, flags.config_name)
    return _text(flags), 0


def _text(flags: argparse.Namespace) -> str:
    """Return what a command that cannot half fail prints."""
    if flags.shell_completion:
        return _complete(flags)
    from bertflow import config
    from bertflow.explain import explain
    from bertflow.words import literal, refuse_hydra_words

    available = config.catalogue(flags.config_dir)
    if flags.help:
        from bertflow.help import help_text

        return help_text(flags.words, available, flags.config_name, _parser())
    if flags.info:
        shown = io.StringIO()
        with config.hydra_app(available) as hydra, contextlib.redirect_stdout(shown):
            words = [literal(word) for word in flags.words]
            try:
                hydra.show_info(flags.info, flags.config_name, words)
            except Exception as error:
                raise explain(error, available) from error
        return shown.getvalue()
    if flags.cfg:
        return _show_config(flags, available)
    from bertflow.flow import Flow

    refuse_hydra_words(flags.words)
    composition = config.compose_run(flags.words, available, flags.config_name)
    if composition.config.get("debug"):  # It may come from a config of the user's own.
        flags.words.append("debug=true")
    flow = Flow(composition, interactive=True)
    return flow.render(flow.run())


def _complete(flags: argparse.Namespace) -> str:
    """Print the shell's completion script, or answer its query; a line that cannot be completed has no answer."""
    from bertflow import config

    query = any(word.startswith("query=") for word in flags.words)
    typed = flags
    if query:
        with contextlib.suppress(BertflowError):
            typed = parse(os.environ.get("COMP_LINE", "").split()[1:])
    shown, hidden = io.StringIO(), io.StringIO()
    try:
        available = config.catalogue(typed.config_dir)
        with (
            config.hydra_app(available) as hydra,
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(hidden),
        ):
            hydra.shell_completion(typed.config_name, flags.words)
    except (Exception, SystemExit) as error:
        if not query:
            raise ConfigError("no such completion", " ".join(flags.words), "write install=bash, zsh or fish") from error
    return shown.getvalue()


def _show_config(flags: argparse.Namespace, available: Catalogue) -> str:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from bertflow import config
    from bertflow.explain import explain

    shown = config.compose_run(flags.words, available, flags.config_name).config
    if flags.cfg != "job":
        hydra = config.compose_hydra(flags.words, available, flags.config_name).hydra
        shown = OmegaConf.create({**({} if flags.cfg == "hydra" else shown), "hydra": hydra})
    try:
        part: Any = _part(shown, flags.package) if flags.package else shown
        if not isinstance(part, DictConfig):
            return f"{part}\n".replace("None\n", "null\n")
        return OmegaConf.to_yaml(part, resolve=flags.resolve)
    except OmegaConfBaseException as error:
        raise explain(error, available) from error


def _part(shown: DictConfig, key: str) -> Any:
    """Return a part of the config, null and missing values too. Raises ConfigError for a key that is not there."""
    from omegaconf import DictConfig, OmegaConf

    part: Any = shown
    for name in key.split("."):
        names = list(map(str, part)) if isinstance(part, DictConfig) else []
        if name not in names:
            raise ConfigError("no such part of the config", key, did_you_mean(name, names))
        part = "???" if OmegaConf.is_missing(part, name) else part[name]
    return part
