"""Plugins that other people write: found without an import, held to the rules, named when they break.

Each command runs in a child of one warmed parent, so that a plugin is imported by nobody else.
"""

from __future__ import annotations

import ast
import json
from importlib.metadata import version
from pathlib import Path

import pytest

from conftest import Command, Fork, MakePlugin, snapshot

GOOD = """
import bertflow
from bertflow.hookspecs import Result

@bertflow.hookimpl
def run_task(flow):
    return Result("mine", report={"answer": 42})
"""
MINE = {"conf/task/mine.yaml": "# Mine\nplugin: mine\n"}


def test_a_plugin_is_found_listed_and_used(forked: Fork, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": GOOD})
    assert forked("task=mine", "output.format=json", env=env).json["report"] == {"answer": 42}
    line = next(line for line in forked("--help", env=env).out.splitlines() if " mine " in line)
    assert "Mine" in line
    assert line.endswith("bertflow_acme")
    assert "bertflow_acme" in forked("--info", "searchpath", env=env).out


def test_a_preset_needs_no_module(forked: Fork, plugin: MakePlugin) -> None:
    env = plugin({"conf/model/small.yaml": "defaults: [scratch, _self_]\nconfig: {num_hidden_layers: 3}\n"})
    shown = forked("model=small", "--cfg", "job", "-p", "model.config.num_hidden_layers", env=env)
    assert shown.out == "3\n"


def test_a_dotted_package_is_found_without_importing_its_parents(forked: Fork, plugin: MakePlugin) -> None:
    inner = {f"inner/{path}": text for path, text in {**MINE, "task/mine.py": GOOD, "__init__.py": ""}.items()}
    env = plugin({**inner, "__init__.py": "print('imported')"}, points="acme = bertflow_acme.inner")
    assert "imported" not in forked("--help", env=env).err
    assert forked("task=mine", env=env).code == 0


BROKEN = {
    "H04 raises at import": ("raise ValueError('boom')", ["ValueError", "boom"]),
    "H04 exits at import": ("import sys\nsys.exit(3)", ["SystemExit"]),
    "H04 is no Python": ("def", ["SyntaxError"]),
    "H04 needs a package": ("import fancy_lib", ["fancy_lib", "pip install fancy-lib"]),
    "H05 misspells a hook": (
        GOOD + "\n@bertflow.hookimpl\ndef froward(): pass\n",
        ["froward", "did you mean forward?"],
    ),
    "H05 misspells the hook": (GOOD.replace("run_task", "run_tsk"), ["run_tsk", "did you mean run_task?"]),
    "H06 takes a wrong argument": (GOOD.replace("run_task(flow", "run_task(flwo"), ["run_task", "flwo"]),
    "H11 uses another marker": (
        GOOD.replace("import bertflow", "import pluggy\nhookimpl = pluggy.HookimplMarker('other')").replace(
            "@bertflow.", "@"
        ),
        ["run_task", "@bertflow.hookimpl"],
    ),
    "H11 has no marker": (GOOD.replace("@bertflow.hookimpl", ""), ["run_task", "@bertflow.hookimpl"]),
    "H12 returns None": (GOOD.replace("return", "x ="), ["run_task", "None"]),
    "H14 raises in a hook": (GOOD.replace("return", "1/0 #"), ["run_task", "ZeroDivisionError"]),
    "H14 exits in a hook": (GOOD.replace("return", "raise SystemExit(0) #"), ["run_task", "SystemExit"]),
    "H14 needs a package in a hook": (GOOD.replace("return", "import fancy_lib #"), ["pip install fancy-lib"]),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_named_and_hurts_nobody_else(fault: str, forked: Fork, plugin: MakePlugin) -> None:
    code, said = BROKEN[fault]
    env = plugin({**MINE, "task/mine.py": GOOD})
    assert forked("task=mine", "output.format=json", env=env).code == 0
    Path(env["PYTHONPATH"], "bertflow_acme/task/mine.py").write_text("print('babble')\n" + code)
    refused = forked("task=mine", "output.format=json", env=env)
    assert refused.code == 7
    assert refused.out == ""
    last = refused.err.splitlines()[-1]
    for part in ("task=mine", "bertflow_acme", "bertflow-acme 1.2", *said):
        assert part in last
    assert "Traceback" not in refused.err
    for words in (["--help"], ["--cfg", "job"], ["task=plugins", "output.format=json"], ["model=tiny"]):
        spared = forked(*words, env=env)
        assert spared.code == 0
        assert "babble" not in spared.out


@pytest.mark.parametrize("printing", ["print('babble')", "import os; os.write(1, b'babble\\n')"])
def test_printing_at_import_and_in_hooks_leaves_stdout_clean(printing: str, forked: Fork, plugin: MakePlugin) -> None:
    code = f"{printing}\n" + GOOD.replace("return", f"{printing}\n    return")
    run = forked("task=mine", "output.format=json", env=plugin({**MINE, "task/mine.py": code}))
    assert run.json["task"] == "mine"
    assert run.err == "babble\nbabble\n"


def test_the_plugin_is_named_whose_code_raised_in_somebody_elses_hook(forked: Fork, plugin: MakePlugin) -> None:
    wrapper = "import bertflow\n@bertflow.hookimpl(wrapper=True)\ndef run_task():\n    result = yield\n    1/0\n"
    files = {"conf/extension/bad.yaml": "# @package extension.bad\nplugin: bad\n", "extension/bad.py": wrapper}
    refused = forked("task=plugins", "extension=[bad]", env=plugin(files))
    assert refused.code == 7
    assert "extension=bad of bertflow_acme (bertflow-acme 1.2)" in refused.error


def test_a_hook_from_a_helper_module_is_blamed_on_the_plugin_that_uses_it(forked: Fork, plugin: MakePlugin) -> None:
    helper = "import bertflow\n@bertflow.hookimpl\ndef run_task():\n    1/0\n"
    files = {**MINE, "helper.py": helper, "task/mine.py": "from bertflow_acme.helper import run_task\n"}
    wrapper = "import bertflow\n@bertflow.hookimpl(wrapper=True)\ndef run_task():\n    return (yield)\n"
    files |= {"conf/extension/idle.yaml": "# @package extension.idle\nplugin: idle\n", "extension/idle.py": wrapper}
    refused = forked("task=mine", "extension=[idle]", env=plugin(files))
    assert refused.code == 7
    assert "task=mine of bertflow_acme" in refused.error


def test_only_the_owner_implements_a_hook(forked: Fork, plugin: MakePlugin) -> None:
    hijack = "import bertflow\n@bertflow.hookimpl\ndef forward():\n    return {}\n"
    files = {
        "conf/extension/forgot.yaml": "# @package extension.forgot\nplugin: forgot\n",
        "extension/forgot.py": hijack,
    }
    refused = forked("model=tiny", "extension=[forgot]", env=plugin(files))
    assert refused.code == 7
    assert "wrapper=True" in refused.error


CONFIGS = {
    "is no dataclass": "class Config:\n    word: str\n",
    "has a type that OmegaConf lacks": "import decimal\n@dataclass\nclass Config:\n    word: decimal.Decimal\n",
    "refuses in its own words": "@dataclass\nclass Config:\n    word: str\n    def __post_init__(self):\n        1/0\n",
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_faulty_config_is_the_plugins_fault(fault: str, forked: Fork, plugin: MakePlugin) -> None:
    files = {"conf/task/mine.yaml": "plugin: mine\nword: a\n"}
    env = plugin({**files, "task/mine.py": f"from dataclasses import dataclass\n{CONFIGS[fault]}\n{GOOD}"})
    refused = forked("task=mine", env=env)
    assert refused.code == 7
    assert "task=mine of bertflow_acme (bertflow-acme 1.2)" in refused.error
    assert forked("task=plugins", env=env).code == 0


BACKEND = """
import bertflow
from bertflow_standard.model.scratch import Config, build_model, describe_model, load_weights, save_model
from bertflow_standard import transformers_model as standard

@bertflow.hookimpl
def tokenize(model, rows, start):
    return standard.tokenize(model, rows, start)

@bertflow.hookimpl
def forward(model, batch):
    return {name: array for name, array in standard.forward(model, batch).items()}
"""

BAD_BACKENDS = {
    "loses a row of ids": ("rows, start)\n", "rows, start)[1:]\n", ["tokenize", "2 rows for 3"]),
    "loses a row of the outputs": ("array for", "array[1:] for", ["forward", "2 rows for 3"]),
    "H12 builds nothing": ("import Config, build_model,", "import Config,", ["build_model", "None"]),
    "H12 forgets to return": ("    return {name", "    x = {name", ["forward", "None"]),
}


@pytest.mark.parametrize("fault", BAD_BACKENDS)
def test_a_backend_that_breaks_the_rules_is_named(fault: str, forked: Fork, plugin: MakePlugin) -> None:
    before, after, said = BAD_BACKENDS[fault]
    env = plugin({"conf/model/mine.yaml": "defaults: [tiny, _self_]\nplugin: mine\n", "model/mine.py": BACKEND})
    assert forked("model=mine", env=env).code == 0
    damaged = BACKEND.replace(before, after)
    if fault == "H12 builds nothing":
        damaged += "\n@bertflow.hookimpl\ndef build_model():\n    pass\n"
    Path(env["PYTHONPATH"], "bertflow_acme/model/mine.py").write_text(damaged)
    refused = forked("model=mine", env=env)
    assert refused.code == 7
    for part in (*said, "model=mine of bertflow_acme"):
        assert part in refused.error


LATE = """
import bertflow
from pathlib import Path

@bertflow.hookimpl(wrapper=True)
def {hook}():
    result = yield
    {fault}
    return result
"""


SAVED_BEFORE = {
    "load_weights": set[str](),
    "forward": set[str](),
    "save_model": set[str](),
    "run_task": {"checkpoint"},
    "write_result": {"checkpoint", "out.npz"},
}
"""Hook -> what a run has saved, whole, when a plugin fails behind that hook."""


@pytest.mark.parametrize("hook", SAVED_BEFORE)
def test_a_plugin_that_fails_late_leaves_nothing_half_saved(  # H14
    hook: str, forked: Fork, plugin: MakePlugin, tmp_path: Path
) -> None:
    files = {"conf/extension/late.yaml": "# @package extension.late\nplugin: late\n"}
    env = plugin({**files, "extension/late.py": LATE.format(hook=hook, fault="")})
    words = ("model=tiny", "extension=[late]", "save=checkpoint", "save.path=checkpoint")
    places = [tmp_path / "control", tmp_path / "faulty"]
    for place in places:
        place.mkdir()
    assert forked(*words, "output=file", "output.path=out.npz", env=env, cwd=places[0]).code == 0
    Path(env["PYTHONPATH"], "bertflow_acme/extension/late.py").write_text(LATE.format(hook=hook, fault="1/0"))
    refused = forked(*words, "output=file", "output.path=out.npz", env=env, cwd=places[1])
    assert refused.code == 7
    for part in ("extension=late of bertflow_acme (bertflow-acme 1.2)", hook, "ZeroDivisionError"):
        assert part in refused.error
    whole, left = map(snapshot, places)
    assert left == {name: file for name, file in whole.items() if Path(name).parts[0] in SAVED_BEFORE[hook]}


def test_a_preset_of_an_extension(forked: Fork, plugin: MakePlugin) -> None:
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
    assert forked("task=plugins", "extension=[shout]", env=env).err == "loud\n"
    refused = forked("task=plugins", "extension=[say,shout]", env=env)
    assert refused.code == 2
    assert "extension=shout" in refused.error


def test_a_missing_module_of_an_installed_package_is_no_missing_package(forked: Fork, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": "import bertflow_acme.nothing"})
    refused = forked("task=mine", env=env)
    assert refused.code == 7
    assert "pip install" not in refused.error
    assert "bertflow_acme.nothing" in refused.error


def test_an_extension_without_hooks_is_an_error(forked: Fork, plugin: MakePlugin) -> None:
    files = {"conf/extension/idle.yaml": "# @package extension.idle\nplugin: idle\n", "extension/idle.py": ""}
    refused = forked("task=plugins", "extension=[idle]", env=plugin(files))
    assert refused.code == 7
    assert "no hook" in refused.error


def test_keys_of_extensions_stand_side_by_side(forked: Fork, plugin: MakePlugin) -> None:
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
    run = forked(*words, "extension.one.word=changed", env=env)
    assert sorted(run.err.split()) == ["changed", "two"]
    refused = forked(*words, "extension.one.wrd=x", env=env)
    assert refused.code == 2
    assert "extension=one" in refused.error
    assert "did you mean word?" in refused.error


def test_a_plugin_for_a_newer_bertflow(forked: Fork, plugin: MakePlugin) -> None:  # H08
    env = plugin({**MINE, "task/mine.py": GOOD}, requires="bertflow>=0.0.1")
    assert forked("task=mine", env=env).code == 0
    (metadata,) = Path(env["PYTHONPATH"]).glob("*.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace(">=0.0.1", ">=99"))
    refused = forked("task=mine", env=env)
    assert refused.code == 7
    for part in ("bertflow>=99", version("bertflow"), "bertflow-acme 1.2"):
        assert part in refused.error


def test_a_newer_bertflow_for_an_extra_alone(forked: Fork, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": GOOD}, requires='bertflow>=99; extra == "future"')
    assert forked("task=mine", env=env).code == 0


@pytest.mark.parametrize("report", ["'hello'", "[]", "['a', 'b']", "{'a': None}", "[{'a': 1}, {'b': 3}]", "7"])
def test_any_report_is_shown(report: str, forked: Fork, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": GOOD.replace('{"answer": 42}', report)})
    assert forked("task=mine", "output.format=json", env=env).json["report"] == ast.literal_eval(report)
    assert forked("task=mine", env=env).code == 0


@pytest.mark.parametrize("shared", ["option", "module"])
def test_two_packages_that_offer_the_same(shared: str, forked: Fork, plugin: MakePlugin) -> None:  # H13
    assert forked("task=mine", env=plugin({**MINE, "task/mine.py": GOOD})).code == 0
    files = {**MINE, "task/mine.py": GOOD} if shared == "option" else {"task/mine.py": GOOD}
    env = plugin(files, name="rival", version="3.4")
    refused = forked("task=mine", env=env)
    assert refused.code == 7
    assert "bertflow_acme" in refused.error
    assert "bertflow_rival" in refused.error
    assert forked("--cfg", "job", env=env).code == 0


def test_two_distributions_with_one_name(forked: Fork, plugin: MakePlugin) -> None:
    plugin({**MINE, "task/mine.py": GOOD}, points="same = bertflow_acme")
    other = {"conf/task/other.yaml": "plugin: other\n", "task/other.py": GOOD}
    env = plugin(other, name="rival", version="3.4", points="same = bertflow_rival")
    for option in ("mine", "other"):
        refused = forked(f"task={option}", env=env)
        assert refused.code == 7
        assert "bertflow-acme 1.2" in refused.error
        assert "bertflow-rival 3.4" in refused.error
    assert forked("task=plugins", env=env).code == 0


def test_metadata_that_cannot_be_read_hurts_nobody(forked: Fork, plugin: MakePlugin) -> None:
    plugin({**MINE, "task/mine.py": GOOD})
    env = plugin({}, name="odd", points="this is no entry point")
    assert forked("task=mine", env=env).code == 0
    assert forked("--help", env=env).code == 0


def test_a_package_that_is_not_there_is_reported(forked: Fork, plugin: MakePlugin) -> None:
    env = plugin({}, points="ghost = bertflow_ghost")
    rows = forked("task=plugins", "output.format=json", env=env).json["report"]
    ghost = next(row for row in rows if row["package"] == "bertflow_ghost")
    assert ghost["option"] is None
    assert ghost["problem"]


def test_task_plugins_lists_hooks_and_problems(forked: Fork, plugin: MakePlugin) -> None:
    files = {**MINE, "task/mine.py": GOOD, "conf/task/bad.yaml": "plugin: bad\n", "task/bad.py": "1/0"}
    env = plugin(files)
    rows = {row["option"]: row for row in forked("task=plugins", "output.format=json", env=env).json["report"]}
    assert rows["task=mine"]["hooks"] == ["run_task"]
    assert (rows["task=mine"]["distribution"], rows["task=mine"]["version"]) == ("bertflow-acme", "1.2")
    assert rows["task=mine"]["problem"] is None
    assert "ZeroDivisionError" in rows["task=bad"]["problem"]
    assert {"build_model", "forward", "load_weights"} < set(rows["model=scratch"]["hooks"])
    table = forked("task=plugins", env=env).out
    assert "ZeroDivisionError" in table
    assert "bertflow-acme" in table


def test_a_package_can_be_left_out(forked: Fork, plugin: MakePlugin) -> None:
    env = plugin({**MINE, "task/mine.py": GOOD})
    without = {**env, "BERTFLOW_DISABLE": "acme"}
    assert forked("task=mine", env=without).code == 2
    assert "bertflow_acme" not in forked("--help", env=without).out
    refused = forked("--help", env={**env, "BERTFLOW_DISABLE": "amce"})
    assert refused.code == 2
    assert "did you mean acme?" in refused.error


def test_timing_goes_to_stderr(bertflow: Command) -> None:
    run = bertflow("model=tiny", "extension=[timing]", "runtime.batch_tokens=4", "output.format=json")
    assert json.loads(run.out)["task"] == "forward"
    rows = {line.split()[1]: line.split() for line in run.err.splitlines()[1:]}
    assert rows["forward"][:3] == ["model", "forward", "3"]
    assert rows["tokenize"][2] == "1"
    assert float(rows["run_task"][3]) >= float(rows["build_model"][3])
