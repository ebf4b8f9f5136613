"""Lens tables on the organism: one row by hand, right answers come first at the end, and controls stay behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from seamscope.experiments import run_conditions
from seamscope.experiments._lensing import _Starts, _told_apart, lens_table, summarise_lens
from seamscope.experiments.tasks import get
from seamscope.hooks import RunError, SiteError, SpanError, TaskError, Vlm, capture, load_vlm
from seamscope.probes import LogitLens, bootstrap_interval, fit_tuned_lens, paired_bootstrap_interval

from ..checkpoints import BUILDERS
from ..hooks.conftest import merging_tokenizer, sentence_tokenizer, word_tokenizer

TASK = get("cards.sum")
LAST = "lm.7.resid_post"
ANSWER = {"condition": "cascaded", "site": LAST, "span": "last", "what": "answer"}


@pytest.fixture(scope="module")
def table(organism: Vlm) -> pd.DataFrame:
    return lens_table(organism, TASK, TASK.items(60), lens=LogitLens(organism))


def at(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table)
    return table


def by_hand(organism: Vlm, stream: torch.Tensor, word: str) -> tuple[int, float]:
    """The best place of a word in the sorted logits of some tokens, and its largest log-probability."""
    inside = organism.model.model.language_model
    with torch.inference_mode():
        logits = organism.model.lm_head(inside.norm(stream)).double().numpy()
    token = organism.processor.tokenizer.convert_tokens_to_ids(word)
    places = [int((np.sort(row)[::-1] == row[token]).nonzero()[0][-1]) for row in logits]
    logprobs = [row[token] - np.log(np.exp(row - row.max()).sum()) - row.max() for row in logits]
    return min(places), max(logprobs)


def test_rows_by_hand(organism: Vlm, table: pd.DataFrame) -> None:
    """The item's own words and its partner's, at the best token of each span."""
    item = TASK.items(3)[2]
    partner = TASK.partner(item)
    (said,) = organism.generate(organism.encode([item], condition="perceive"), max_new_tokens=TASK.budget["small"])
    heard = item.saying(TASK.hand_over(item, said))
    for condition, site, span in (
        ("direct", "lm.3.resid_post", "image.object.1"),
        ("direct", LAST, "last"),
        ("cascaded", "lm.5.resid_post", "intermediate.2"),
        ("cascaded", "lm.0.resid_post", "question"),
    ):
        with capture(organism, site, spans=span) as acts:
            organism.forward(organism.encode([heard], condition=condition))
        for k, what in enumerate(("answer", "intermediate.0", "intermediate.1", "intermediate.2")):
            (row,) = at(table, id=item.id, condition=condition, site=site, span=span, what=what).to_dict("records")
            for whose, prefix in ((item, ""), (partner, "partner_")):
                text = whose.answer if k == 0 else whose.intermediate.parts[k - 1]
                rank, logprob = by_hand(organism, acts[site, span].values, text.split()[0])
                assert row[f"{prefix}rank"] == rank
                assert row[f"{prefix}logprob"] == pytest.approx(logprob, rel=1e-4, abs=1e-4)
        assert (row["layer"], row["group"]) == (int(site.split(".")[1]), item.group)


def test_every_item_has_a_row_in_every_cell(table: pd.DataFrame) -> None:
    assert list(table.columns) == [
        *("id", "group", "condition", "site", "layer", "span", "what"),
        *("rank", "logprob", "partner_rank", "partner_logprob", "same"),
    ]
    cells = table.groupby(["condition", "site", "span", "what"]).id
    assert (cells.nunique() == cells.size()).all()
    direct = table[table.condition == "direct"]
    assert set(direct.span) == {*(f"image.object.{k}" for k in range(3)), "question", "last"}
    assert (direct.groupby(["site", "span", "what"]).size() == 60).all()
    cascaded = table[table.condition == "cascaded"]
    assert set(cascaded.span) == {*(f"intermediate.{k}" for k in range(3)), "question", "last"}
    assert (table["rank"] >= 0).all()
    assert (table.logprob <= 0).all()


def test_right_cascaded_answers_come_first_at_the_last_layer_and_the_partners_do_not(
    organism: Vlm, table: pd.DataFrame
) -> None:
    answers = run_conditions(organism, TASK, TASK.items(60), conditions=["cascaded"])
    right = set(answers[answers.correct].id)
    rows = at(table, **ANSWER).set_index("id")
    assert len(right) > 50
    assert set(rows.index[rows["rank"] == 0]) == right
    assert not rows.same.any()
    assert (rows.partner_rank[list(right)] > 0).all()
    early = at(table, **ANSWER | {"site": "lm.0.resid_post"})
    assert (early["rank"] == 0).mean() < 0.5


def test_an_untrained_model_tells_nothing_apart(organism: Vlm, table: pd.DataFrame) -> None:
    blank = load_vlm("organism", device="cpu", untrained=True)
    control = summarise_lens(lens_table(blank, TASK, TASK.items(60), lens=LogitLens(blank)))
    trained = at(summarise_lens(table), **ANSWER)
    assert trained.difference_low.item() > 10
    assert (trained["rank"].item(), trained.partner_rank.item() > 20) == (0, True)
    rows = at(control, **ANSWER)
    assert abs(rows.difference.item()) < 0.1
    assert rows.difference_low.item() < 0.05 < trained.difference.item()


def test_what_is_heard_is_what_the_model_said(organism: Vlm) -> None:
    """A model that sees nothing answers another question; the right intermediate does not come in by the back door."""
    items = [replace(item, image=item.image.point(lambda _: 255)) for item in TASK.items(20)]
    rows = lens_table(
        organism, TASK, items, lens=LogitLens(organism), conditions=["cascaded", "oracle"], spans=["last"]
    )
    first = at(rows, site=LAST, what="answer").groupby("condition")["rank"].agg(lambda rank: (rank == 0).mean())
    assert first["oracle"] > 0.9
    assert first["cascaded"] < 0.2


def test_batches_do_not_matter(organism: Vlm) -> None:
    items, lens = TASK.items(5), LogitLens(organism)
    whole, pieces = (
        lens_table(organism, TASK, items, lens=lens, sites=["lm.embed", LAST], batch_size=b) for b in (5, 2)
    )
    keys = ["condition", "site", "span", "what", "id"]
    one, other = (each.sort_values(keys, ignore_index=True) for each in (whole, pieces))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-4)
    assert at(whole, site="lm.embed").layer.isna().all()


def test_a_tuned_lens_reads_answers_earlier(organism: Vlm) -> None:
    batches = [
        [organism.encode(TASK.items(n, split=split), condition="oracle")] for n, split in ((64, "train"), (8, None))
    ]
    tuned = fit_tuned_lens(organism, batches[0], held_out=batches[1], spans="last", steps=40, learning_rate=1e-2)
    given = {"conditions": ["oracle"], "spans": ["last"]}
    plain, better = (
        lens_table(organism, TASK, TASK.items(40), lens=lens, **given) for lens in (LogitLens(organism), tuned)
    )
    early = {"site": "lm.4.resid_post", "what": "answer"}
    assert at(better, **early).logprob.mean() > at(plain, **early).logprob.mean() + 0.2
    assert at(better, **early | {"site": LAST}).equals(at(plain, **early | {"site": LAST}))
    with pytest.raises(SiteError, match=r"cannot read lm\.embed"):
        lens_table(organism, TASK, TASK.items(2), lens=tuned, sites=["lm.embed"])


def test_texts_of_one_first_token_are_marked_and_left_out(organism: Vlm) -> None:
    task = get("cards.sort")
    items = task.items(24)
    table = lens_table(organism, task, items, lens=LogitLens(organism), conditions=["direct"], sites=[LAST])
    alike = {item.id: item.answer.split()[0] == task.partner(item).answer.split()[0] for item in items}
    rows = at(table, span="last", what="answer")
    assert dict(zip(rows.id, rows.same, strict=True)) == alike
    assert {True, False} == set(alike.values())
    marked = rows[rows.same]
    assert marked["rank"].equals(marked.partner_rank.rename("rank"))
    (row,) = at(summarise_lens(table), span="last", what="answer").to_dict("records")
    kept = rows[~rows.same]
    assert (row["n"], row["n_same"]) == (len(kept), len(marked))
    assert row["rank"] == np.median(kept["rank"])
    assert row["logprob"] == pytest.approx(kept.logprob.mean())
    assert (row["logprob_low"], row["logprob_high"]) == bootstrap_interval(kept.logprob, kept.group)
    assert row["difference"] == pytest.approx(kept.logprob.mean() - kept.partner_logprob.mean())
    wanted = paired_bootstrap_interval(kept.logprob, kept.partner_logprob, kept.group)
    assert (row["difference_low"], row["difference_high"]) == wanted
    nothing = summarise_lens(rows[rows.same])
    assert nothing.n.tolist() == [0]
    assert nothing[["rank", "logprob", "difference", "difference_low"]].isna().all(axis=None)


def starts(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    find = _Starts(SimpleNamespace(name="m", processor=SimpleNamespace(tokenizer=tokenizer)))
    return tokenizer.convert_ids_to_tokens(find(text))


def test_words_start_with_and_without_space_and_in_capitals() -> None:
    assert starts(merging_tokenizer(), "seven") == ["seven", "Ġseven", "S"]
    assert starts(merging_tokenizer(), "7") == ["7"], "a space of its own is no beginning"
    assert starts(sentence_tokenizer(), "seven") == ["▁seven", "s", "S"]
    assert starts(sentence_tokenizer(), "7") == ["7"]
    assert starts(word_tokenizer(), "seven of") == ["seven"]
    with pytest.raises(RunError, match="m has no token that 'heptagon' starts with"):
        starts(word_tokenizer(), "heptagon")


def test_tokens_that_both_texts_may_start_with_tell_nothing() -> None:
    assert _told_apart([1, 2, 9], [3, 9]) == ([1, 2], [3], False)
    assert _told_apart([1, 2], [2]) == ([1, 2], [2], True)
    assert _told_apart([4], [4]) == ([4], [4], True)


def test_a_decoder_without_image_tokens_is_read_where_it_has_some(tmp_path: Path) -> None:
    vlm = load_vlm(BUILDERS["mllama"](tmp_path), device="cpu", check=False)
    given = {"lens": LogitLens(vlm), "conditions": ["direct", "oracle"], "sites": ["lm.3.resid_post"]}
    table = lens_table(vlm, TASK, TASK.items(3), **given)
    spans = {condition: set(rows.span) for condition, rows in table.groupby("condition")}
    assert spans["direct"] == {"question", "last"}
    assert spans["oracle"] == {"question", "last", "intermediate.0", "intermediate.1", "intermediate.2"}
    with pytest.raises(RunError, match="no item has tokens of these spans"):
        lens_table(vlm, TASK, TASK.items(3), **given | {"conditions": ["direct"]}, spans=["objects"])


def test_bad_names_are_refused_before_the_model_runs(organism: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vlm, "forward", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(Vlm, "generate", lambda *_, **__: 1 / 0)
    items, lens = TASK.items(2), LogitLens(organism)
    with pytest.raises(TaskError, match="unknown condition 'directt'; nearest: direct"):
        lens_table(organism, TASK, items, lens=lens, conditions=["directt"])
    with pytest.raises(SpanError, match="unknown span 'lsat'; nearest: last"):
        lens_table(organism, TASK, items, lens=lens, spans=["lsat"])
    with pytest.raises(SpanError, match=r"unknown span 'intermediate\.0'"):
        lens_table(organism, TASK, items, lens=lens, spans=["intermediate.0"], conditions=["direct"])
    with pytest.raises(SiteError, match=r"cannot read lm\.final_norm"):
        lens_table(organism, TASK, items, lens=lens, sites=["lm.final_norm"])
    with pytest.raises(SiteError, match=r"lm\.9"):
        lens_table(organism, TASK, items, lens=lens, sites=["lm.9.resid_post"])
    with pytest.raises(RunError, match="another model object"):
        lens_table(load_vlm("organism", device="cpu", check=False), TASK, items, lens=lens)
    with pytest.raises(RunError, match="an empty list of items"):
        lens_table(organism, TASK, [], lens=lens)
    with pytest.raises(RunError, match="organism has no token that 'zebra' starts with"):
        lens_table(organism, TASK, [replace(items[0], answer="zebra")], lens=lens)
