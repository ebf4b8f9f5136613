from __future__ import annotations

import ast
from pathlib import Path

import seamscope.hooks as hooks


def test_all_is_sorted_and_holds_every_public_name():
    public = {name for name in vars(hooks) if not name.startswith("_")}
    assert sorted(hooks.__all__) == hooks.__all__
    assert public == {*hooks.__all__, "families"}


def test_families_export_what_a_table_is_made_of():
    families = hooks.families
    assert sorted(families.__all__) == sorted(set(families.__all__))
    assert all(hasattr(families, name) for name in families.__all__)
    assert hooks.Family is families.Family


def test_the_room_imports_nothing_of_ours():
    for file in Path(hooks.__file__).parent.rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        ours = {node.module for node in nodes if node.module and node.module.startswith("seamscope")}
        assert all(module.startswith(("seamscope.hooks._", "seamscope.hooks.families")) for module in ours), file
        assert ours or file.name in ("_prompt.py", "_errors.py", "_score.py", "_layout.py", "_proofs.py"), file


def test_every_error_is_a_seamscope_error():
    errors = [
        value
        for value in vars(hooks).values()
        if isinstance(value, type) and issubclass(value, Exception) and not issubclass(value, Warning)
    ]
    assert len(errors) == 7
    assert all(issubclass(error, hooks.SeamscopeError) for error in errors)
