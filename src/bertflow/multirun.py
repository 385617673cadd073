"""`--multirun`: every combination of comma-separated values, through Hydra's sweepers and launchers."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from bertflow import config
from bertflow.cli import outcome, wants_traceback
from bertflow.errors import BertflowError, ConfigError
from bertflow.explain import explain
from bertflow.flow import Flow
from bertflow.redaction import print_error, redact, redacted_stderr
from bertflow.words import literal


@dataclass(frozen=True)
class Job:
    """How one job ended. A job never raises: that would end the others."""

    words: tuple[str, ...]
    as_json: bool = False
    text: str = ""
    error: str = ""
    code: int = 0


def multirun(words: Sequence[str], config_dirs: Sequence[str], config_name: str) -> tuple[str, int]:
    """Run all jobs; return the text for stdout, and the exit code of the first that failed."""
    available = config.catalogue(config_dirs)
    folders = tuple(str(folder) for folder in available.config_dirs)
    task = functools.partial(_run, config_dirs=folders)
    task.__module__ = __name__  # Hydra asks the task function for its module.
    readable = [literal(word, multirun=True) for word in words]
    with config.hydra_app(available) as hydra, _sweep_folder(readable) as places:
        try:
            batches = hydra.multirun(config_name, task, [*readable, *places, "hydra.mode=MULTIRUN"], False)
        except BertflowError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, MissingConfigException):
                raise
            raise explain(error, available) from error
    jobs: list[Job] = [returned.return_value for batch in batches for returned in batch]
    if not jobs:
        raise ConfigError("the sweep is empty", " ".join(words), "give at least one value for each key")
    for job in jobs:
        if job.error:
            print_error(f"{job.error} [{' '.join(job.words)}]")
    text = _json(jobs) if all(job.as_json for job in jobs) else _table(jobs)
    return text, next((job.code for job in jobs if job.code), 0)


@contextlib.contextmanager
def _sweep_folder(words: Sequence[str]) -> Iterator[list[str]]:
    """Give Hydra, which always writes a `multirun.yaml`, a folder that is removed; unless the user named one."""
    if any(word.lstrip("+").startswith(("hydra.sweep.dir=", "hydra.sweep=")) for word in words):
        if any(word != redact(word) for word in words):
            fix = "leave the token out: the Hub's is taken from HF_TOKEN"
            raise ConfigError("a word with a token would be written to a file", "hydra.sweep.dir", fix)
        yield []
        return
    for word in words:
        if re.match(r"\+*hydra\.(job\.chdir|output_subdir)=", word) or "hydra:runtime.output_dir" in word:
            raise ConfigError("a sweep has no folder of its own", word, "add hydra.sweep.dir=<folder>")
    with tempfile.TemporaryDirectory(prefix="bertflow-") as folder:
        yield [f"hydra.sweep.dir={Path(folder).as_posix()}"]


@redacted_stderr()  # A launcher's process has a stderr of its own.
def _run(job_config: Any, config_dirs: Sequence[str]) -> Job:
    """Run one job, in this process or in that of a launcher."""
    hydra = HydraConfig.get()
    words: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    job = functools.partial(Job, tuple(words), OmegaConf.select(job_config, "output.format") == "json")
    try:
        available = config.catalogue(config_dirs)
        flow = Flow(config.validate(job_config, dict(hydra.runtime.choices), words, available))
        return job(text=flow.render(flow.run()))
    except Exception as error:
        line, code = outcome(error)
        if wants_traceback(words):
            traceback.print_exc()
        return job(error=line, code=code)


def _json(jobs: Sequence[Job]) -> str:
    """Return one array with a document for each job; that of a failed one has its words and its error."""
    failed = [{"words": job.words, "error": job.error, "exit_code": job.code} for job in jobs]
    documents = [json.dumps(end) if job.error else job.text.strip() for job, end in zip(jobs, failed, strict=True)]
    return f"[{','.join(documents)}]\n"


def _table(jobs: Sequence[Job]) -> str:
    """Return each job's text under its words, and at the end a line for each job."""
    texts = [f"# {' '.join(job.words)}\n{job.text}\n" for job in jobs if job.text]
    width = max((len(" ".join(job.words)) for job in jobs), default=0)
    rows = [(str(number), " ".join(job.words), job.error or "ok") for number, job in enumerate(jobs)]
    lines = [f"{number:<5}{words:<{width}}  {end}" for number, words, end in [("job", "words", "outcome"), *rows]]
    return "".join(texts) + "\n".join(lines) + "\n"
