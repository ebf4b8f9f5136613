from __future__ import annotations

from dataclasses import replace

import pytest

from seamscope.experiments._options import verdict_text
from seamscope.experiments._report_verdict import (
    bearing,
    by_kind,
    losses,
    repairs_in_words,
    site,
    spent_rows,
    stability,
    where,
)
from seamscope.experiments._verdict import LOCI, Loss, Repair
from seamscope.hooks import SiteError

from ._synthetic import verdict

LATE = Repair(
    **{"name": "deliver_earlier", "words": "Its own later state, earlier.", "mends": "too_late", "named": True},
    **{"restored": 0.6, "low": 0.5, "high": 0.7, "control": 0.1, "n": 90},
)
ROUTE = replace(LATE, name="strengthen_route", named=False, restored=0.2, low=0.1, high=0.3, control=None)
WORST = replace(ROUTE, name="restore_projector", restored=float("nan"), low=float("nan"), high=float("nan"))


@pytest.mark.parametrize(
    ("layer", "place", "told"),
    [
        (3, None, "decoder layer 3 (interval: 2 to 4)"),
        (3, "lm.3.resid_post", "decoder layer 3 (interval: 2 to 4)"),
        (2, "vision.2.resid_post", "vision tower layer 2 (interval: 1 to 3)"),
        (None, "projector.out", "projector"),
        (None, None, ""),
    ],
)
def test_a_place_is_told_with_its_part_of_the_model(layer, place, told):
    assert where(verdict(layer=layer, place=place)) == told
    assert (site(verdict(layer=layer, place=place)) is None) == (told == "")


def test_a_place_that_is_no_site_is_refused():
    with pytest.raises(SiteError, match=r"unknown site 'lm\.L\.somewhere'"):
        where(verdict(place="lm.3.somewhere"))


@pytest.mark.parametrize(
    ("confidence", "told"),
    [(1.0, "very stable"), (0.94, "stable"), (0.6, "only fairly"), (0.2, "not stable"), (float("nan"), "of unknown")],
)
def test_a_confidence_is_told_in_words(confidence, told):
    assert stability(confidence).startswith(told)


def test_losses_are_told_with_what_they_mean_and_of_what():
    found = [
        Loss(locus="not_used", place="lm.2.resid_post", objects=(0, 2)),
        Loss(locus="strange", place=None, objects=(1,)),
    ]
    assert losses(found) == [
        ("not_used", LOCI["not_used"], "of objects 0, 2, at lm.2.resid_post"),
        ("strange", "", "of object 1"),
    ]


def test_evidence_is_sorted_by_kind_and_none_is_lost():
    probe, patch = verdict().evidence
    other = replace(probe, kind="hearsay")
    groups = by_kind([patch, other, probe, patch])
    assert groups == [
        ("Probes", "is it there?", [probe]),
        ("Patches", "is it used?", [patch, patch]),
        ("hearsay", "", [other]),
    ]


class TestRepairs:
    def test_the_named_one_stands_beside_the_best_of_the_others(self):
        told = repairs_in_words([WORST, ROUTE, LATE])
        assert told == (
            "Of the answers that fail directly, the repair that the verdict names, deliver earlier, brings right "
            "0.60 [0.50, 0.70] (0.10 with the partner's states); the best of the others, strengthen route, brings "
            "right 0.20 [0.10, 0.30]. What it names brings back more than any other: that supports the verdict."
        )

    def test_a_named_one_that_does_worse_is_told_so_too(self):
        told = repairs_in_words([replace(LATE, restored=0.1), ROUTE])
        assert "names, deliver earlier, brings right 0.10" in told
        assert "the best of the others, strengthen route, brings right 0.20" in told

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({}, "that supports the verdict"),
            ({"low": 0.25}, "that decides nothing"),
            ({"control": 0.5}, "that does not support the verdict"),
            ({"restored": 0.05, "low": 0.0, "high": 0.08}, "that speaks against the verdict"),
            ({"restored": 0.3, "low": 0.09, "high": 0.5}, "that does not support the verdict"),
            ({"restored": float("nan")}, ""),
        ],
    )
    def test_what_they_say_of_the_verdict(self, change, told):
        found = bearing([WORST, ROUTE, replace(LATE, **change)])
        assert told in found
        assert bool(found) == bool(told)
        assert bearing([ROUTE]) == bearing([LATE]) == bearing([]) == ""
        assert found in verdict_text(verdict(repairs=(WORST, ROUTE, replace(LATE, **change))))

    def test_none_named_and_none_tried(self):
        assert repairs_in_words([ROUTE]).startswith("The verdict names none of the repairs that were tried. Of the")
        assert "others" not in repairs_in_words([LATE])
        assert repairs_in_words([]) == "No repair was tried."


def test_what_was_spent_is_told_in_whole_numbers_where_it_is_whole():
    spent = {"forward_passes": 12345, "seconds": 80.46, "hours": 2.0}
    assert spent_rows(spent) == [("forward passes", "12,345"), ("seconds", "80.5"), ("hours", "2")]


def test_further_losses_are_told_on_the_command_line():
    also = (
        Loss(locus="overwritten", place="lm.0.resid_post", objects=(1, 2)),
        Loss(locus="too_late", place=None, objects=(3,)),
    )
    first = verdict_text(verdict(also=also)).splitlines()[0]
    assert ", and also overwritten of objects 1, 2, and also too_late of object 3, confidence 0.94" in first
    alone = verdict_text(verdict()).splitlines()[0]
    assert "also" not in alone
    assert "object" not in alone


def test_evidence_is_told_with_its_measure_on_the_command_line():
    probe, patch = verdict().evidence
    unmeasured = replace(patch, estimate=float("nan"), control=None)
    told = verdict_text(verdict(evidence=(probe, unmeasured))).splitlines()
    start = told.index("evidence") + 1
    assert told[start : start + 4] == [
        "  Is the intermediate readable at the last position in time?",
        "    0.34 [0.28, 0.41], control 0.12 (lm.2.resid_post at last): accuracy of a linear probe; "
        "It is readable there only from decoder layer 3 on.",
        "  Does the cascaded run's state bring the answer back?",
        "    not measured: share of answers restored; Yes, from layer 3 on.",
    ]


def test_whose_loss_it_is_is_told_on_the_command_line():
    assert "too_late of object 0 in the decoder layer 3" in verdict_text(verdict(objects=(0,))).splitlines()[0]
