"""Probes that must tell an item from its counterfactual partner: is it there, whatever else is known of the item?

A pair shares its question and its layout, and differs in one thing that the picture shows. A probe that scores the
item's label above the partner's in the item's state, more than in the partner's, has read that thing from the state:
what the question gives away, or how common a label is, is the same on both sides and falls out. Chance is one half.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seamscope.hooks import StoreError

PENALTIES: Final = tuple(10.0**k for k in range(6))
FEWEST: Final = 10  # pairs

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class PairHits(NamedTuple):
    """What probes read of each variable in each pair, (pairs,).

    `right`: 1 where the members are told apart rightly, 0 where wrongly, 0.5 where not at all; NaN where they have the
    same label, or one of them has none or no features. `named`: the share of the two members whose label is the one
    that the probe scores highest; NaN where one has no label or no features.
    """

    right: dict[str, Floats]
    named: dict[str, Floats]


def pair_contrast(
    features: Floats, labels: Mapping[str, Codes], *, scored: Floats | None = None, folds: int = 5, seed: int = 0
) -> PairHits:
    """Whether linear probes tell the members of each pair apart, by probes that were fitted on other pairs.

    One ridge regression on the indicators of all labels is fitted for each fold, its penalty chosen for every
    indicator by the leave-one-out error inside the training rows.

    Args:
        features: (pairs, 2, d); rows with a number that is not finite are left out.
        labels: codes of each variable, (pairs, 2), from 0; -1 where a member has no label.
        scored: features of the same pairs from elsewhere, (pairs, 2, d), that are scored in the place of these; each is
            centred on its own mean. What is told from them stands there in the form that these have.
        folds: number of folds; a pair is never on both sides.
        seed: of the folds, which depend on nothing else but the number of pairs.

    Raises:
        StoreError: for fewer than 10 pairs with features, or shapes that do not fit.
    """
    if features.ndim != 3 or features.shape[1] != 2:
        raise StoreError(f"features are {features.shape}; expected (pairs, 2, d), and labels (pairs, 2)")
    pairs = len(features)
    if any(codes.shape != (pairs, 2) for codes in labels.values()):
        raise StoreError(f"features are {features.shape}; expected (pairs, 2, d), and labels (pairs, 2)")
    if scored is not None and scored.shape != features.shape:
        raise StoreError(f"features to be scored are {scored.shape}; expected {features.shape}")
    held = np.asarray(np.isfinite(features).all(axis=2))
    if scored is not None:
        held &= np.isfinite(scored).all(axis=2)
    if held.all(axis=1).sum() < FEWEST:
        raise StoreError(f"{int(held.all(axis=1).sum())} pairs have features here; a contrast needs at least {FEWEST}")
    if scored is not None:
        features, scored = (each - each[held].mean(axis=0) for each in (features, scored))
    fold = np.random.default_rng(seed).permutation(pairs) % folds
    found = PairHits(*({name: np.full(pairs, np.nan) for name in labels} for _ in range(2)))
    for number in range(folds):
        mine, learned = fold == number, held & (fold != number)[:, None]
        tested = np.flatnonzero(mine & held.all(axis=1))
        if len(tested) and learned.any():
            _score(found, features, labels, features if scored is None else scored, learned=learned, tested=tested)
    return found


def _score(
    found: PairHits, features: Floats, labels: Mapping[str, Codes], scored: Floats, *, learned: Any, tested: Codes
) -> None:
    """Fit on some rows, and note which of the tested pairs are told apart."""
    sizes = {name: int(codes.max(initial=-1)) + 1 for name, codes in labels.items()}
    labels = {name: codes for name, codes in labels.items() if sizes[name]}
    if not labels:
        return
    indicators = [np.eye(sizes[name] + 1)[codes[learned]][:, : sizes[name]] for name, codes in labels.items()]
    probe = make_pipeline(StandardScaler(), RidgeCV(PENALTIES, alpha_per_target=True))
    probe.fit(features[learned], np.concatenate(indicators, axis=1))
    scores = probe.predict(scored[tested].reshape(-1, features.shape[2])).reshape(len(tested), 2, -1)
    start = 0
    for name, codes in labels.items():
        own = codes[tested]
        differs = (own[:, 0] != own[:, 1]) & (own >= 0).all(axis=1)
        rows = np.arange(len(tested))
        told = scores[:, :, start : start + sizes[name]]
        change = told[:, 0] - told[:, 1]
        margin = change[rows, own[:, 0]] - change[rows, own[:, 1]]
        found.right[name][tested[differs]] = 0.5 + 0.5 * np.sign(np.round(margin[differs], 9))
        labelled = (own >= 0).all(axis=1)
        found.named[name][tested[labelled]] = (told.argmax(2) == own).mean(1)[labelled]
        start += sizes[name]
