from __future__ import annotations

import subprocess
import sys

import seamscope.hooks as hooks


def test_all_is_sorted_and_holds_every_public_name():
    public = {name for name in vars(hooks) if not name.startswith("_")}
    assert sorted(hooks.__all__) == hooks.__all__
    assert public == set(hooks.__all__)


def test_the_room_imports_nothing_from_rooms_above_it():
    code = (
        "import sys, seamscope.hooks;"
        "print([m for m in sys.modules if m.startswith('seamscope.') and not m.startswith('seamscope.hooks')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_error_is_a_seamscope_error():
    errors = [
        value for value in vars(hooks).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(errors) == 7
    assert all(issubclass(error, hooks.SeamscopeError) for error in errors)
