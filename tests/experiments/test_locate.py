"""The locator on made-up tables in which the loss has a known place."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments import locate
from seamscope.hooks import RunError

LAYERS = 6
N = 60


def answers(rng: np.random.Generator, *, direct: float = 0.1, oracle: float = 1.0, parsed: bool = True) -> pd.DataFrame:
    rows = []
    for k in range(N):
        for condition, rate in (("direct", direct), ("cascaded", 1.0), ("oracle", oracle), ("cot", 0.8)):
            rows.append(
                {
                    "id": f"i{k}",
                    "group": f"i{k}",
                    "task": "made.up",
                    "condition": condition,
                    "correct": bool(rng.random() < rate),
                    "parsed": parsed or condition != "direct",
                    "saw": condition == "cascaded",
                }
            )
    return pd.DataFrame(rows)


def hits(
    rng: np.random.Generator,
    *,
    tower: float,
    projector: float,
    image: list[float],
    last: list[float],
    text: float = 0.95,
    words: float = 1.0,
) -> pd.DataFrame:
    places = [("vision", k, "objects", tower) for k in range(3)] + [("projector", pd.NA, "objects", projector)]
    places += [("lm", k, "objects", p) for k, p in enumerate(image)] + [
        ("lm", k, "last", p) for k, p in enumerate(last)
    ]
    places += [("lm", k, "question", 0.1) for k in range(LAYERS)]
    runs = [("direct", *place) for place in places]
    runs += [("cascaded", "lm", k, span, text) for k in range(LAYERS) for span in ("last", "question")]
    runs += [("cascaded", "lm", k, "objects", words) for k in range(LAYERS)]
    return pd.DataFrame(
        [
            {
                "condition": condition,
                "site": f"{stack}.{layer}",
                "stack": stack,
                "layer": layer,
                "span": span,
                "kind": "object",
                "group": f"i{k}",
                "correct": float(rng.random() < share),
                "control": float(rng.random() < 0.1),
                "shuffled": float(rng.random() < 0.1),
                "chance": 0.1,
            }
            for condition, stack, layer, span, share in runs
            for k in range(N)
        ]
    ).astype({"layer": "Int64"})


def patches(rng: np.random.Generator, *, needs: list[float], earlier: float, used: float = 0.05) -> pd.DataFrame:
    """Exchanging the whole intermediate costs the text answer 8 nats, and the direct one a share `used` of them."""
    cells = [("text_noise", k, k, "objects", needs[k], 0.0) for k in range(LAYERS)]
    cells += [("noise", k, k, "objects", 0.0, 0.0) for k in range(LAYERS)]
    cells += [("cross", k, k, span, 0.0, 0.0) for k in range(LAYERS) for span in ("objects", "reading")]
    cells += [("cross_control", k, k, span, 0.0, 0.0) for k in range(LAYERS) for span in ("objects", "reading")]
    cells += [
        ("backpatch", s, t, span, 0.0, earlier if (s, t) == (4, 1) else 0.0)
        for s in range(1, LAYERS)
        for t in range(s)
        for span in ("objects", "reading")
    ]
    return pd.DataFrame(
        [
            {
                "id": f"i{k}",
                "group": f"i{k}",
                "experiment": experiment,
                "source_site": f"lm.{source}.resid_post",
                "target_site": f"lm.{target}.resid_post",
                "span": span,
                "base": -0.1,
                "ceiling": -0.1 - 8.0 * (used if experiment == "noise" else 1.0),
                "patched": -0.1 - 8.0 * needed,
                "right": bool(rng.random() < right),
            }
            for experiment, source, target, span, needed, right in cells
            for k in range(N)
        ]
    )


NEEDS = [1.0, 1.0, 0.7, 0.1, 0.0, 0.0]
NEVER, ALWAYS, LATE = [0.1] * LAYERS, [0.95] * LAYERS, [0.1, 0.1, 0.1, 0.1, 0.95, 0.95]


def test_a_direct_answer_that_depends_on_it_is_not_called_unused() -> None:
    rng = np.random.default_rng(0)
    tables = {
        "answers": answers(rng),
        "probe_hits": hits(rng, tower=0.95, projector=0.95, image=ALWAYS, last=ALWAYS),
        "model": "made up",
        "task": "made.up",
    }
    verdict = locate(**tables, patch_rows=patches(rng, needs=NEEDS, earlier=0.0, used=0.05))
    assert verdict.locus == "not_used"
    assert "depends on it 5 % as much" in verdict.summary
    assert locate(**tables, patch_rows=patches(rng, needs=NEEDS, earlier=0.0, used=0.8)).locus == "cannot_tell"


@pytest.mark.parametrize("words", [0.5, 1.0])
def test_probes_that_fail_on_words_deny_nothing(words: float) -> None:
    rng = np.random.default_rng(0)
    verdict = locate(
        answers=answers(rng),
        probe_hits=hits(rng, tower=0.1, projector=0.1, image=NEVER, last=NEVER, words=words),
        patch_rows=patches(rng, needs=NEEDS, earlier=0.0),
        model="made up",
        task="made.up",
    )
    assert verdict.locus == ("not_encoded" if words == 1.0 else "cannot_tell")


def test_text_runs_that_show_nothing_where_they_read_are_no_measure() -> None:
    rng = np.random.default_rng(0)
    verdict = locate(
        answers=answers(rng),
        probe_hits=hits(rng, tower=0.95, projector=0.95, image=ALWAYS, last=ALWAYS, text=0.12),
        patch_rows=patches(rng, needs=NEEDS, earlier=0.0),
        model="made up",
        task="made.up",
    )
    assert verdict.locus == "cannot_tell"


def test_items_that_disagree_give_no_class() -> None:
    """A projector that hands on just about half of what there is: resamples fall to either side."""
    rng = np.random.default_rng(3)
    verdict = locate(
        answers=answers(rng),
        probe_hits=hits(rng, tower=0.95, projector=0.55, image=ALWAYS, last=ALWAYS),
        patch_rows=patches(rng, needs=NEEDS, earlier=0.0),
        model="made up",
        task="made.up",
    )
    assert verdict.locus == "cannot_tell"
    assert verdict.layer is None
    assert "Resamples of the items disagree" in verdict.summary
    assert verdict.confidence < 0.8


def test_without_an_item_that_passes_both_steps_nothing_is_said() -> None:
    rng = np.random.default_rng(0)
    blind = answers(rng)
    blind["saw"] = False
    verdict = locate(
        answers=blind,
        probe_hits=hits(rng, tower=0.95, projector=0.95, image=ALWAYS, last=ALWAYS),
        patch_rows=patches(rng, needs=NEEDS, earlier=0.0),
        model="made up",
        task="made.up",
    )
    assert verdict.locus == "cannot_tell"
    assert np.isnan(verdict.gap["passing"])
    assert verdict.gap["groups_passing"] == 0


@pytest.mark.parametrize(
    ("tower", "projector", "image", "last", "earlier", "locus", "layer"),
    [
        (0.1, 0.1, NEVER, NEVER, 0.0, "not_encoded", None),
        (0.95, 0.1, NEVER, NEVER, 0.0, "lost_in_projector", None),
        (0.95, 0.95, ALWAYS, NEVER, 0.0, "not_routed", 2),
        (0.95, 0.95, [0.95, 0.1, 0.1, 0.1, 0.1, 0.1], NEVER, 0.0, "overwritten", 1),
        (0.95, 0.95, ALWAYS, LATE, 0.9, "too_late", 4),
        (0.95, 0.95, ALWAYS, ALWAYS, 0.0, "not_used", 0),
    ],
)
def test_a_loss_of_known_place_is_found(
    tower: float, projector: float, image: list[float], last: list[float], earlier: float, locus: str, layer: int | None
) -> None:
    rng = np.random.default_rng(0)
    verdict = locate(
        answers=answers(rng),
        probe_hits=hits(rng, tower=tower, projector=projector, image=image, last=last),
        patch_rows=patches(rng, needs=NEEDS, earlier=earlier),
        model="made up",
        task="made.up",
    )
    assert (verdict.locus, verdict.layer) == (locus, layer)
    assert verdict.confidence > 0.9
    assert {row.kind for row in verdict.evidence} == {"behaviour", "probe", "patch"}
    if layer is not None:
        assert verdict.interval is not None
        assert verdict.interval[0] <= layer <= verdict.interval[1]


@pytest.mark.parametrize(
    ("changes", "locus"), [({"direct": 1.0}, "none"), ({"oracle": 0.1}, "text_skill"), ({"parsed": False}, "format")]
)
def test_what_is_no_loss_of_ours(changes: dict[str, float], locus: str) -> None:
    rng = np.random.default_rng(1)
    verdict = locate(
        answers=answers(rng, **changes),  # type: ignore[arg-type]
        probe_hits=hits(rng, tower=0.95, projector=0.95, image=ALWAYS, last=NEVER),
        patch_rows=patches(rng, needs=NEEDS, earlier=0.0),
        model="made up",
        task="made.up",
    )
    assert (verdict.locus, verdict.layer, verdict.interval) == (locus, None, None)


def test_best_cell_of_noise_is_scored_on_the_other_half() -> None:
    """Forty back-patch cells of pure noise: the best of them on all items would look like a repair."""
    rng = np.random.default_rng(3)
    table = patches(rng, needs=NEEDS, earlier=0.0)
    noisy = table.experiment == "backpatch"
    table.loc[noisy, "right"] = rng.random(noisy.sum()) < 0.1
    verdict = locate(
        answers=answers(rng, direct=0.0),
        probe_hits=hits(rng, tower=0.95, projector=0.95, image=ALWAYS, last=LATE),
        patch_rows=table,
        model="made up",
        task="made.up",
    )
    naive = table[noisy].groupby(["source_site", "target_site", "span"]).right.mean().max()
    split = [row.estimate for row in verdict.evidence if "earlier" in row.question]
    assert naive > 0.17
    assert max(split) < 0.17
    assert all(row.low <= 0.1 <= row.high for row in verdict.evidence if "earlier" in row.question)


def test_missing_conditions_are_named() -> None:
    rng = np.random.default_rng(4)
    table = answers(rng)
    with pytest.raises(RunError, match="needs answers under oracle as well"):
        locate(
            answers=table[table.condition != "oracle"],
            probe_hits=hits(rng, tower=1, projector=1, image=ALWAYS, last=NEVER),
            patch_rows=patches(rng, needs=NEEDS, earlier=0.0),
            model="made up",
            task="made.up",
        )


def test_what_text_runs_show_is_the_measure_of_arrival() -> None:
    """A little readable at the last token of direct runs: much where text runs show little more, or next to nothing."""
    rng = np.random.default_rng(5)
    found = {}
    for text in (0.4, 1.0):
        found[text] = locate(
            answers=answers(rng),
            probe_hits=hits(rng, tower=0.95, projector=0.95, image=ALWAYS, last=[0.34] * LAYERS, text=text),
            patch_rows=patches(rng, needs=NEEDS, earlier=0.0),
            model="made up",
            task="made.up",
        ).locus
    assert found == {0.4: "not_used", 1.0: "not_routed"}
