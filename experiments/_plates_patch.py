"""The figures of sweeps: token by token, head by head, cut routes, the exit of image tokens, screens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.Image import Image

from seamscope.hooks import Site

from . import figures
from ._plate import Draft, Tables, Words
from ._plates_use import HEATMAPS
from ._report_views import number
from .figures._effects import of_most_items
from .figures._screen import look_of, measured_cells, told
from .figures._style import NAMES
from .figures._tables import distinct, records
from .figures._tokens import span_word
from .sweeps import EXPERIMENTS

EFFECTS: Final = re.compile(r"effects\..+\.(span|object|token|head)")  # tables of sweeps, and how they are divided
PICTURE: Final = ("image", "image.object.")  # the spans of a picture's tokens
AT: Final = ("objects", "last")  # where heads are drawn: where a picture's parts are, and where the answer is made
PARTNER: Final = (
    "the counterfactual partner: same layout, same question, another intermediate and another answer, so that only "
    "what differs between the two is moved."
)
OTHER_RUN: Final = "the run that is not patched, at 0; what any text state does is the experiment cross_control."
ALONE: Final = "that what shows nothing by itself is not used: where several hold the same, each alone changes nothing."
READ: Final = "Colour: nats of its log-probability. Hatched: the 95 % interval holds 0."


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The picture on which effects of its tokens are drawn, and where these are: a table of `token_boxes`."""

    picture: Image
    boxes: pd.DataFrame


def patch_plate_drafts(tables: Tables, *, shown: Shown | None = None) -> list[Draft]:
    """The figures of all tables of sweeps that there are.

    Of `tables` those count that are called `effects.NAME.span`, `effects.NAME.token`, `effects.NAME.head`,
    `effects.knockout`, `effects.exit` and `screen`. Where several hold the same experiment, the first is drawn. With
    `shown`, effects by token are also drawn on that picture.
    """
    drafts: dict[str, Draft] = {}
    for name, table in tables.items():
        for draft in () if table.empty else _of(name, table, shown):
            drafts.setdefault(draft.name, draft)
    return list(drafts.values())


def _of(name: str, table: pd.DataFrame, shown: Shown | None) -> Iterator[Draft]:
    swept = EFFECTS.fullmatch(name)
    if swept is not None:
        for experiment in distinct(table, "experiment"):
            rows = table[(table.experiment == experiment) & (table.source_site == table.target_site)]
            yield from _swept(rows.dropna(subset=["effect"]), experiment, swept[1], shown)
    elif name == "effects.knockout":
        yield _knockout(table)
    elif name == "effects.exit":
        yield _exit(table)
    elif name == "screen":
        yield from _screen(table)


def _swept(rows: pd.DataFrame, experiment: str, by: str, shown: Shown | None) -> Iterator[Draft]:
    if by == "head":
        held = distinct(rows, "span")
        for span in [name for name in AT if name in held] or held[:1]:
            yield _heads(rows[rows.span == span], experiment, span)
        return
    for kind in dict.fromkeys(site.kind for site in map(Site.parse, rows.target_site) if site.layer is not None):
        own = rows[[site.layer is None or site.kind == kind for site in map(Site.parse, rows.target_site)]]
        if by in ("span", "object"):
            yield _curves(own, experiment, kind)
        else:
            yield from _tokens(of_most_items(own), experiment, kind, shown)


def _tokens(rows: pd.DataFrame, experiment: str, kind: str, shown: Shown | None) -> Iterator[Draft]:
    yield _token_map(rows, experiment, kind)
    spans = [name for name in distinct(rows, "span") if name.startswith(PICTURE)]
    pictured = rows[rows.span.isin(spans)]
    if kind != "resid_post" or pictured.empty:
        return
    yield _token_map(pictured, experiment, kind, part="image")
    if shown is not None:
        several = shown.boxes.sheet.nunique() > 1
        for sheet, boxes in shown.boxes.groupby("sheet"):
            on = Shown(picture=shown.picture, boxes=boxes)
            if not pictured.merge(boxes, on=["span", "token"]).empty:
                yield from _on_image(pictured, experiment, on, sheet=f"_{sheet}" if several else "")


def _token_map(rows: pd.DataFrame, experiment: str, kind: str, *, part: str = "") -> Draft:
    title, done = _told(experiment)
    where = " of the picture" if part else ""
    words = Words(
        title=f"{title}, token by token{where}{_kind_words(kind)}",
        caption=f"{_one(done, 'token')} Across: the tokens{where}, together by the span that they are in; upwards: the "
        f"layer. {READ} Tokens that fewer than half of the items have are left out.",
        controls=_beside(experiment) + (" The whole prompt has colours of another scale." if part else ""),
        caveat=f"{ALONE} A token is named by its span and its number there: means over items are not over one place of "
        "the picture.",
        alt=f"Heat map of the effect of {experiment} by layer and token{where}. {_strongest(rows, ('token', 'span'))}",
    )
    return Draft(
        name=_name("patch_tokens", experiment, kind) + (f"_{part}" if part else ""),
        draw=lambda: figures.patch_tokens(rows, experiment=experiment, kind=kind),
        data=rows,
        words=words,
        section="patching",
    )


def _on_image(rows: pd.DataFrame, experiment: str, shown: Shown, *, sheet: str) -> Iterator[Draft]:
    title, done = _told(experiment)
    which = f" (sheet {sheet[1:]} of its views)" if sheet else ""
    caveat = f"{ALONE} Drawn are means over items at the places that tokens of the same name have in this one picture."
    for panels, at in ((False, "at the strongest layer"), (True, "layer by layer")):
        chosen = "" if panels else " The layer is that of the strongest token, whose effect looks larger for it."
        yield Draft(
            name=f"patch_{'panels' if panels else 'image'}_{experiment}{sheet}",
            draw=partial(_draw_on_image, rows, shown, experiment, panels=panels),
            data={"effects": rows, "boxes": shown.boxes},
            words=Words(
                title=f"{title}, on the picture{which}, {at}",
                caption=f"{_one(done, 'token')} Colour, over what the token shows: nats of the answer's "
                f"log-probability. Dotted: the 95 % interval excludes 0. Not coloured: not measured.{chosen}",
                controls=_beside(experiment),
                caveat=caveat,
                alt=f"A picture with its tokens in colours of the effect of {experiment}, {at}. "
                f"{_strongest(rows, ('token', 'span'))}",
            ),
            section="patching",
        )


def _draw_on_image(rows: pd.DataFrame, shown: Shown, experiment: str, *, panels: bool) -> Axes | Figure:
    if panels:
        return figures.patch_on_image_panels(rows, shown.picture, shown.boxes, experiment=experiment)
    return figures.patch_on_image(rows, shown.picture, shown.boxes, experiment=experiment)


def _heads(rows: pd.DataFrame, experiment: str, span: str) -> Draft:
    title, done = _told(experiment)
    place = NAMES.get(span, span)
    words = Words(
        title=f"{title}, head by head ({place})",
        caption=f"{_one(done, 'head')} Across: the head, whose output is replaced at the {place}; upwards: the layer. "
        f"{READ}",
        controls=_beside(experiment),
        caveat=f"{ALONE} Other heads may also take over what one no longer does.",
        alt=f"Heat map of the effect of {experiment} by layer and head, {place}. {_strongest(rows, ('head',))}",
    )
    return Draft(
        name=f"patch_heads_{experiment}_{span}",
        draw=lambda: figures.head_map(rows, experiment=experiment, span=span),
        data=rows,
        words=words,
        section="patching",
    )


def _curves(rows: pd.DataFrame, experiment: str, kind: str) -> Draft:
    title, done = _told(experiment)
    words = Words(
        title=f"{title}, by layer{_kind_words(kind)}",
        caption=f"{done} A line for each place: nats of its log-probability, with 95 % bands.",
        controls=_beside(experiment),
        caveat="what else is at the place and moves with it, nor that no other place would do as well.",
        alt=f"Curves of the effect of {experiment} by layer, for each place. {_strongest(rows, ('span',))}",
    )
    return Draft(
        name=_name("patch_layers", experiment, kind),
        draw=lambda: figures.layer_curves(rows, experiment=experiment, kind=kind),
        data=rows,
        words=words,
        section="patching",
    )


def _knockout(table: pd.DataFrame) -> Draft:
    cut = table[table.experiment == "knockout"].assign(target_site=_window)
    words = Words(
        title="Which routes of attention the answer needs",
        caption="Attention from one place to another is cut in a window of layers of the item's direct run: the change "
        "of the answer's log-probability in nats over the middle of the window, with 95 % bands. “last ← objects”: the "
        "last position does not read the objects.",
        controls="dashed, as many other positions, drawn for every item, cut from the same place in the same layers; "
        "of the picture's other tokens, where what is cut is in the picture. A route that costs no more than that is "
        "not a route of its own.",
        caveat="that nothing passes where nothing changes: it may pass by other positions, or in layers outside of the "
        "window.",
        alt=f"Curves of the effect of cut attention by window of layers, for each route. "
        f"{_strongest(cut, ('queries', 'keys'), joined=' does not read ')}",
    )
    return Draft(
        name="knockout", draw=lambda: figures.knockout_windows(table), data=table, words=words, section="patching"
    )


def _exit(table: pd.DataFrame) -> Draft:
    cut = table[table.experiment == "exit"].sort_values("first")
    told = ", ".join(f"{number(row['effect'], signed=True)} from layer {row['first']}" for row in records(cut))
    words = Words(
        title="From which layer on the picture is no longer read",
        caption="From one layer on, no later token reads those of the picture any more. Black: the change of the "
        "answer's log-probability in nats; coloured: the share of answers right; both with 95 % bands.",
        controls="the same runs with nothing cut: 0 nats, and the dotted share. No other tokens are dropped in their "
        "place; what any cut costs is drawn beside the routes of attention.",
        caveat="that the answer is made by then: later tokens hold what they have read, and may still work on it.",
        alt=f"Curves of log-probability and share right by layer. In nats: {told}.",
    )
    return Draft(name="exit", draw=lambda: figures.exit_curve(table), data=table, words=words, section="patching")


def _screen(table: pd.DataFrame) -> list[Draft]:
    if table.exact.isna().all():
        return []
    cells = measured_cells(table)
    kinds = ", ".join(look_of(kind)[2] for kind in distinct(cells, "kind"))
    agreed = f"{'; '.join(told(cells))}."
    bars = " Upright: the 95 % interval of the exact effect." if {"low", "high"} <= set(cells.columns) else ""
    words = Words(
        title="Does the estimate find what patches find?",
        caption="A mark for each cell: across, the change of the answer's log-probability that gradients foretell "
        f"(attribution patching), upwards that of the exact patch, in nats.{bars} ρ is Spearman's rank correlation: "
        f"{agreed}",
        controls="the exact patches of the same cells: on the dotted line both are the same. Open: cells drawn at "
        "random of those that the screen ranked lower. Where these have effects as large, it has missed some.",
        caveat="what the cells do that were not measured; behind an estimate near 0 there may be effects that cancel.",
        alt=f"Scatter of {len(cells)} cells ({kinds}), estimate against exact effect. {agreed}",
    )
    draft = Draft(
        name="screen", draw=lambda: figures.screen_scatter(cells), data=cells, words=words, section="patching"
    )
    return [draft]


def _told(experiment: str) -> tuple[str, str]:
    asked = EXPERIMENTS[experiment].question if experiment in EXPERIMENTS else "what does it do to the answer?"
    return HEATMAPS.get(experiment, (f"Patches of {experiment}", asked[:1].upper() + asked[1:]))


def _beside(experiment: str) -> str:
    """What an experiment is compared with."""
    return PARTNER if experiment in HEATMAPS else OTHER_RUN


def _one(done: str, unit: str) -> str:
    """The sentence of whole places, of one token or head at a time."""
    return done.replace("place by place", f"one {unit} at a time")


def _name(stem: str, experiment: str, kind: str) -> str:
    return f"{stem}_{experiment}" + ("" if kind == "resid_post" else f"_{kind}")


def _kind_words(kind: str) -> str:
    return "" if kind == "resid_post" else f" ({kind})"


def _window(table: pd.DataFrame) -> pd.Series[str]:
    return "layers " + table["first"].astype(str) + " to " + table["last"].astype(str)


def _strongest(rows: pd.DataFrame, columns: tuple[str, ...], *, joined: str = " ") -> str:
    """The largest effect in size, and where it is."""
    held = records(rows.dropna(subset=["effect"]))
    if not held:
        return "Nothing was measured."
    most = max(held, key=lambda row: abs(row["effect"]))
    where = joined.join(_called(name, most[name]) for name in columns)
    return f"Strongest: {number(most['effect'], signed=True)} nats at {most['target_site']}, {where}."


def _called(column: str, value: object) -> str:
    span = str(value)
    named = {"span": NAMES.get(span, span_word(span)), "token": f"token {value} of", "head": f"head {value}"}
    return named.get(column, span)
