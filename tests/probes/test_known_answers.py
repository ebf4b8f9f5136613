"""Data whose answer is known: what a probe must find, and what it must not."""

import numpy as np
import pandas as pd
import pytest
import torch

from seamscope.hooks import Ragged
from seamscope.probes import probe_features, probe_grid, summarise

SITE, SPAN = "lm.0.resid_post", "last"


def one_each(features):
    """One token per row."""
    return Ragged(torch.tensor(features, dtype=torch.float32), torch.ones(len(features), dtype=torch.long))


def table(labels, types, groups):
    ids = [str(i) for i in range(len(labels))]
    return pd.DataFrame(
        {"id": ids, "group": [f"g{g}" for g in groups], "var:x": labels, "type:x": [f"t{t}" for t in types]}
    )


def planted(labels, d, strength, rng):
    """Noise plus a direction for each label."""
    return strength * rng.normal(size=(labels.max() + 1, d))[labels] + rng.normal(size=(len(labels), d))


@pytest.fixture
def measure(make_store):
    """Write features and labels as a store and give the pooled result of its one cell."""

    def run(features, labels, *, types=None, groups=None, **options):
        n = len(labels)
        types = np.random.default_rng(9).integers(n // 10, size=n) if types is None else types
        groups = np.arange(n) // 2 if groups is None else groups
        rows = table(labels, types, groups)
        store = make_store({"direct": (rows, {(SITE, SPAN): one_each(features)})})
        return summarise(probe_grid(store, "x", **options)).iloc[0]

    return run


def test_a_planted_linear_signal_is_found(measure):
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=240)
    found = measure(planted(labels, 32, 1.0, rng), labels)
    assert found.accuracy > 0.95
    assert found.low > 0.9
    assert found.selectivity_low > 0.5
    assert found.chance < 0.3
    assert found.converged
    assert not found.starved


def test_noise_is_at_chance(measure):
    """An interval of 95 % may miss once in twenty times."""
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        labels = rng.integers(4, size=240)
        found.append(measure(rng.normal(size=(240, 32)), labels, C=0.01, seed=seed))
    assert sum(each.low < 0.25 < each.high for each in found) >= 10
    assert sum(each.selectivity_low < 0 < each.selectivity_high for each in found) >= 10
    assert sum(each.q < 0.05 for each in found) <= 1


def test_an_exclusive_or_is_not_linear(measure):
    rng = np.random.default_rng(2)
    a, b = rng.integers(2, size=(2, 300))
    directions = rng.normal(size=(2, 16))
    features = (np.stack([a, b], 1) * 2 - 1) @ directions + 0.3 * rng.normal(size=(300, 16))
    found = measure(features, a ^ b)
    assert found.low < 0.5 < found.high
    assert measure(features, a).accuracy > 0.95
    assert measure(features, b).accuracy > 0.95


@pytest.mark.parametrize("classes", [2, 5])
def test_shuffled_labels_are_at_chance_where_the_real_ones_are_read(measure, classes):
    rng = np.random.default_rng(classes)
    labels = np.arange(300) % classes
    found = measure(planted(labels, 32, 1.0, rng), labels)
    assert found.accuracy > 0.9
    assert found.shuffled_low < 1 / classes < found.shuffled_high


def test_a_split_that_separates_partners_is_caught(measure):
    """Partners are near copies with one random label: nothing but the copy can be learnt."""
    rng = np.random.default_rng(3)
    pairs = 120
    labels = np.repeat(rng.integers(3, size=pairs), 2)
    features = np.repeat(rng.normal(size=(pairs, 96)), 2, axis=0) + 0.05 * rng.normal(size=(2 * pairs, 96))
    grouped = measure(features, labels, groups=np.arange(2 * pairs) // 2)
    naive = measure(features, labels, groups=np.arange(2 * pairs))
    assert grouped.low < 1 / 3 < grouped.high
    assert naive.low > 0.6


def test_selectivity_is_zero_where_types_can_be_memorised(measure):
    """One-hot types give the control labels as well as the real ones."""
    types = np.arange(240) % 12
    found = measure(np.eye(12)[types], types % 3, types=types, groups=np.arange(240))
    assert found.accuracy == found.control_accuracy == 1
    assert found.selectivity == found.selectivity_low == found.selectivity_high == 0


def test_selectivity_is_high_where_only_the_label_is_there(measure):
    types = np.arange(240) % 12
    labels = types % 3
    found = measure(planted(labels, 16, 2.0, np.random.default_rng(4)), labels, types=types)
    assert found.accuracy > 0.95
    assert found.control_accuracy < 0.8
    assert found.selectivity_low > 0.1
    assert found.selectivity == pytest.approx(found.accuracy - found.control_accuracy)


def test_without_control_and_shuffle_their_columns_are_empty(measure):
    labels = np.arange(60) % 2
    found = measure(np.random.default_rng(0).normal(size=(60, 3)), labels, control=False, shuffled=False)
    names = ["control_accuracy", "selectivity", "selectivity_low", "shuffled_accuracy", "shuffled_high"]
    assert found[names].isna().all()
    assert 0 <= found.low <= found.accuracy <= found.high <= 1


def test_an_imbalanced_target_has_a_high_chance(measure):
    labels = (np.arange(200) % 10 == 0).astype(int)
    found = measure(np.random.default_rng(0).normal(size=(200, 4)), labels, C=1e-4)
    assert found.chance == pytest.approx(0.9, abs=0.01)
    assert found.accuracy == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_noise_beats_no_guess_where_classes_are_balanced(classes):
    """The commonest class in training is rare among what is held out; to beat that guess is nothing."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(120) % classes)
        rows = pd.DataFrame({"group": np.arange(120).astype(str), "var:x": labels, "type:x": labels})
        X = rng.normal(size=(120, 32))
        found.append(
            summarise(probe_features(X, rows, "x", name="X", seed=seed, control=False, shuffled=False, code=False))
        )
    table = pd.concat(found)
    assert (table.p < 0.05).mean() <= 0.15
    assert table.chance.to_numpy() == pytest.approx(1 / classes)


def test_labels_that_are_not_uniform_take_fewer_bits_without_any_activations():
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.1).astype(int)
    rows = pd.DataFrame({"group": np.arange(400).astype(str), "var:x": labels, "type:x": labels})
    blind = summarise(probe_features(np.zeros((400, 3)), rows, "x", name="X", control=False)).iloc[0]
    entropy = -np.mean(np.log2(np.where(labels == 1, labels.mean(), 1 - labels.mean())))
    assert blind.uniform_bits == 1
    assert entropy < blind.prior_bits < blind.uniform_bits
    assert blind.bits == pytest.approx(blind.prior_bits, abs=0.03)
