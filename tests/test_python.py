"""bertflow inside other programs: it gives the same results and leaves the process as it found it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import transformers
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase

import bertflow
from bertflow.config import catalogue, compose_run
from bertflow.flow import Flow


def state() -> dict[str, Any]:
    """What belongs to the process and a library must leave alone."""
    root = logging.getLogger()
    return {
        "cwd": Path.cwd(),
        "environment": dict(os.environ),
        "hydra": GlobalHydra.instance().hydra,
        "hydra config": HydraConfig.instance().cfg,
        "hydra job": JobRuntime.instance().get("name"),
        "hydra version base": VersionBase.instance().getbase(),
        "log handlers": list(root.handlers),
        "log level": root.level,
        "path": list(sys.path),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "streams": (sys.stdout, sys.stderr),
        "threads": torch.get_num_threads(),
        "torch dtype": torch.get_default_dtype(),
        "torch generator": torch.random.get_rng_state().tolist(),
        "torch gradients": torch.is_grad_enabled(),
        "transformers log": (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()),
        "warnings": list(warnings.filters),
    }


@pytest.mark.parametrize(
    "words",
    [
        ["model=tiny", "runtime.threads=1"],
        ["model=pretrained", "model.dtype=float64"],
        ["model=tiny", "input.ids=[[99999]]"],
        ["model=nosuch"],
    ],
)
def test_a_run_leaves_the_process_as_it_was(words: list[str]) -> None:
    bertflow.run("model=pretrained")  # What importing transformers itself changes has happened by now.
    before = state()
    with contextlib.suppress(bertflow.BertflowError):
        bertflow.run(*words)
    assert state() == before


def test_threads_give_what_one_thread_gives() -> None:
    calls = [
        (f"model={model}", f"runtime.seed={seed}", *extra)
        for seed, (model, extra) in enumerate(
            [("tiny", []), ("pretrained", []), ("tiny", ["runtime.threads=1"]), ("tiny", ["model.dtype=float64"])] * 4
        )
    ]
    expected = [bertflow.run(*words).outputs["last_hidden_state"] for words in calls]
    before = state()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda words: bertflow.run(*words).outputs["last_hidden_state"], calls))
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert state() == before


def test_nothing_is_kept_from_a_run() -> None:
    def kept() -> tuple[int, int]:
        gc.collect()
        types = [type(thing) for thing in gc.get_objects()]
        return sum(issubclass(t, Flow) for t in types), sum(issubclass(t, torch.nn.Module) for t in types)

    bertflow.run("model=tiny")
    modules, threads = kept(), threading.active_count()
    for _ in range(3):
        bertflow.run("model=tiny", "extension=[timing]")
    assert kept() == modules
    assert modules[0] == 0
    assert threading.active_count() == threads


def test_memory_does_not_grow() -> None:
    process = psutil.Process()

    def grown(runs: int) -> int:
        before = process.memory_info().rss
        for _ in range(runs):
            bertflow.run("model=tiny")
        gc.collect()
        return int(process.memory_info().rss - before)

    grown(10)
    # One model is 4 MB: twenty that were kept would be 80.
    assert grown(20) < 20e6


def test_inside_another_hydra_app(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/config.yaml").write_text("word: outer\nhydra: {job: {name: theirs}}\n")
    script = """
        import hydra
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.hydra_config import HydraConfig
        import bertflow

        @hydra.main(version_base="1.2", config_path="conf", config_name="config")
        def main(config):
            before = GlobalHydra.instance().hydra, HydraConfig.get().job.name, hydra.version.getbase()
            shape = bertflow.run("model=tiny", rows=[[101, 102]]).outputs["last_hidden_state"].shape
            inner = bertflow.compose("model=tiny").model.config.hidden_size
            try:
                bertflow.run("model=nosuch")
            except bertflow.ConfigError as error:
                print(error)
            after = GlobalHydra.instance().hydra, HydraConfig.get().job.name, hydra.version.getbase()
            print(config.word, shape, inner, before == after)

        main()
        """
    (tmp_path / "app.py").write_text(textwrap.dedent(script))
    words = [sys.executable, "app.py", "-m", "word=one,two", "hydra.sweep.dir=swept"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("[")]
    said = "no such option: model=nosuch"
    assert [line[: len(said)] for line in lines[::2]] == [said, said]
    assert lines[1::2] == ["one (1, 2, 32) 32 True", "two (1, 2, 32) 32 True"]


def test_compose_needs_no_torch() -> None:
    script = "import sys, bertflow; bertflow.compose('model=pretrained'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_rows_stream() -> None:
    endless = itertools.repeat([5, 6, 7])
    flow = Flow(compose_run(["model=tiny", "runtime.batch_tokens=30"], catalogue()), rows=endless)
    shapes = [outputs["pooler_output"].shape for outputs in itertools.islice(flow.map(), 3)]
    assert shapes == [(10, 32)] * 3
