"""Probes that are fitted on features and score others, from elsewhere: are they of the same form?"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.linear_model import RidgeCV

from seamscope.hooks import StoreError
from seamscope.probes import pair_contrast
from seamscope.probes._contrast import PENALTIES

from .test_contrast import KINDS, PAIRS, WIDTH, drawn, is_chance, noise, read, showing


def test_features_scored_by_their_own_probes_are_as_without() -> None:
    """Whatever they add to all rows, which is taken away; and whether they were centred or not."""
    labels, other = drawn(), drawn(20)
    features = showing(labels, noise=1.5)
    centred = features - features.mean((0, 1))
    plain = pair_contrast(centred, {"other": other, "it": labels})
    assert 0.6 < plain.right["it"].mean() < 1  # not so clear that any probe would do
    for learned, scored in ((centred, centred), (features, features), (features + 7, features - 3)):
        found = pair_contrast(learned, {"other": other, "it": labels}, scored=scored)
        for name in ("other", "it"):
            np.testing.assert_array_equal(found.right[name], plain.right[name])
            np.testing.assert_array_equal(found.named[name], plain.named[name])


@pytest.mark.parametrize("seed", [0, 3])
def test_one_fold_of_features_from_elsewhere_by_hand(seed: int) -> None:
    """Learned from one kind of features, scored on the other, each about its own mean."""
    labels = drawn()
    features = showing(labels, noise=1.5) * np.geomspace(0.1, 10, WIDTH) + 4
    scored = features * 0.7 + 2.0 * noise(seed) * np.geomspace(0.1, 10, WIDTH) - 9
    found = pair_contrast(features, {"it": labels}, scored=scored, seed=seed, folds=4)
    mine = np.random.default_rng(seed).permutation(PAIRS) % 4 == 1
    learned = (features - features.mean((0, 1)))[~mine].reshape(-1, WIDTH)
    middle, scale = learned.mean(0), learned.std(0)
    told = np.stack(
        [
            RidgeCV(PENALTIES)
            .fit((learned - middle) / scale, (labels[~mine].ravel() == kind).astype(float))
            .predict(((scored - scored.mean((0, 1)))[mine].reshape(-1, WIDTH) - middle) / scale)
            for kind in range(KINDS)
        ],
        axis=1,
    ).reshape(-1, 2, KINDS)
    for own, (first, second), right, named in zip(
        labels[mine], told, found.right["it"][mine], found.named["it"][mine], strict=True
    ):
        assert named == np.mean([first.argmax() == own[0], second.argmax() == own[1]])
        margin = (first[own[0]] - first[own[1]]) - (second[own[0]] - second[own[1]])
        assert right == (1.0 if margin > 0 else 0.0)
    assert 0.5 < found.right["it"][mine].mean() < 1
    own = pair_contrast(scored, {"it": labels}, seed=seed, folds=4)
    assert not np.array_equal(own.right["it"], found.right["it"])  # negative control


def test_another_form_is_at_chance_though_it_tells_as_much() -> None:
    labels = drawn()
    features = showing(labels)
    shares = []
    for seed in range(30):  # one turn may do well or badly by chance, for all pairs alike
        turned = (features - features.mean((0, 1))) @ ortho_group.rvs(WIDTH, random_state=seed)
        shares.append(pair_contrast(features, {"it": labels}, scored=turned).right["it"].mean())
    assert read(turned, labels)[0].mean() > 0.98
    assert abs(np.mean(shares) - 0.5) < 3 * np.std(shares) / np.sqrt(len(shares))
    unlike = pair_contrast(features, {"it": labels}, scored=-features + 2 * features.mean((0, 1)))
    assert unlike.right["it"].mean() < 0.02  # and worse than that if it is turned round
    assert is_chance(pair_contrast(features, {"it": labels}, scored=noise()).right["it"].mean(), PAIRS)
    assert is_chance(pair_contrast(noise(), {"it": labels}, scored=features).right["it"].mean(), PAIRS)


def test_what_either_kind_lacks_is_left_out() -> None:
    labels = drawn()
    features, scored = showing(labels), showing(labels)
    features[:5, 0], scored[5:10, 1], scored[10:15, 0, 2] = np.nan, np.nan, np.inf
    found = pair_contrast(features, {"it": labels}, scored=scored)
    assert np.isnan(found.right["it"][:15]).all()
    assert np.isnan(found.named["it"][:15]).all()
    assert found.right["it"][15:].mean() > 0.98
    lacks = np.isnan(features) | ~np.isfinite(scored)
    rows = lacks.any(2, keepdims=True)
    poisoned = [np.where(rows, np.nan, each) for each in (features, scored)]
    again = pair_contrast(poisoned[0], {"it": labels}, scored=poisoned[1])
    np.testing.assert_array_equal(again.right["it"], found.right["it"])  # the mean is of rows that both have


def test_features_from_elsewhere_must_fit() -> None:
    labels = drawn()
    with pytest.raises(StoreError, match=r"features to be scored are \(149, 2, 20\); expected \(150, 2, 20\)"):
        pair_contrast(noise(), {"it": labels}, scored=noise()[1:])
    with pytest.raises(StoreError, match=r"features to be scored are \(150, 2, 7\); expected \(150, 2, 20\)"):
        pair_contrast(noise(), {"it": labels}, scored=noise()[:, :, :7])
    few = noise()
    few[9:, 0] = np.nan
    with pytest.raises(StoreError, match="9 pairs have features here; a contrast needs at least 10"):
        pair_contrast(noise(), {"it": labels}, scored=few)
    with pytest.raises(StoreError, match="0 pairs have features here"):
        pair_contrast(noise(), {"it": labels}, scored=noise() + np.nan)
