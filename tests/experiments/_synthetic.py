"""Plausible tables without a model: a small decoder that gets the intermediate too late."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from seamscope.experiments._verdict import Evidence, Verdict

N = 200
TASKS = {"cards.sort": (0.31, 0.86, 0.93, 0.52), "cards.sum": (0.12, 0.71, 0.8, 0.33)}
CONDITIONS = ("direct", "cascaded", "oracle", "cot")


def _interval(p: float, n: int = N) -> tuple[float, float]:
    half = 1.96 * np.sqrt(max(p * (1 - p), 0.002) / n)
    return max(0.0, p - half), min(1.0, p + half)


def gap_table(tasks: dict[str, tuple[float, ...]] | None = None) -> pd.DataFrame:
    rows = []
    for task, shares in (tasks or TASKS).items():
        for subset, n, lift in (("all", N, 0.0), ("both steps pass", N * 2 // 3, 0.6)):
            moved = [s + lift * (1 - s) * (0.2 if k == 0 else 0.9) for k, s in enumerate(shares)]
            for condition, share in zip(CONDITIONS, moved, strict=True):
                low, high = _interval(share, n)
                rows.append((task, subset, condition, n, share, low, high))
            gap = moved[1] - moved[0]
            rows.append((task, subset, "gap", n, gap, gap - 0.06, gap + 0.07))
    return pd.DataFrame(rows, columns=["task", "subset", "condition", "n", "estimate", "low", "high"])


def sites(vision: int = 3, lm: int = 6) -> list[tuple[str, str, float]]:
    tower = [(f"vision.{k}.resid_post", "vision", float(k)) for k in range(vision)]
    decoder = [(f"lm.{k}.resid_post", "lm", float(k)) for k in range(lm)]
    return [*tower, ("projector.out", "projector", np.nan), *decoder]


def _sigmoid(x: float, middle: float, width: float = 0.06) -> float:
    return float(1 / (1 + np.exp(-(x - middle) / width)))


def _readable(place: str, condition: str, stack: str, depth: float) -> float:
    if place == "objects":
        tower = {"vision": 0.35 + 0.5 * depth, "projector": 0.93}
        return tower.get(stack, 0.97 - 0.1 * depth if condition == "direct" else 0.99)
    if condition == "cascaded":
        return 0.9 + 0.08 * depth if place == "last" else 0.7 + 0.2 * depth
    return 0.97 * _sigmoid(depth, 0.55 if place == "last" else 0.35) + 0.1


def probes_table(vision: int = 3, lm: int = 6, objects: int = 3) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for place in ("objects", "question", "last"):
        for condition in ("direct", "cascaded"):
            for site, stack, layer in sites(vision, lm):
                if stack != "lm" and (place != "objects" or condition == "cascaded"):
                    continue
                depth = 0.0 if np.isnan(layer) else layer / max((vision if stack == "vision" else lm) - 1, 1)
                for k in range(objects):
                    rows.append(_probe(rng, place, condition, (site, stack, layer), depth, k))
    return pd.DataFrame(rows)


def _probe(
    rng: np.random.Generator, place: str, condition: str, at: tuple[str, str, float], depth: float, k: int
) -> dict[str, object]:
    share = float(np.clip(_readable(place, condition, at[1], depth) + rng.normal(0, 0.015), 0.05, 1))
    stem = "image.object" if condition == "direct" else "intermediate"
    control = 0.11 + 0.05 * share + rng.normal(0, 0.01)
    blank = place == "question" and depth == 0 and condition == "direct"
    return {
        **dict(zip(("site", "stack", "layer"), at, strict=True)),
        "span": f"{stem}.{k}" if place == "objects" else place,
        "condition": condition,
        "target": f"card.{k}.rank",
        **_scored("", share),
        **_scored("control_", control),
        **_scored("shuffled_", 0.09 + rng.normal(0, 0.015)),
        **_scored("untrained_", 0.3 - 0.1 * depth if place == "objects" else 0.14),
        **_scored("pixels_", 0.8 + 0.02 * k if condition == "direct" else np.nan),
        "embedded_accuracy": 0.95 if condition == "cascaded" and place == "objects" else 0.1,
        "chance": 0.1,
        **_around("selectivity", -0.01 if blank else share - control),
        **_around("bits", 3.4 * (1 - share) + 0.1),
        "uniform_bits": 3.7,
        "q": 0.4 if blank and k == 1 else 1e-9,
        "n_rows": N,
    }


def _scored(prefix: str, share: float) -> dict[str, float]:
    low, high = _interval(share) if np.isfinite(share) else (np.nan, np.nan)
    return {f"{prefix}accuracy": share, f"{prefix}low": low, f"{prefix}high": high}


def _around(name: str, value: float, half: float = 0.05) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def transfer_table(lm: int = 6, objects: int = 3) -> pd.DataFrame:
    """Objects both ways across sites, and the last position, where nothing of it carries over, at the same site."""
    rng, rows = np.random.default_rng(2), []
    places = {("objects", k): (f"intermediate.{k}", f"image.object.{k}") for k in range(objects)}
    places |= {("last", k): ("last", "last") for k in range(objects)}
    layers = [("lm.embed", np.nan), *((f"lm.{k}.resid_post", float(k)) for k in range(lm))]
    for (place, k), (text, picture) in places.items():
        for train, test in ((("cascaded", text), ("direct", picture)), (("direct", picture), ("cascaded", text))):
            for a, (source, _) in enumerate(layers):
                for b, (site, layer) in enumerate(layers):
                    if place == "last" and a != b:
                        continue
                    near = 0.75 - 0.5 * abs(a - b) / lm
                    share = float(np.clip((near if place == "objects" else 0.11) + rng.normal(0, 0.01), 0, 1))
                    rows.append(
                        {
                            **dict(zip(("train_condition", "train_span", "train_site"), (*train, source), strict=True)),
                            **dict(zip(("condition", "span", "site", "layer"), (*test, site, layer), strict=True)),
                            "stack": "lm",
                            "target": f"card.{k}.rank",
                            **_scored("", 0.1 + 0.4 * (share - 0.1)),
                            **_scored("recentred_", share),
                            **_scored("control_", 0.12),
                            "chance": 0.1,
                            "q": 1e-6 if share > 0.3 else 0.2,
                        }
                    )
    return pd.DataFrame(rows)


def causal_table(vision: int = 3, lm: int = 6, conditions: tuple[str, ...] = ("direct",)) -> pd.DataFrame:
    """Objects are used early and the last position late; what lies between is there but not used."""
    rng, rows = np.random.default_rng(3), []
    probes = probes_table(vision, lm)
    for condition in conditions:
        for row in probes[probes.condition == ("direct" if condition == "direct" else "cascaded")].itertuples():
            depth = 0.0 if np.isnan(row.layer) or row.stack == "vision" else row.layer / (lm - 1)
            used = {"last": _sigmoid(depth, 0.6), "question": 0.0}.get(row.span, 1 - _sigmoid(depth, 0.5))
            effect = -4.0 * used * max(row.selectivity, 0) + rng.normal(0, 0.1)
            random = rng.normal(-0.05, 0.08)
            rows.append(
                {
                    **{"condition": condition, "site": row.site, "span": row.span, "variable": row.target},
                    **{"stack": row.stack, "layer": row.layer, "chance": 0.1},
                    **{"accuracy": row.accuracy, "accuracy_low": row.low, "accuracy_high": row.high},
                    **_around("selectivity", row.selectivity),
                    **_around("effect", effect, 0.3),
                    **_around("random_effect", random, 0.3),
                    **_around("difference", effect - random, 0.3),
                    "warning": "an intervention on a subspace can act through a pathway that is dormant otherwise",
                }
            )
    return pd.DataFrame(rows)


def _ranks(name: str, middle: float) -> dict[str, float]:
    return {name: middle, f"{name}_low": max(middle - 2, 0), f"{name}_high": middle + 3}


def lens_table(lm: int = 6, objects: int = 3) -> pd.DataFrame:
    rng, rows = np.random.default_rng(4), []
    for condition, stem in (("direct", "image.object"), ("cascaded", "intermediate")):
        for layer in range(lm):
            depth = layer / (lm - 1)
            for span in (*(f"{stem}.{k}" for k in range(objects)), "question", "last"):
                for what in ("answer", *(f"intermediate.{k}" for k in range(objects))):
                    late = _sigmoid(depth, 0.6 if condition == "cascaded" else 0.9) if span == "last" else 0.1
                    own, other = -7 + 6.5 * late + rng.normal(0, 0.05), -7 - 3 * late + rng.normal(0, 0.05)
                    rows.append(
                        {
                            **{"condition": condition, "site": f"lm.{layer}.resid_post", "layer": layer},
                            **{"span": span, "what": what, "n": N, "n_same": 0},
                            **_ranks("rank", round(60 * (1 - late) ** 3)),
                            **_ranks("partner_rank", 60.0),
                            **_around("logprob", own, 0.3),
                            **_around("partner_logprob", other, 0.4),
                        }
                    )
    return pd.DataFrame(rows)


def grid_table(vision: int = 3, lm: int = 6, folds: int = 3) -> pd.DataFrame:
    """Fold rows of the probes with their learning curves; those of the tower still rise."""
    rows, counts = [], (24, 50, 100, 200)
    for row in probes_table(vision, lm).itertuples():
        start, rising = 0.15, row.stack == "vision"
        steps = (0.0, 0.33, 0.66, 1.0) if rising else (0.0, 0.8, 1.0, 1.0)
        curve = tuple(start + (row.accuracy - start) * step for step in steps)
        own = {"site": row.site, "span": row.span, "condition": row.condition, "target": row.target, "chance": 0.1}
        ends = {"curve_low": tuple(y - 0.04 for y in curve), "curve_high": tuple(y + 0.05 for y in curve)}
        gain = {"curve_rows": counts, "curve": curve, **ends, "gain_low": 0.02 if rising else -0.03}
        rows += [{**own, "fold": fold, **gain} for fold in range(folds)]
    return pd.DataFrame(rows)


def effects_table(vision: int = 3, lm: int = 6) -> pd.DataFrame:
    rng, rows = np.random.default_rng(1), []
    for experiment in ("denoise", "noise", "text_noise", "cross", "cross_control"):
        for span in ("objects", "image", "question", "last", "reading", "objects+reading"):
            for site, stack, layer in sites(vision, lm):
                if stack != "lm" and (span not in ("objects", "image") or experiment[0] in "ct"):
                    continue
                depth = 1.0 if np.isnan(layer) else layer / max((vision if stack == "vision" else lm) - 1, 1)
                share = _moved(experiment, span, stack, depth)
                rows.append(_effect(rng, experiment, site, site, span, stack, (layer, layer), share))
    for source in range(1, lm):
        for layer in range(source):
            for span in ("last", "objects"):
                names = f"lm.{source}.resid_post", f"lm.{layer}.resid_post"
                share = 0.02 + 0.05 * (source - layer) / lm
                rows.append(_effect(rng, "backpatch", *names, span, "lm", (float(source), float(layer)), share))
    return pd.DataFrame(rows)


def _moved(experiment: str, span: str, stack: str, depth: float) -> float:
    late = _sigmoid(depth, 0.55, 0.1)
    bump = 0.35 * float(np.exp(-(((depth - 0.45) / 0.2) ** 2)))
    if experiment == "cross_control":
        return 0.05
    if experiment == "cross":
        few = {"objects": 0.03, "image": 0.04, "question": 0.25 * late, "last": 0.15 + 0.83 * late}
        return few.get(span, 0.3 + 0.68 * late)
    early = 0.92 if stack != "lm" else 0.92 * (1 - late)
    return {"objects": early, "image": min(1, early + 0.04), "question": bump, "last": late}.get(span, 0.97)


def _effect(
    rng: np.random.Generator,
    experiment: str,
    source: str,
    site: str,
    span: str,
    stack: str,
    layers: tuple[float, float],
    share: float,
) -> dict[str, object]:
    base, ceiling = (-0.4, -6.5) if "noise" in experiment and experiment != "denoise" else (-6.5, -0.4)
    effect = float(share * (ceiling - base) + rng.normal(0, 0.08))
    right = float(np.clip(0.12 + (0.9 - 0.12) * share if ceiling > base else 0.9 * (1 - share), 0, 1))
    low, high = _interval(right)
    return {
        "experiment": experiment,
        "source_site": source,
        "target_site": site,
        "span": span,
        "stack": stack,
        "source_layer": layers[0],
        "layer": layers[1],
        "n": N,
        "base": base,
        "ceiling": ceiling,
        "patched": base + effect,
        "effect": effect,
        "low": effect - 0.25,
        "high": effect + 0.25,
        "normalised": effect / (ceiling - base),
        "below_margin": 3,
        "right": right,
        "right_low": low,
        "right_high": high,
        "first_right": min(1.0, right + 0.05),
        "base_right": 0.12 if ceiling > base else 0.9,
        "ceiling_right": 0.9 if ceiling > base else 0.12,
    }


def verdict(locus: str = "too_late", layer: int | None = 3, **changes: object) -> Verdict:
    evidence = Evidence(
        question="Is the intermediate readable at the last position in time?",
        kind="probe",
        measure="accuracy of a linear probe",
        estimate=0.34,
        low=0.28,
        high=0.41,
        control=0.12,
        finding="It is readable there only from decoder layer 3 on.",
        site="lm.2.resid_post",
        span="last",
        layer=2,
    )
    patch = Evidence(
        question="Does the cascaded run's state bring the answer back?",
        kind="patch",
        measure="share of answers restored",
        estimate=0.91,
        low=0.87,
        high=0.95,
        control=0.05,
        finding="Yes, from layer 3 on.",
    )
    settings: dict[str, object] = {
        "task": "cards.sort",
        "model": "organism",
        "locus": locus,
        "layer": layer,
        "interval": None if layer is None else (layer - 1, layer + 1),
        "confidence": 0.94,
        "summary": "The ranks reach the last position after the layers that could have sorted them.",
        "overturn": "Back-patching late states into earlier layers would have to change nothing.",
        "gap": {"estimate": 0.55, "low": 0.49, "high": 0.62},
        "evidence": (evidence, patch),
    }
    return Verdict(**{**settings, **changes})  # type: ignore[arg-type]


GROUPS = 40


def path_table(lost: str | None = None, *, vision: int = 3, lm: int = 6, every: int = 1, seed: int = 5) -> pd.DataFrame:
    """Two objects of each pair, named nearly always, and from the place `lost` on by chance, 0.2; every so many layers.

    The rows of text runs are those of the words, which are always named.
    """
    rng, rows, held = np.random.default_rng(seed), [], True
    tower = [f"vision.{k}.resid_post" for k in range(0, vision, every)]
    decoder = [f"lm.{k}.resid_post" for k in range(0, lm, every)]
    for site in (*tower, "projector.out", "lm.embed", *decoder):
        held = held and site != lost
        rows += _pairs(rng, "direct", site, "objects", 0.96 if held else 0.2, objects=2)
    return pd.DataFrame([*rows, *_pairs(rng, "oracle", "lm.embed", "objects", 1.0, objects=2)])


def reading_table(arrival: int | None = 3, *, lm: int = 6, seed: int = 6) -> pd.DataFrame:
    """Direct runs hold the objects at the reading positions from the layer `arrival` on, text runs everywhere."""
    rng, rows = np.random.default_rng(seed), []
    for condition in ("direct", "oracle"):
        for span in ("last", "question"):
            for k in range(lm):
                there = condition == "oracle" or (arrival is not None and k >= arrival)
                rows += _pairs(rng, condition, f"lm.{k}.resid_post", span, 0.95 if there else 0.2)
                rows += _pairs(rng, condition, f"lm.{k}.resid_post", span, 0.2, kind="answer")
    return pd.DataFrame(rows)


def _pairs(
    rng: np.random.Generator,
    condition: str,
    site: str,
    span: str,
    share: float,
    *,
    objects: int = 1,
    kind: str = "object",
) -> list[dict[str, object]]:
    """A row per pair and object: named with that share, told apart with what it leaves beyond chance."""
    rows = []
    for group, number in itertools.product(range(GROUPS), range(objects)):
        apart = 0.5 + 0.5 * max(0.0, (share - 0.2) / 0.8)
        rows.append(
            {
                **{"condition": condition, "site": site, "kind": kind, "group": f"g{group}", "span": span},
                **{"right": float(rng.random() < apart), "control": float(rng.random() < 0.5), "object": number},
                **{"named": float(rng.binomial(2, share)) / 2, "named_control": float(rng.binomial(2, 0.2)) / 2},
                "floor": 0.2,
            }
        )
    return rows


def outcomes_table(able: int = 36, failing: int = 30) -> pd.DataFrame:
    """The first groups are answered from the gold intermediate; the first of these fail directly."""
    return pd.DataFrame(
        {
            **{"id": f"g{k}", "group": f"g{k}", "task": "cards.sort", "condition": condition},
            **{"output": "", "correct": k < able and not lost},
        }
        for k in range(GROUPS)
        for condition, lost in (("direct", k < failing), ("oracle", False))
    )


def needs_table(read: int = 2, *, lm: int = 6, seed: int = 7) -> pd.DataFrame:
    """Text runs lose nearly the whole answer when the words are exchanged behind a layer up to `read`."""
    rng, rows = np.random.default_rng(seed), []
    for group, k in itertools.product(range(GROUPS), range(lm)):
        base, ceiling = -0.3, -4.0 + rng.normal(0, 0.3)
        lost = (0.9 if k <= read else 0.05) * (base - ceiling) + rng.normal(0, 0.2)
        rows.append(_swept("text_noise", k, "objects", group, base=base, ceiling=ceiling, patched=base - lost))
    return pd.DataFrame(rows)


def moved_table(experiment: str, shares: tuple[float, ...], *, control: float = 0.1, seed: int = 8) -> pd.DataFrame:
    """By layer, the share of answers that come right, and with the partner's states."""
    rng, rows = np.random.default_rng(seed), []
    span = "image" if experiment == "hold" else "reading"
    for group, (k, share) in itertools.product(range(GROUPS), enumerate(shares)):
        for name, chance in ((experiment, share), (f"{experiment}_control", control)):
            rows.append(_swept(name, k, span, group, right=bool(rng.random() < chance)))
    return pd.DataFrame(rows)


def _swept(experiment: str, layer: int, span: str, group: int, **found: object) -> dict[str, object]:
    site = f"lm.{layer}.resid_post"
    own = {"experiment": experiment, "source_site": site, "target_site": site, "span": span}
    return {"id": f"g{group}", "group": f"g{group}", **own, "base_right": False, **found}


def located_tables(lost: str = "lm.2.resid_post") -> dict[str, pd.DataFrame]:
    """All tables of the locator at once."""
    return {
        "answers": outcomes_table(),
        "path": path_table(lost),
        "reading": reading_table(),
        "needs": needs_table(),
        "hold": moved_table("hold", (0.9, 0.9, 0.9, 0.0, 0.0)),
        "given": moved_table("cross", (0.9, 0.9, 0.9, 0.4, 0.2, 0.2)),
    }
