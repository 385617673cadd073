"""Plugins that other people write: found without an import, held to the rules, named when they break."""

from __future__ import annotations

import ast
import json
from importlib.metadata import version

import pytest

from conftest import Command, MakePlugin

GOOD = """
import bertflow
from bertflow.hookspecs import Result

@bertflow.hookimpl
def run_task(flow):
    return Result("mine", report={"answer": 42})
"""
MINE = {"conf/task/mine.yaml": "# Mine\nplugin: mine\n"}


def test_a_plugin_is_found_listed_and_used(shell: Command, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": GOOD})
    assert shell("task=mine", "output.format=json", env=env).json["report"] == {"answer": 42}
    line = next(line for line in shell("--help", env=env).out.splitlines() if " mine " in line)
    assert "Mine" in line
    assert line.endswith("bertflow_acme")
    assert "bertflow_acme" in shell("--info", "searchpath", env=env).out


def test_a_preset_needs_no_module(shell: Command, plugin: MakePlugin) -> None:
    env = plugin({"conf/model/small.yaml": "defaults: [scratch, _self_]\nconfig: {num_hidden_layers: 3}\n"})
    shown = shell("model=small", "--cfg", "job", "-p", "model.config.num_hidden_layers", env=env)
    assert shown.out == "3\n"


def test_a_dotted_package_is_found_without_importing_its_parents(shell: Command, plugin: MakePlugin) -> None:
    inner = {f"inner/{path}": text for path, text in {**MINE, "task/mine.py": GOOD, "__init__.py": ""}.items()}
    env = plugin({**inner, "__init__.py": "print('imported')"}, points="acme = bertflow_acme.inner")
    assert "imported" not in shell("--help", env=env).err
    assert shell("task=mine", env=env).code == 0


BROKEN = {
    "raises at import": ("raise ValueError('boom')", ["ValueError", "boom"]),
    "exits at import": ("import sys\nsys.exit(3)", ["SystemExit"]),
    "is no Python": ("def", ["SyntaxError"]),
    "needs a package": ("import fancy_lib", ["fancy_lib", "pip install fancy-lib"]),
    "misspells a hook": (GOOD + "\n@bertflow.hookimpl\ndef froward(): pass\n", ["froward", "did you mean forward?"]),
    "misspells the hook": (GOOD.replace("run_task", "run_tsk"), ["run_tsk", "did you mean run_task?"]),
    "takes a wrong argument": (GOOD.replace("run_task(flow", "run_task(flwo"), ["run_task", "flwo"]),
    "uses another marker": (
        GOOD.replace("import bertflow", "import pluggy\nhookimpl = pluggy.HookimplMarker('other')").replace(
            "@bertflow.", "@"
        ),
        ["run_task", "@bertflow.hookimpl"],
    ),
    "has no marker": (GOOD.replace("@bertflow.hookimpl", ""), ["run_task", "@bertflow.hookimpl"]),
    "returns None": (GOOD.replace("return", "x ="), ["run_task", "None"]),
    "raises in a hook": (GOOD.replace("return", "1/0 #"), ["run_task", "ZeroDivisionError"]),
    "exits in a hook": (GOOD.replace("return", "raise SystemExit(0) #"), ["run_task", "SystemExit"]),
    "needs a package in a hook": (GOOD.replace("return", "import fancy_lib #"), ["pip install fancy-lib"]),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_named_and_hurts_nobody_else(fault: str, shell: Command, plugin: MakePlugin) -> None:
    code, said = BROKEN[fault]
    env = plugin({**MINE, "task/mine.py": "print('noise')\n" + code})
    refused = shell("task=mine", "output.format=json", env=env)
    assert refused.code == 7
    assert refused.out == ""
    last = refused.err.splitlines()[-1]
    for part in ("task=mine", "bertflow_acme", "bertflow-acme 1.2", *said):
        assert part in last
    assert "Traceback" not in refused.err
    for words in (["--help"], ["--cfg", "job"], ["task=plugins", "output.format=json"]):
        spared = shell(*words, env=env)
        assert spared.code == 0
        assert "noise" not in spared.out


def test_printing_at_import_and_in_hooks_leaves_stdout_clean(shell: Command, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": "print('noise')\n" + GOOD.replace("return", "print('noise')\n    return")})
    run = shell("task=mine", "output.format=json", env=env)
    assert run.json["task"] == "mine"
    assert run.err == "noise\nnoise\n"


def test_the_plugin_is_named_whose_code_raised_in_somebody_elses_hook(shell: Command, plugin: MakePlugin) -> None:
    wrapper = "import bertflow\n@bertflow.hookimpl(wrapper=True)\ndef run_task():\n    result = yield\n    1/0\n"
    files = {"conf/extension/bad.yaml": "# @package extension.bad\nplugin: bad\n", "extension/bad.py": wrapper}
    refused = shell("task=plugins", "extension=[bad]", env=plugin(files))
    assert refused.code == 7
    assert "extension=bad of bertflow_acme (bertflow-acme 1.2)" in refused.error


def test_a_hook_from_a_helper_module_is_blamed_on_the_plugin_that_uses_it(shell: Command, plugin: MakePlugin) -> None:
    helper = "import bertflow\n@bertflow.hookimpl\ndef run_task():\n    1/0\n"
    files = {**MINE, "helper.py": helper, "task/mine.py": "from bertflow_acme.helper import run_task\n"}
    wrapper = "import bertflow\n@bertflow.hookimpl(wrapper=True)\ndef run_task():\n    return (yield)\n"
    files |= {"conf/extension/idle.yaml": "# @package extension.idle\nplugin: idle\n", "extension/idle.py": wrapper}
    refused = shell("task=mine", "extension=[idle]", env=plugin(files))
    assert refused.code == 7
    assert "task=mine of bertflow_acme" in refused.error


def test_only_the_owner_implements_a_hook(shell: Command, plugin: MakePlugin) -> None:
    hijack = "import bertflow\n@bertflow.hookimpl\ndef forward():\n    return {}\n"
    files = {
        "conf/extension/forgot.yaml": "# @package extension.forgot\nplugin: forgot\n",
        "extension/forgot.py": hijack,
    }
    refused = shell("model=tiny", "extension=[forgot]", env=plugin(files))
    assert refused.code == 7
    assert "wrapper=True" in refused.error


CONFIGS = {
    "is no dataclass": "class Config:\n    word: str\n",
    "has a type that OmegaConf lacks": "import decimal\n@dataclass\nclass Config:\n    word: decimal.Decimal\n",
    "refuses in its own words": "@dataclass\nclass Config:\n    word: str\n    def __post_init__(self):\n        1/0\n",
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_faulty_config_is_the_plugins_fault(fault: str, shell: Command, plugin: MakePlugin) -> None:
    files = {"conf/task/mine.yaml": "plugin: mine\nword: a\n"}
    env = plugin({**files, "task/mine.py": f"from dataclasses import dataclass\n{CONFIGS[fault]}\n{GOOD}"})
    refused = shell("task=mine", env=env)
    assert refused.code == 7
    assert "task=mine of bertflow_acme (bertflow-acme 1.2)" in refused.error
    assert shell("task=plugins", env=env).code == 0


COUNTS = """
import bertflow
from bertflow_standard.model.scratch import Config, build_model, describe_model, load_weights, save_model
from bertflow_standard import transformers_model as standard

@bertflow.hookimpl
def tokenize(model, rows, start):
    return standard.tokenize(model, rows, start){cut_rows}

@bertflow.hookimpl
def forward(model, batch):
    return {{name: array{cut_outputs} for name, array in standard.forward(model, batch).items()}}
"""


@pytest.mark.parametrize(("cut", "hook"), [("cut_rows", "tokenize"), ("cut_outputs", "forward")])
def test_a_row_that_gets_lost_is_noticed(cut: str, hook: str, shell: Command, plugin: MakePlugin) -> None:
    module = COUNTS.format(**{"cut_rows": "", "cut_outputs": "", cut: "[1:]"})
    preset = "defaults: [tiny, _self_]\nplugin: lossy\n"
    refused = shell("model=lossy", env=plugin({"conf/model/lossy.yaml": preset, "model/lossy.py": module}))
    assert refused.code == 7
    for part in (hook, "2 rows for 3", "model=lossy of bertflow_acme"):
        assert part in refused.error


def test_a_preset_of_an_extension(shell: Command, plugin: MakePlugin) -> None:
    module = (
        "import dataclasses, sys, bertflow\n"
        "@dataclasses.dataclass\nclass Config:\n    word: str\n"
        "@bertflow.hookimpl\ndef check_run(flow):\n    print(flow.settings_of(__name__).word, file=sys.stderr)\n"
    )
    files = {
        "conf/extension/say.yaml": "# @package extension.say\nplugin: say\nword: plain\n",
        "conf/extension/shout.yaml": "# @package extension.shout\nplugin: say\nword: loud\n",
        "extension/say.py": module,
    }
    env = plugin(files)
    assert shell("task=plugins", "extension=[shout]", env=env).err == "loud\n"
    refused = shell("task=plugins", "extension=[say,shout]", env=env)
    assert refused.code == 2
    assert "extension=shout" in refused.error


def test_a_missing_module_of_an_installed_package_is_no_missing_package(shell: Command, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": "import bertflow_acme.nothing"})
    refused = shell("task=mine", env=env)
    assert refused.code == 7
    assert "pip install" not in refused.error
    assert "bertflow_acme.nothing" in refused.error


def test_an_extension_without_hooks_is_an_error(shell: Command, plugin: MakePlugin) -> None:
    files = {"conf/extension/idle.yaml": "# @package extension.idle\nplugin: idle\n", "extension/idle.py": ""}
    refused = shell("task=plugins", "extension=[idle]", env=plugin(files))
    assert refused.code == 7
    assert "no hook" in refused.error


def test_keys_of_extensions_stand_side_by_side(shell: Command, plugin: MakePlugin) -> None:
    module = (
        "import dataclasses, sys, bertflow\n"
        "@dataclasses.dataclass\nclass Config:\n    word: str\n"
        "@bertflow.hookimpl\ndef check_run(flow):\n"
        "    print(flow.settings['extension.{0}'].word, file=sys.stderr)\n"
    )
    files = {}
    for name in ("one", "two"):
        files[f"conf/extension/{name}.yaml"] = f"# @package extension.{name}\nplugin: {name}\nword: {name}\n"
        files[f"extension/{name}.py"] = module.format(name)
    env = plugin(files)
    words = ("task=plugins", "extension=[one,two]")
    run = shell(*words, "extension.one.word=changed", env=env)
    assert sorted(run.err.split()) == ["changed", "two"]
    refused = shell(*words, "extension.one.wrd=x", env=env)
    assert refused.code == 2
    assert "extension=one" in refused.error
    assert "did you mean word?" in refused.error


def test_a_plugin_for_a_newer_bertflow(shell: Command, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": GOOD}, requires="bertflow>=99")
    refused = shell("task=mine", env=env)
    assert refused.code == 7
    for part in ("bertflow>=99", version("bertflow"), "bertflow-acme 1.2"):
        assert part in refused.error


def test_a_newer_bertflow_for_an_extra_alone(shell: Command, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": GOOD}, requires='bertflow>=99; extra == "future"')
    assert shell("task=mine", env=env).code == 0


@pytest.mark.parametrize("report", ["'hello'", "[]", "['a', 'b']", "{'a': None}", "[{'a': 1}, {'b': 3}]", "7"])
def test_any_report_is_shown(report: str, shell: Command, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": GOOD.replace('{"answer": 42}', report)})
    assert shell("task=mine", "output.format=json", env=env).json["report"] == ast.literal_eval(report)
    assert shell("task=mine", env=env).code == 0


@pytest.mark.parametrize("shared", ["option", "module"])
def test_two_packages_that_offer_the_same(shared: str, shell: Command, plugin: MakePlugin) -> None:
    plugin({**MINE, "task/mine.py": GOOD})
    files = {**MINE, "task/mine.py": GOOD} if shared == "option" else {"task/mine.py": GOOD}
    env = plugin(files, name="rival", version="3.4")
    refused = shell("task=mine", env=env)
    assert refused.code == 7
    assert "bertflow_acme" in refused.error
    assert "bertflow_rival" in refused.error
    assert shell("--cfg", "job", env=env).code == 0


def test_two_distributions_with_one_name(shell: Command, plugin: MakePlugin) -> None:
    plugin({**MINE, "task/mine.py": GOOD}, points="same = bertflow_acme")
    other = {"conf/task/other.yaml": "plugin: other\n", "task/other.py": GOOD}
    env = plugin(other, name="rival", version="3.4", points="same = bertflow_rival")
    for option in ("mine", "other"):
        refused = shell(f"task={option}", env=env)
        assert refused.code == 7
        assert "bertflow-acme 1.2" in refused.error
        assert "bertflow-rival 3.4" in refused.error
    assert shell("task=plugins", env=env).code == 0


def test_metadata_that_cannot_be_read_hurts_nobody(shell: Command, plugin: MakePlugin) -> None:
    plugin({**MINE, "task/mine.py": GOOD})
    env = plugin({}, name="odd", points="this is no entry point")
    assert shell("task=mine", env=env).code == 0
    assert shell("--help", env=env).code == 0


def test_a_package_that_is_not_there_is_reported(shell: Command, plugin: MakePlugin) -> None:
    env = plugin({}, points="ghost = bertflow_ghost")
    rows = shell("task=plugins", "output.format=json", env=env).json["report"]
    ghost = next(row for row in rows if row["package"] == "bertflow_ghost")
    assert ghost["option"] is None
    assert ghost["problem"]


def test_task_plugins_lists_hooks_and_problems(shell: Command, plugin: MakePlugin) -> None:
    files = {**MINE, "task/mine.py": GOOD, "conf/task/bad.yaml": "plugin: bad\n", "task/bad.py": "1/0"}
    env = plugin(files)
    rows = {row["option"]: row for row in shell("task=plugins", "output.format=json", env=env).json["report"]}
    assert rows["task=mine"]["hooks"] == ["run_task"]
    assert (rows["task=mine"]["distribution"], rows["task=mine"]["version"]) == ("bertflow-acme", "1.2")
    assert rows["task=mine"]["problem"] is None
    assert "ZeroDivisionError" in rows["task=bad"]["problem"]
    assert {"build_model", "forward", "load_weights"} < set(rows["model=scratch"]["hooks"])
    table = shell("task=plugins", env=env).out
    assert "ZeroDivisionError" in table
    assert "bertflow-acme" in table


def test_a_package_can_be_left_out(shell: Command, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": GOOD})
    without = {**env, "BERTFLOW_DISABLE": "acme"}
    assert shell("task=mine", env=without).code == 2
    assert "bertflow_acme" not in shell("--help", env=without).out
    refused = shell("--help", env={**env, "BERTFLOW_DISABLE": "amce"})
    assert refused.code == 2
    assert "did you mean acme?" in refused.error


def test_timing_goes_to_stderr(bertflow: Command) -> None:
    run = bertflow("model=tiny", "extension=[timing]", "runtime.batch_tokens=4", "output.format=json")
    assert json.loads(run.out)["task"] == "forward"
    rows = {line.split()[1]: line.split() for line in run.err.splitlines()[1:]}
    assert rows["forward"][:3] == ["model", "forward", "3"]
    assert rows["tokenize"][2] == "1"
    assert float(rows["run_task"][3]) >= float(rows["build_model"][3])
