from __future__ import annotations

import pytest

from seamscope.hooks import SiteError, TaskError, choose


def test_choose_gives_back_what_is_known():
    assert choose("task", "sum", ["max", "sum"], TaskError) == "sum"


def test_choose_names_what_came_the_nearest_and_all_choices():
    with pytest.raises(TaskError) as caught:
        choose("task", "sort_crads", ["sort_cards", "sum"], TaskError)
    assert str(caught.value) == "unknown task 'sort_crads'; nearest: sort_cards; one of: sort_cards, sum"


def test_choose_without_anything_near_and_without_choices():
    with pytest.raises(SiteError, match=r"^unknown span 'zzz'; one of: \(none\)$"):
        choose("span", "zzz", [], SiteError)


def test_long_lists_are_cut_and_counted():
    with pytest.raises(SiteError, match=r"s0, s1, .*s23, … \(100 in all\)$"):
        choose("site", "?", [f"s{i}" for i in range(100)], SiteError)
