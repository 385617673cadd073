"""The page of hooks is held against the code, and the page of promises against the tests."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from bertflow import hookspecs
from bertflow.catalogue import GROUPS, OWNERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
PROMISES = (ROOT / "docs/promises.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## )", PAGE, flags=re.MULTILINE | re.DOTALL))
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "bertflow_spec")}


def test_every_hook_is_on_the_page_and_no_other() -> None:
    assert set(SECTIONS) == set(HOOKS)


def test_the_signatures_are_those_of_the_code() -> None:
    for name, hook in HOOKS.items():
        signature = f"def {name}{inspect.signature(hook)}".replace("'", "")
        assert f"```python\n{signature}\n```" in SECTIONS[name]


def test_the_owners_are_those_of_the_code() -> None:
    owed = {hook: group for group, rules in GROUPS.items() for hook in rules.owes}
    for name, text in SECTIONS.items():
        owner = re.search(r"^- Implemented by: (.*)$", text, flags=re.MULTILINE)
        assert owner
        if name in owed:
            assert owner[1] == f"`{owed[name]}`, which owes it."
        else:
            assert "optional" in owner[1]
            assert f"`{OWNERS[name]}`" in owner[1] if name in OWNERS else "any plugin" in owner[1]


def test_the_examples_fit_the_hooks() -> None:
    for name, text in SECTIONS.items():
        code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
        (function,) = ast.parse(code).body
        assert isinstance(function, ast.FunctionDef)
        assert function.name == name
        assert ast.unparse(function.decorator_list[0]) == "bertflow.hookimpl"
        taken = {argument.arg for argument in function.args.args}
        assert taken <= set(inspect.signature(HOOKS[name]).parameters)


def test_every_promise_names_tests_that_there_are() -> None:
    rows = re.findall(r"^\| promise \|.*\n\|[-|]+\n((?:\|.*\n)+)", PROMISES, flags=re.MULTILINE)
    promises = [line for table in rows for line in table.splitlines()]
    assert promises
    for line in promises:
        named = re.findall(r"`(tests/\w+\.py)::(\w+)`", line.rpartition(" | ")[2])
        assert named, line
        for file, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE), test
