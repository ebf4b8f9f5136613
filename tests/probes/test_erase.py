"""Erasing and pushing, where the answer is known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from seamscope.hooks import RunError
from seamscope.probes import LinearProbe, fit_direction, fit_eraser, random_eraser


def planted(classes, *, n=400, d=16, strength=1.5, seed=0):
    """Correlated noise, and a direction for each label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    noise = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d)
    signal = strength * rng.normal(size=(classes, d))[labels]
    return torch.tensor(noise + signal + 3), np.array(list("abcdefghij"))[labels]


def accuracy(X, labels):
    return (LinearProbe().fit(X.numpy(), labels).predict(X.numpy()) == labels).mean()


def apart(X, labels):
    """How far the labels' means are from one another, in standard deviations."""
    means = torch.stack([X[torch.from_numpy(labels == name)].mean(0) for name in np.unique(labels)])
    return float(((means - means.mean(0)) / X.std(0)).abs().max())


@pytest.mark.parametrize("classes", [2, 5])
def test_a_planted_signal_is_gone_and_a_random_subspace_leaves_it(classes):
    X, labels = planted(classes)
    eraser = fit_eraser(X, labels)
    commonest = np.unique(labels, return_counts=True)[1].max() / len(labels)
    assert accuracy(X, labels) > 0.95
    assert accuracy(eraser.erase(X), labels) == pytest.approx(commonest)
    assert apart(X, labels) > 0.5
    assert apart(eraser.erase(X), labels) < 1e-9
    assert accuracy(random_eraser(X, eraser.rank, 0).erase(X), labels) > 0.8


def test_no_logistic_regression_has_a_smaller_loss_than_the_shares_of_the_labels():
    """Section 3 of the paper, for a probe that is not ours and has next to no penalty."""
    X, labels = planted(4)
    erased = fit_eraser(X, labels).erase(X).numpy()
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    probe = LogisticRegression(C=1e8, max_iter=10_000, tol=1e-10).fit(erased, labels)
    assert log_loss(labels, probe.predict_proba(erased)) == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-6)


def test_it_is_the_packages_leace_of_standardised_rows():
    from concept_erasure import LeaceFitter  # torch warns where it is imported first

    for n, d in ((400, 16), (60, 16), (30, 40)):
        X, labels = planted(4, n=n, d=d)
        mean, spread = X.mean(0), X.std(0, correction=0)
        one_hot = torch.tensor(labels[:, None] == np.unique(labels)).double()
        theirs = LeaceFitter.fit((X - mean) / spread, one_hot).eraser
        expected = theirs((X - mean) / spread) * spread + mean
        torch.testing.assert_close(fit_eraser(X, labels).erase(X), expected, rtol=0, atol=1e-10)


def test_less_is_changed_than_by_an_orthogonal_projection_that_erases_as_well():
    X, labels = planted(4, n=4000)
    means = torch.stack([X[torch.from_numpy(labels == name)].mean(0) for name in np.unique(labels)])
    basis = torch.linalg.svd(means - X.mean(0), full_matrices=False)[2][:3]
    orthogonal = X - (X - X.mean(0)) @ basis.T @ basis
    erased = fit_eraser(X, labels).erase(X)
    assert apart(orthogonal, labels) < 0.1
    metric = torch.linalg.inv(torch.cov(X.T))
    change, other = (torch.einsum("nd,de,ne->n", moved, metric, moved).mean() for moved in (erased - X, orthogonal - X))
    assert change < 0.9 * other


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_rank_is_the_number_of_labels_less_one(classes):
    X, labels = planted(classes)
    eraser = fit_eraser(X, labels)
    assert eraser.rank == classes - 1
    control = random_eraser(X, eraser.rank, 0)
    assert control.rank == classes - 1
    for each in (eraser, control):
        assert int(torch.linalg.matrix_rank(torch.cov(each.erase(X).T))) == 16 - each.rank
        torch.testing.assert_close(each.right @ each.left, torch.eye(each.rank, dtype=torch.float64))


def test_twice_is_once_and_the_mean_stays():
    X, labels = planted(5)
    for eraser in (fit_eraser(X, labels), random_eraser(X, 4, 1)):
        once = eraser.erase(X)
        torch.testing.assert_close(eraser.erase(once), once, rtol=0, atol=1e-10)
        torch.testing.assert_close(once.mean(0), X.mean(0))


def test_an_exclusive_or_survives():
    """Nothing of it is linear: erasing does not touch what a product of two features tells."""
    rng = np.random.default_rng(2)
    a, b = rng.integers(2, size=(2, 600))
    X = torch.tensor((np.stack([a, b], 1) * 2.0 - 1) @ rng.normal(size=(2, 8)) + 0.1 * rng.normal(size=(600, 8)))
    labels = np.array(["even", "odd"])[a ^ b]

    def products(X):
        return torch.einsum("ni,nj->nij", X, X).flatten(1)

    erased = fit_eraser(X, labels).erase(X)
    assert accuracy(X, labels) < 0.65
    assert accuracy(erased, labels) < 0.6
    assert accuracy(products(X), labels) > 0.99
    assert accuracy(products(erased), labels) > 0.99


def test_held_out_rows_lose_what_is_linear_as_well():
    X, labels = planted(4, n=2000)
    eraser, control = fit_eraser(X[:1000], labels[:1000]), random_eraser(X[:1000], 3, 0)
    probe = LinearProbe().fit(X[:1000].numpy(), labels[:1000])
    read = {
        name: (probe.predict(each.numpy()) == labels[1000:]).mean()
        for name, each in {
            "as it is": X[1000:],
            "erased": eraser.erase(X[1000:]),
            "random": control.erase(X[1000:]),
        }.items()
    }
    assert read["as it is"] > 0.95
    assert read["erased"] < 0.4
    assert read["random"] > 0.6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_vectors_keep_their_dtype_and_shape(dtype):
    X, labels = planted(3)
    eraser, directions = fit_eraser(X, labels), fit_direction(X, labels)
    given = X[:6].to(dtype).reshape(2, 3, 16)
    before = given.clone()
    for new, exact in (
        (eraser.erase(given), eraser.erase(given.double())),
        (directions.push(given, "a", "b"), directions.push(given.double(), "a", "b")),
        (directions.random_push(given, "a", "b", seed=1), directions.random_push(given.double(), "a", "b", seed=1)),
    ):
        assert new.dtype == dtype
        assert new.shape == given.shape
        assert torch.equal(new, exact.to(dtype))
    assert torch.equal(given, before)


def test_it_can_be_fitted_on_bfloat16():
    X, labels = planted(3)
    half = X.bfloat16()
    assert fit_eraser(half, labels).left.dtype == torch.float64
    assert apart(fit_eraser(half, labels).erase(half.double()), labels) < 1e-9


def test_a_rare_label_is_erased_too():
    """The package's own tolerance leaves it in."""
    rng = np.random.default_rng(0)
    X = torch.tensor(rng.normal(size=(5000, 20)))
    labels = np.array(["rare"] * 10 + ["usual"] * 4990)
    eraser = fit_eraser(X, labels)
    assert eraser.rank == 1
    assert apart(X, labels) > 0.1
    assert apart(eraser.erase(X), labels) < 1e-9


def test_rows_that_are_white_already_are_erased_too():
    """The package's shrinkage gives something that is no covariance there."""
    X, labels = planted(4, n=200, d=100)
    centred = X - X.mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(X))
    white = centred @ axes / variances.sqrt()
    assert apart(white, labels) > 0.1
    assert apart(fit_eraser(white, labels).erase(white), labels) < 1e-9


def test_more_features_than_rows():
    X, labels = planted(4, n=60, d=200)
    eraser = fit_eraser(X, labels)
    assert eraser.rank == 3
    assert apart(eraser.erase(X), labels) < 1e-9


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_features_does_not_matter(scale):
    X, labels = planted(4)
    small, plain = fit_eraser(X * scale, labels), fit_eraser(X, labels)
    torch.testing.assert_close(small.erase(X * scale) / scale, plain.erase(X), rtol=1e-8, atol=1e-8)
    small, plain = random_eraser(X * scale, 3, 5), random_eraser(X, 3, 5)
    torch.testing.assert_close(small.erase(X * scale) / scale, plain.erase(X), rtol=1e-8, atol=1e-8)


def test_where_nothing_is_told_nothing_is_erased():
    X = torch.full((20, 4), 0.1)
    labels = np.array(["a", "b"] * 10)
    for eraser in (fit_eraser(X, labels), random_eraser(X, 2, 0), random_eraser(planted(2)[0][:, :4], 0, 0)):
        assert eraser.rank == 0
        assert torch.equal(eraser.erase(X), X)


def test_a_random_subspace_depends_on_its_seed_alone():
    X, _ = planted(3)
    first, same, other = (random_eraser(X, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(first.left, same.left)
    assert not torch.allclose(first.erase(X), other.erase(X))


def test_a_random_subspace_regards_how_the_rows_vary():
    """Where features are white each direction is as likely: what is lost does not depend on their variances."""
    rng = np.random.default_rng(0)
    spread = torch.logspace(-2, 2, 8, dtype=torch.float64)
    X = torch.tensor(rng.normal(size=(4000, 8))) * spread
    lost = [1 - random_eraser(X, 2, seed).erase(X).var(0) / X.var(0) for seed in range(200)]
    torch.testing.assert_close(torch.stack(lost).mean(0), torch.full((8,), 2 / 8).double(), rtol=0, atol=0.06)


def test_rows_of_a_group_share_what_is_drawn():
    """Then all that is taken out lies along the differences of groups; else it need not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 50)
    X = torch.tensor(rng.normal(size=(6, 16))[groups] + rng.normal(size=(300, 16)))
    means = torch.stack([X[torch.from_numpy(groups == group)].mean(0) for group in range(6)])
    basis = torch.linalg.svd(means - means.mean(0), full_matrices=False)[2][:5]

    def beside(eraser):
        return float((eraser.left - basis.T @ basis @ eraser.left).norm() / eraser.left.norm())

    assert beside(random_eraser(X, 3, 0, groups=groups)) < 1e-9
    assert beside(random_eraser(X, 3, 0)) > 0.5
    assert random_eraser(X, 3, 0, groups=groups).rank == 3
    assert random_eraser(X, 9, 0, groups=groups).rank == 5


def test_a_push_moves_a_labels_mean_onto_anothers():
    X, labels = planted(3)
    directions = fit_direction(X, labels)
    own, other = (X[torch.from_numpy(labels == name)] for name in "ac")
    assert directions.labels == ("a", "b", "c")
    torch.testing.assert_close(directions.push(own, "a", "c").mean(0), other.mean(0))
    torch.testing.assert_close(directions.push(own, "a", "c", 0.5).mean(0), (own.mean(0) + other.mean(0)) / 2)
    assert torch.equal(directions.push(own, "b", "b"), own)


def test_what_is_pushed_reads_as_the_other_label_and_a_random_push_does_not():
    X, labels = planted(3, d=64)
    directions, probe = fit_direction(X, labels), LinearProbe().fit(X.numpy(), labels)
    own = X[torch.from_numpy(labels == "a")]
    pushed, random = directions.push(own, "a", "c"), directions.random_push(own, "a", "c", seed=3)
    assert (probe.predict(pushed.numpy()) == "c").mean() > 0.95
    assert (probe.predict(random.numpy()) == "c").mean() < 0.1
    torch.testing.assert_close((pushed - own).norm(dim=1), (random - own).norm(dim=1))
    assert torch.equal(random, directions.random_push(own, "a", "c", seed=3))
    assert not torch.equal(random, directions.random_push(own, "a", "c", seed=4))


@pytest.mark.parametrize("fit", [fit_eraser, fit_direction])
@pytest.mark.parametrize(
    ("X", "labels", "told"),
    [
        (torch.zeros(4, 2), ["x"] * 4, "at least two different labels are needed; all 4 have 'x'"),
        (torch.zeros(1, 2), ["x"], r"rows are needed of shape \(n, d\), two at least, not \(1, 2\)"),
        (torch.zeros(4, 2), ["x", "y"], r"each row needs one label; got 4 rows and labels of shape \(2,\)"),
        (torch.tensor([[0.0], [float("nan")]]), ["x", "y"], "not finite"),
        (torch.zeros(4, 2, 2), ["x", "y"] * 2, r"two at least, not \(4, 2, 2\)"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(fit, X, labels, told):
    with pytest.raises(RunError, match=told):
        fit(X, labels)


def test_what_does_not_fit_is_refused():
    X, labels = planted(3)
    with pytest.raises(RunError, match="rank is 17; vectors of size 16 can lose 0 to 16 dimensions"):
        random_eraser(X, 17, 0)
    with pytest.raises(RunError, match=r"each row needs one group; got 400 rows and groups of shape \(2,\)"):
        random_eraser(X, 1, 0, groups=[0, 1])
    with pytest.raises(RunError, match="takes vectors of size 16, not 8"):
        fit_eraser(X, labels).erase(X[:, :8])
    with pytest.raises(RunError, match="unknown label 'z'; one of: a, b, c"):
        fit_direction(X, labels).push(X, "a", "z")
