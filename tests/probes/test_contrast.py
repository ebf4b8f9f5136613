"""Probes that tell an item from its partner: what they read, what they must not, and a slow direct computation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from seamscope.hooks import StoreError
from seamscope.probes import control_labels, pair_contrast
from seamscope.probes._contrast import PENALTIES

PAIRS, WIDTH, KINDS = 150, 20, 5


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(seed: int = 0, pairs: int = PAIRS) -> np.ndarray:
    """Two different labels in every pair."""
    first = rng(seed).integers(KINDS, size=pairs)
    return np.stack([first, (first + rng(seed + 1).integers(1, KINDS, size=pairs)) % KINDS], axis=1)


def showing(labels: np.ndarray, *, noise: float = 0.3, seed: int = 5) -> np.ndarray:
    """Features from which labels can be read, under noise."""
    directions = rng(seed).normal(size=(labels.max() + 1, WIDTH))
    return directions[labels] + noise * rng(seed + 1).normal(size=(*labels.shape, WIDTH))


def noise(seed: int = 9) -> np.ndarray:
    return rng(seed).normal(size=(PAIRS, 2, WIDTH))


def read(features: np.ndarray, labels: np.ndarray, **options: int) -> tuple[np.ndarray, np.ndarray]:
    found = pair_contrast(features, {"it": labels}, **options)
    return found.right["it"], found.named["it"]


def is_chance(share: float, n: int, chance: float = 0.5) -> bool:
    low, high = binom.interval(0.999, n, chance)
    return bool(low <= share * n <= high)


def test_what_is_there_is_read_and_what_is_not_is_at_chance() -> None:
    labels = drawn()
    right, named = read(showing(labels), labels)
    assert right.mean() > 0.98
    assert named.mean() > 0.95
    right, named = read(noise(), labels)
    assert is_chance(right.mean(), PAIRS)
    assert is_chance(named.mean(), 2 * PAIRS, 1 / KINDS)
    assert set(right) <= {0.0, 0.5, 1.0}


def test_shuffled_labels_are_at_chance() -> None:
    labels = drawn()
    right, named = read(showing(labels), rng(3).permutation(labels))
    assert is_chance(right.mean(), PAIRS)
    assert is_chance(named.mean(), 2 * PAIRS, 1 / KINDS)


def test_what_the_question_gives_away_tells_no_partners_apart() -> None:
    """The question was made for the item, and is the same for its partner: it names the item's label in both."""
    labels = drawn()
    asked = np.repeat(labels[:, :1], 2, axis=1)
    features = showing(asked, noise=0.0) + 0.01 * noise()
    right, named = read(features, labels)
    assert is_chance(right.mean(), PAIRS)
    assert named.mean() == pytest.approx(0.5, abs=0.05)  # that of the item, and never that of its partner
    right, named = read(features, asked)
    assert np.isnan(right).all()
    assert named.mean() > 0.95  # an ordinary probe reads it


def test_how_common_a_label_is_falls_out() -> None:
    """Nine in ten are of one kind: naming that is mostly right, and tells nothing."""
    labels = np.where(rng(2).random((PAIRS, 2)) < 0.9, 0, 1)
    right, named = read(noise(), labels)
    differs = labels[:, 0] != labels[:, 1]
    assert np.array_equal(np.isnan(right), ~differs)
    assert is_chance(right[differs].mean(), int(differs.sum()))
    assert named.mean() > 0.8


def test_labels_that_were_never_learned_are_a_draw() -> None:
    labels = np.arange(2 * PAIRS).reshape(PAIRS, 2)
    right, named = read(showing(labels), labels)
    assert (right == 0.5).all()
    assert named.mean() < 0.05


def test_a_pair_is_never_on_both_sides() -> None:
    """Members of a pair are near twins with one label: whoever has learned one names the other."""
    twins = rng(6).normal(size=(PAIRS, 1, 400)) + 0.01 * rng(7).normal(size=(PAIRS, 2, 400))
    labels = np.repeat(rng(8).integers(KINDS, size=(PAIRS, 1)), 2, axis=1)
    right, named = read(twins, labels)
    assert np.isnan(right).all()
    assert is_chance(named.mean(), PAIRS, 1 / KINDS)
    split = KFold(5, shuffle=True, random_state=0)
    learned = cross_val_predict(RidgeCV(PENALTIES), twins.reshape(-1, 400), np.eye(KINDS)[labels.ravel()], cv=split)
    assert (learned.argmax(1) == labels.ravel()).mean() > 0.7  # 4 in 5 have their twin among what was learned


def test_what_is_missing_is_left_out() -> None:
    labels, wrong = drawn(), drawn(50)
    features = showing(labels)
    labels[:10, 0], labels[10:20], labels[20:30, 1] = -1, -1, labels[20:30, 0]
    features[30:40, 1, 3], features[40:45] = np.nan, np.inf
    right, named = read(features, labels)
    assert np.isnan(right[:45]).all()
    assert np.isnan(named[[*range(20), *range(30, 45)]]).all()
    assert not np.isnan(named[20:30]).any()
    assert right[45:].mean() > 0.98
    poisoned = features.copy()
    poisoned[30:40, 1], poisoned[40:45, 0] = np.nan, np.nan
    again = read(poisoned, np.where(np.arange(PAIRS)[:, None] < 10, [[-1, 0]], labels))
    np.testing.assert_array_equal(again[0][45:], right[45:])
    assert not np.array_equal(read(features, wrong)[0][45:], right[45:])


def test_a_variable_without_labels_is_nan_and_disturbs_no_other() -> None:
    labels = drawn()
    features = showing(labels, noise=1.5)
    none = np.full((PAIRS, 2), -1)
    found = pair_contrast(features, {"none": none, "it": labels})
    assert np.isnan([found.right["none"], found.named["none"]]).all()
    np.testing.assert_array_equal(found.right["it"], read(features, labels)[0])
    assert np.isnan(read(features, none)[0]).all()


def test_half_a_pair_is_still_learned_from() -> None:
    """Without a partner a row says nothing of itself, and all the same what its label looks like."""
    labels = drawn()
    whole = showing(labels, noise=1.5)
    alone, few = whole.copy(), whole.copy()
    alone[20:, 1], few[20:] = np.nan, np.nan
    more, less = (read(each, labels) for each in (alone, few))
    assert np.isnan(more[1][20:]).all()
    assert more[1][:20].mean() > less[1][:20].mean() + 0.1


@pytest.mark.parametrize("seed", [0, 3])
def test_one_fold_by_hand(seed: int) -> None:
    """Every indicator by a ridge regression of its own, on features that are put on one scale by hand."""
    labels, other = drawn(), drawn(20)
    labels[::7, 1] = -1
    features = showing(np.where(labels < 0, 0, labels), noise=2.0) * np.geomspace(0.01, 100, WIDTH)
    found = pair_contrast(features, {"other": other, "it": labels}, seed=seed, folds=4)
    mine = np.random.default_rng(seed).permutation(PAIRS) % 4 == 2
    learned, known = features[~mine].reshape(-1, WIDTH), labels[~mine].ravel()
    middle, scale = learned.mean(0), learned.std(0)
    scores = np.stack(
        [
            RidgeCV(PENALTIES)
            .fit((learned - middle) / scale, (known == kind).astype(float))
            .predict((features[mine].reshape(-1, WIDTH) - middle) / scale)
            for kind in range(KINDS)
        ],
        axis=1,
    ).reshape(-1, 2, KINDS)
    for own, (first, second), right, named in zip(
        labels[mine], scores, found.right["it"][mine], found.named["it"][mine], strict=True
    ):
        if min(own) < 0:
            assert np.isnan([right, named]).all()
            continue
        assert named == np.mean([first.argmax() == own[0], second.argmax() == own[1]])
        margin = (first[own[0]] - first[own[1]]) - (second[own[0]] - second[own[1]])
        assert right == (1.0 if margin > 0 else 0.0)
    assert 0.5 < np.nanmean(found.right["it"][mine]) < 1  # not so clear that any probe would do


def test_a_control_is_at_chance_unless_its_types_can_be_remembered() -> None:
    labels = drawn()
    types = rng(11).integers(40, size=(PAIRS, 2))
    control = control_labels(labels.ravel(), types.ravel(), rng(12)).reshape(PAIRS, 2)
    differs = control[:, 0] != control[:, 1]
    found = pair_contrast(showing(labels), {"real": labels, "control": control})
    assert found.right["real"].mean() > 0.98
    assert is_chance(found.right["control"][differs].mean(), int(differs.sum()))
    assert np.isnan(found.right["control"][~differs]).all()
    remembered, _ = read(np.eye(40)[types], control)
    assert np.nanmean(remembered) > 0.8


def test_variables_do_not_depend_on_their_company() -> None:
    labels, other = drawn(), drawn(20)
    features = showing(labels, noise=1.5)
    alone, together = read(features, labels), pair_contrast(features, {"other": other, "it": labels})
    np.testing.assert_array_equal(alone[0], together.right["it"])
    np.testing.assert_array_equal(alone[1], together.named["it"])


def test_members_may_change_places_and_features_their_scale() -> None:
    labels = drawn()
    features = showing(labels, noise=1.0)
    right, named = read(features, labels)
    np.testing.assert_array_equal(read(features[:, ::-1], labels[:, ::-1]), (right, named))
    np.testing.assert_array_equal(read(features * 1e6 + 3, labels), (right, named))
    np.testing.assert_array_equal(read(features, labels, seed=0), (right, named))
    assert not np.array_equal(read(features, labels, seed=1), (right, named))


def test_bad_input_is_refused() -> None:
    labels = drawn()
    with pytest.raises(StoreError, match=r"features are \(150, 3, 20\); expected \(pairs, 2, d\)"):
        read(np.zeros((PAIRS, 3, WIDTH)), labels)
    with pytest.raises(StoreError, match=r"and labels \(pairs, 2\)"):
        read(noise(), labels[:-1])
    with pytest.raises(StoreError, match=r"features are \(150, 20\); expected \(pairs, 2, d\)"):
        read(noise()[:, 0], labels)
    few = noise()
    few[9:, 0] = np.nan
    with pytest.raises(StoreError, match="9 pairs have features here; a contrast needs at least 10"):
        read(few, labels)
