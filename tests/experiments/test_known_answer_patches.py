"""Every way to patch and to cut finds the circuit of models whose weights were set by hand, and nothing else.

The models are described in `known_answers.py` of the tests of hooks: its `pairs` are clean and corrupt prompts, and its
`CIRCUITS` say which heads carry the answer, and which only look as if.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
import torch

from seamscope.experiments.sweeps import (
    best_cells,
    exits,
    knockouts,
    layer_cells,
    paths,
    severed,
    sites_of,
    summarise_sweep,
    sweep,
    sweep_all,
)
from seamscope.experiments.tasks import JsonlTask, Wording
from seamscope.hooks import (
    Attribution,
    Batch,
    Cut,
    Edit,
    Patch,
    Ragged,
    Replay,
    Score,
    SiteError,
    Vlm,
    capture,
    direct_path,
    knockout,
    patch,
    replay,
)

from ..hooks.known_answers import (
    ASKS,
    CELLS,
    CIRCUITS,
    COLOUR,
    DIGITS,
    GAIN,
    HEADS,
    LAYERS,
    Head,
    Pair,
    load,
    pairs,
    shown,
    write_records,
)

EACH = pytest.mark.parametrize("name", CIRCUITS)
EACH_WAY = pytest.mark.parametrize("experiment", ["denoise", "noise"])
N = 6
NOTHING, EVERYTHING = 0.03, 0.97  # a cell does less than the one share of what there is to do, or more than the other
MEASURES = ["normalised", "difference_normalised"]  # of the log-probability, and of the logit difference
HEAD_CELLS = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, JsonlTask]:
    """The pairs of each model as a task from a file."""
    words = Wording(perceive="what is the card ?")
    folders: dict[str, Path] = {name: tmp_path_factory.mktemp(name) for name in CIRCUITS}
    return {name: JsonlTask(write_records(folder, name, N), wording=words) for name, folder in folders.items()}


def layers_of(name: str) -> list[int]:
    return sorted({layer for layer, _ in CIRCUITS[name].copying})


def found(rows: pd.DataFrame, *columns: str) -> set[tuple[object, ...]]:
    """The cells that do everything, by both measures; all others must do nothing."""
    table = summarise_sweep(rows)
    assert (table.below_margin == 0).all()
    everything, nothing = (table[MEASURES] > EVERYTHING).all(axis=1), (table[MEASURES].abs() < NOTHING).all(axis=1)
    assert (everything | nothing).all(), table[~(everything | nothing)].to_string()
    return set(table.loc[everything, list(columns)].itertuples(index=False, name=None))


def as_heads(cells: set[tuple[object, ...]]) -> set[Head]:
    return {(int(str(site).split(".")[1]), int(str(head))) for site, head in cells}


# the models are what they are said to be


@EACH
def test_it_says_the_colour_whatever_its_cell_and_however_long_the_question(name: str) -> None:
    """A question of 80 words between the two changes nothing, so rotary embeddings do not."""
    vlm = load(name)
    asked = [(colour, cell, "?") for colour in DIGITS for cell in range(CELLS)]
    asked += [(colour, 4, "what is the sum ? " * 16) for colour in DIGITS]
    batch = vlm.encode([shown(c, k, question=q) for c, k, q in asked], answers=[DIGITS[c] for c, _, _ in asked])
    score = vlm.score(batch)
    assert score.greedy.all()
    assert (score.logprob > -0.05).all()
    assert vlm.generate(vlm.encode([shown("red", 2), shown(None, 2)]), max_new_tokens=4) == ["7", "0"]


@EACH
def test_copying_heads_and_decoys_look_at_the_colour_from_the_last_token_only(name: str) -> None:
    vlm, circuit = load(name, "eager"), CIRCUITS[name]
    batch = vlm.encode([shown("blue", 7), shown("red", 0, question="what is the sum ? " * 16)], padding="right")
    with capture(vlm, ["lm.embed", "lm.*.pattern"]) as acts:
        vlm.forward(batch)
    for row, spans in enumerate(batch.spans):
        ((last,), (object_,), image) = (spans[each].tolist() for each in ("last", "image.object.0", "image"))
        colour = [0.0, 0.0, 1.0] if row == 0 else [1.0, 0.0, 0.0]
        assert acts["lm.embed"][row, object_, COLOUR:ASKS].tolist() == pytest.approx(colour, abs=0.1)
        for layer, head in HEAD_CELLS:
            weights = acts[f"lm.{layer}.pattern"][row, head]
            looks = (layer, head) in (*circuit.copying, *circuit.decoys)
            assert bool(weights[last, object_] > 0.999) == looks
            assert not looks or float(weights[max(image) + 1 : last, image].max()) < 1e-4
            assert looks or weights[last, object_] < 0.2


# sweeps


@EACH
@EACH_WAY
def test_layers_by_tokens(name: str, experiment: str, tasks: dict[str, JsonlTask]) -> None:
    """The answer is at the object until it is copied, and at the last token from then on.

    With two heads, denoising finds it at both between them: each is enough. Noising finds it at neither: no layer's
    residual stream there, at any one token, is needed. What no single cell shows needed is not therefore unused.
    """
    vlm, (first, *_, last) = load(name), [*layers_of(name), *layers_of(name)]
    cells = layer_cells(vlm, sites=["lm.*.resid_post"], spans=["prompt"])
    rows = sweep(vlm, tasks[name], tasks[name].items(N), experiment=experiment, cells=cells, by="token")
    assert set(rows.span) == {"template", "image", "image.object.0", "question", "last"}
    left, reached = (last, first) if experiment == "denoise" else (first, last)
    wanted = {(f"lm.{layer}.resid_post", "image.object.0", 0) for layer in range(left)}
    wanted |= {(f"lm.{layer}.resid_post", "last", 0) for layer in range(reached, LAYERS)}
    assert found(rows, "target_site", "span", "token") == wanted


@EACH
@EACH_WAY
def test_tower_and_projector_hold_it_at_the_object(name: str, experiment: str, tasks: dict[str, JsonlTask]) -> None:
    vlm = load(name)
    cells = layer_cells(vlm, sites=["vision.*.resid_post", "projector.out"], spans=["objects"])
    rows = sweep(vlm, tasks[name], tasks[name].items(N), experiment=experiment, cells=cells)
    assert len(found(rows, "target_site")) == 3


def by_head(name: str, experiment: str, task: JsonlTask) -> pd.DataFrame:
    vlm = load(name)
    cells = layer_cells(vlm, sites=["lm.*.head_z"], spans=["last", "question"])
    rows = sweep(vlm, task, task.items(N), experiment=experiment, cells=cells, by="head")
    assert len(rows) == N * 2 * LAYERS * HEADS
    return rows


@EACH_WAY
def test_the_copying_head_is_found_alone(experiment: str, tasks: dict[str, JsonlTask]) -> None:
    """No other head is: not the decoys, which look at the object as hard, and not the same head at other tokens."""
    rows = by_head("copying", experiment, tasks["copying"])
    assert found(rows, "target_site", "head", "span") == {("lm.2.head_z", 1, "last")}
    (best,) = best_cells(rows).to_dict("records")
    assert (best["target_site"], best["head"], best["span"]) == ("lm.2.head_z", 1, "last")


def test_of_a_redundant_pair_noising_finds_neither_head_and_denoising_both(tasks: dict[str, JsonlTask]) -> None:
    """Why noising alone misleads: it asks whether a head is needed, and while the other copies, neither is.

    By both measures noising any single head of this model does nothing, though its answer is carried by two of them.
    """
    denoised, noised = (by_head("redundant", way, tasks["redundant"]) for way in ("denoise", "noise"))
    assert as_heads(found(denoised[denoised.span == "last"], "target_site", "head")) == set(
        CIRCUITS["redundant"].copying
    )
    assert found(noised, "target_site", "head") == set()
    assert noised.right.all()


@EACH
@pytest.mark.parametrize("window", [1, 2, 3])
def test_knockout_hurts_in_windows_that_hold_every_copying_layer(
    name: str, window: int, tasks: dict[str, JsonlTask]
) -> None:
    """And the exit of the image's tokens does, wherever that leaves no copying layer."""
    vlm = load(name)
    plans = [knockouts(vlm, pairs=[("last", "objects"), ("question", "objects")], window=window), exits(vlm)]
    rows = sweep_all(vlm, tasks[name], tasks[name].items(N), plans)
    share = (rows.base_difference - rows.difference) / GAIN
    routes = (rows.experiment == "exit") | ((rows.experiment == "knockout") & (rows["queries"] == "last"))
    holds = [set(layers_of(name)) <= set(range(a, b + 1)) for a, b in zip(rows["first"], rows["last"], strict=True)]
    hurts = routes & pd.Series(holds)
    assert hurts.any() or window < len(layers_of(name))
    assert share[hurts].between(0.9, 1.1).all()
    assert not rows.right[hurts].any()
    assert share[~hurts].abs().max() < NOTHING
    assert rows.right[~hurts].all()
    assert len(rows.experiment.unique()) == 3


@EACH
def test_cutting_all_layers_hurts_whichever_of_them_copies(name: str, tasks: dict[str, JsonlTask]) -> None:
    """And to cut other tokens of the picture does not."""
    vlm = load(name)
    rows = sweep_all(vlm, tasks[name], tasks[name].items(N), [severed(vlm)])
    share = ((rows.base_difference - rows.difference) / GAIN).groupby(rows.experiment)
    assert share.size().to_dict() == {"severed": N, "severed_control": N}
    assert share.min()["severed"] > 0.9
    assert share.max().abs()["severed_control"] < NOTHING


@EACH
@EACH_WAY
def test_paths_lead_from_copying_layers_to_what_reads_them(
    name: str, experiment: str, tasks: dict[str, JsonlTask]
) -> None:
    """Straight to the logits, or by the one MLP that reads what is copied; by no other layer's."""
    vlm, reader = load(name), CIRCUITS[name].clips
    cells = layer_cells(vlm, sites=["lm.*.attn_out"], spans=["last"])
    between = [f"lm.{layer}.{kind}" for layer in range(LAYERS) for kind in ("mlp_out", "attn_out", "head_z")]
    plan = paths(cells, [*between, f"lm.{LAYERS - 1}.resid_post"], experiment=experiment)
    rows = sweep_all(vlm, tasks[name], tasks[name].items(N), [plan], sites=sites_of(cells))
    alone = len(layers_of(name)) == 1
    enough = layers_of(name) if alone or experiment == "denoise" else []
    end = f"lm.{LAYERS - 1}.resid_post" if reader is None else f"lm.{reader}.mlp_out"
    wanted = {(f"lm.{layer}.attn_out", receiver) for layer in enough for receiver in ("all", end)}
    assert found(rows, "target_site", "receiver") == wanted


# by hand: single heads, pairs of heads, whole passes


def encoded(vlm: Vlm, pair: Pair, way: str) -> tuple[Batch, Batch]:
    """The run that is read and the one that is patched, with the clean prompt's answer behind both."""
    clean, corrupt = (vlm.encode([prompt], answers=[pair.answer]) for prompt in (pair.clean, pair.corrupt))
    return (clean, corrupt) if way == "denoise" else (corrupt, clean)


def run_of(vlm: Vlm, batch: Batch, pair: Pair) -> Replay:
    rival = vlm.encode([pair.clean], answers=[pair.rival])
    return replay(vlm, batch, rival=rival.inputs["input_ids"][0, rival.positions("answer")[0]])


def head_edits(vlm: Vlm, source: Batch, target: Batch) -> dict[Head, Edit]:
    """Every head of the source's last token, for the target's."""
    with capture(vlm, ["lm.*.head_z"], spans=["last"]) as acts:
        vlm.forward(source)
    at = target.positions("last")[0]
    values = [acts[f"lm.{layer}.head_z", "last"].values for layer in range(LAYERS)]
    return {
        (layer, head): Edit(site=f"lm.{layer}.head_z", positions=at, values=values[layer], heads=(head,))
        for layer, head in HEAD_CELLS
    }


def shares(vlm: Vlm, run: Replay, source: Batch, pair: Pair, cells: list[list[Edit | Cut]]) -> torch.Tensor:
    """The share of the logit difference between source and target that every cell makes."""
    there = run_of(vlm, source, pair).base.difference
    return (run.score(cells).difference - run.base.difference) / (there - run.base.difference)


@EACH_WAY
def test_of_all_pairs_of_heads_noising_needs_the_two_and_denoising_one_of_them(experiment: str) -> None:
    vlm, copying = load("redundant"), set(CIRCUITS["redundant"].copying)
    for pair in pairs("redundant", 2):
        source, target = encoded(vlm, pair, experiment)
        edits = head_edits(vlm, source, target)
        both = list(combinations(HEAD_CELLS, 2))
        found = shares(vlm, run_of(vlm, target, pair), source, pair, [[edits[a], edits[b]] for a, b in both])
        for names, share in zip(both, found.tolist(), strict=True):
            enough = copying & set(names) if experiment == "denoise" else copying <= set(names)
            assert share == pytest.approx(float(bool(enough)), abs=NOTHING), names


@EACH
@EACH_WAY
def test_a_head_s_direct_path_carries_what_the_head_does(name: str, experiment: str) -> None:
    """All of it to what reads it, nothing to all other receivers; of every other head, nothing anywhere."""
    vlm, circuit = load(name), CIRCUITS[name]
    end = f"lm.{LAYERS - 1}.resid_post"
    reader = end if circuit.clips is None else f"lm.{circuit.clips}.mlp_out"
    (pair,) = pairs(name, 1)
    source, target = encoded(vlm, pair, experiment)
    run, edits = run_of(vlm, target, pair), head_edits(vlm, source, target)
    names, cells = [], []
    for head, edit in edits.items():
        for receiver in (end, *(f"lm.{layer}.{kind}" for layer in range(LAYERS) for kind in ("head_z", "mlp_out"))):
            try:
                cells.append([direct_path(run, edit, receiver)])
            except SiteError:
                continue  # it comes before the head
            names.append((head, receiver))
    whole = dict(zip(edits, shares(vlm, run, source, pair, [[edit] for edit in edits.values()]).tolist(), strict=True))
    assert len(circuit.copying) == 2 or whole[circuit.copying[0]] == pytest.approx(1, abs=NOTHING)
    for (head, receiver), share in zip(names, shares(vlm, run, source, pair, cells).tolist(), strict=True):
        carries = head in circuit.copying and receiver == reader
        assert share == pytest.approx(whole[head] if carries else 0, abs=NOTHING), (head, receiver)


def attributed(vlm: Vlm, pair: Pair, way: str) -> tuple[dict[Head, float], dict[Head, float]]:
    """The share of the logit difference that attribution gives every head, and that without each layer in turn."""
    source, target = encoded(vlm, pair, way)
    rival = vlm.encode([pair.clean], answers=[pair.rival])
    tokens = rival.inputs["input_ids"][0, rival.positions("answer")[0]]
    sites = [f"lm.{layer}.head_z" for layer in range(LAYERS)]
    found = Attribution(vlm, target, sites, rival=tokens)
    held = []
    for batch in (source, target):
        with capture(vlm, sites) as acts:
            vlm.forward(batch)
        held.append({site: acts[site][0] for site in sites})
    room = float(run_of(vlm, source, pair).base.difference - run_of(vlm, target, pair).base.difference)
    at = int(target.positions("last")[0])
    changes = [held[0][site] - held[1][site] for site in sites]
    sums = [found.estimate(site, change)[at] / room for site, change in zip(sites, changes, strict=True)]
    sizes = [found.dropped(site, change)[at] / abs(room) for site, change in zip(sites, changes, strict=True)]
    plain, dropped = ({(k, head): float(each[k][head]) for k, head in HEAD_CELLS} for each in (sums, sizes))
    return plain, dropped


@EACH_WAY
def test_attribution_finds_the_copying_head(experiment: str) -> None:
    vlm = load("copying")
    for pair in pairs("copying", 2):
        plain, dropped = attributed(vlm, pair, experiment)
        (head,) = CIRCUITS["copying"].copying
        assert plain[head] == pytest.approx(1, abs=0.1)
        assert dropped[head] > 0.5
        for other in CIRCUITS["copying"].others:
            assert abs(plain[other]) < NOTHING
            assert dropped[other] < NOTHING


@EACH_WAY
def test_attribution_misses_a_redundant_pair(experiment: str) -> None:
    """A gradient tells of small changes: what clips at "there" and at "there twice" is flat at both, with no copy and
    with two. Denoising, which goes all the way, finds either head."""
    vlm = load("redundant")
    for pair in pairs("redundant", 2):
        for found in attributed(vlm, pair, experiment):
            assert all(abs(found[head]) < 0.1 for head in CIRCUITS["redundant"].copying)


def alike(one: Score, other: Score) -> bool:
    return bool(one.greedy == other.greedy) and float(one.logprob) == pytest.approx(float(other.logprob), abs=1e-5)


@EACH
def test_whole_passes_find_the_same(name: str) -> None:
    """`patch` and `knockout` around a whole pass, for every head and layer: as a replay, and as is known."""
    vlm, circuit = load(name), CIRCUITS[name]
    (pair,) = pairs(name, 1)
    source, target = encoded(vlm, pair, "denoise")
    run, edits = run_of(vlm, target, pair), head_edits(vlm, source, target)
    for (layer, head), edit in edits.items():
        values = Ragged.from_list([edit.values])
        with patch(vlm, Patch(f"lm.{layer}.head_z", values, span="last", heads=[head])):
            score = vlm.score(target)
        assert alike(score, run.score([edit]))
        assert bool(score.greedy) == ((layer, head) in circuit.copying)

    run = run_of(vlm, source, pair)
    seen = [source.positions(span)[0] for span in ("last", "image.object.0")]
    for window in [{layer} for layer in range(LAYERS)] + [{1, 2}, {0, 3}]:
        with knockout(vlm, queries="last", keys="image.object.0", layers=window):
            score = vlm.score(source)
        assert alike(score, run.score([Cut(layers=tuple(window), queries=seen[0], keys=seen[1])]))
        assert bool(score.greedy) != (set(layers_of(name)) <= window)
