"""The experiments that the procedure may ask for, as tables: each is run when it is asked for, and kept."""

from __future__ import annotations

import hashlib
from functools import cached_property, partial
from itertools import chain, product
from typing import TYPE_CHECKING, Final

import pandas as pd
from tqdm import tqdm

from seamscope.activations import Store
from seamscope.hooks import Site

from .._model import is_small
from .._preflight import check_pairs
from .._sweeper import Sweeper
from ..sweeps import HOLD, SEVERED, layer_cells
from ._hand_over import Spot, hand_over
from ._pairs import Pairs, along, apart, named, way
from ._repairs import Spots, mend
from ._sizes import PATCHED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .._study import Study
    from ..sweeps import Cell

READ_AT: Final = ("last", "question")
LONGER: Final = 4  # times the budget of an answer


class Asking:
    """Runs experiments on a study's model and items.

    Args:
        study: the run; its folder keeps every finished table, `made` those that were asked for.
        there: what counts as there, for probes along a way.
    """

    def __init__(self, study: Study, *, there: float) -> None:
        self.study, self._there = study, there
        self.made: dict[str, pd.DataFrame] = {}

    def _table(self, name: str, make: Callable[[], pd.DataFrame], *, of: object = None) -> pd.DataFrame:
        """`of`: what the table depends on beside the run's settings."""
        own = name if of is None else f"{name}.{hashlib.blake2b(repr(of).encode(), digest_size=4).hexdigest()}"
        self.made[own] = self.study.run.table(own, make)
        return self.made[own]

    @cached_property
    def n_layers(self) -> int:
        """How many layers the decoder has; a finished run tells without its model."""
        with self.study.locating_store() as store:
            return 1 + max(layer_of(site) for site in store.sites if site.startswith("lm."))

    @property
    def answers(self) -> pd.DataFrame:
        """What the model answered under each condition."""
        found = self.study.answers
        return found[found.task == self.study.task.name]

    def longer(self) -> pd.DataFrame:
        """Direct answers that could not be read, once more with a larger budget: `group, right`."""
        return self._table("longer", self._longer)

    def _longer(self) -> pd.DataFrame:
        study, direct = self.study, self.answers[self.answers.condition == "direct"]
        unread = set(direct[~direct.parsed].id)
        items = [item for item in study.items if item.id in unread]
        size, rows = study.settings.batch_size, []
        budget = LONGER * study.task.budget[study.settings.profile]
        for start in tqdm(range(0, len(items), size), desc="longer", unit="batch", disable=not study.progress):
            batch = items[start : start + size]
            texts = study.vlm.generate(study.vlm.encode(batch, condition="direct"), max_new_tokens=budget)
            for item, text in zip(batch, texts, strict=True):
                rows.append({"id": item.id, "group": item.group, "right": study.task.score(item, text)})
        return pd.DataFrame(rows, columns=["id", "group", "right"])

    def path(self) -> pd.DataFrame:
        """Probes at the objects' own tokens, from the tower to the decoder's last layer; and of text runs."""
        return self._table("path", self._path)

    def _path(self) -> pd.DataFrame:
        with self.study.locating_store() as store:
            pairs = self._probes(store)
            places = [site for site in way(store.sites) if store_holds(store, site)]
            direct = along(places, lambda site: pairs.own(site, "direct"), level=named, there=self._there)
            return pd.concat([*direct.values(), pairs.own("lm.embed", "oracle")], ignore_index=True)

    def reading(self) -> pd.DataFrame:
        """Probes at the reading positions of direct and of text runs, by layer."""
        return self._table("reading", self._reading)

    def _reading(self) -> pd.DataFrame:
        with self.study.locating_store() as store:
            pairs = self._probes(store)
            return self._by_layer(
                store,
                [partial(pairs.at, span=span, condition=each) for each, span in product(("direct", "oracle"), READ_AT)],
            )

    def form(self) -> pd.DataFrame:
        """Probes that were fitted on text runs, at the reading positions of direct runs, by layer."""
        return self._table("form", self._form)

    def _form(self) -> pd.DataFrame:
        with self.study.locating_store() as store:
            pairs = self._probes(store)
            return self._by_layer(store, [partial(pairs.form, span=span) for span in READ_AT])

    def _by_layer(self, store: Store, measures: Sequence[Callable[[str], pd.DataFrame]]) -> pd.DataFrame:
        layers = [site for site in way(store.sites) if site.startswith("lm.") and site != "lm.embed"]
        found = [along(layers, measure, level=apart, there=self._there).values() for measure in measures]
        return pd.concat(chain.from_iterable(found), ignore_index=True)

    def _probes(self, store: Store) -> Pairs:
        return Pairs(store, needs=self.study.task.needs, seed=self.study.settings.seed)

    def needs(self) -> pd.DataFrame:
        """In text runs, the intermediate's words exchanged behind every layer."""
        return self._swept("needs", {"text_noise": "objects"})

    def given(self) -> pd.DataFrame:
        """The text run's own state written over the reading positions of direct runs, and the partner's."""
        return self._swept("given", {"cross": "reading", "cross_control": "reading"})

    def hold(self) -> pd.DataFrame:
        """What the image positions held before a layer, held in it and all after it."""
        return self._swept("hold", {HOLD: ""})

    def severed(self) -> pd.DataFrame:
        """Direct runs whose reading positions attend to no object's tokens, or not to others of the picture."""
        return self._swept("severed", {SEVERED: ""})

    def repairs(self, spots: Spots) -> pd.DataFrame:
        """What repairs of the model's own states bring back."""
        return self._table("repairs", lambda: mend(self.study, spots), of=spots)

    def handed(self, plans: Mapping[str, Sequence[Spot]]) -> pd.DataFrame:
        """What the textual skill answers to what is told from some places."""
        return self._table("handed", lambda: hand_over(self.study, plans), of=dict(plans))

    def _cells(self, span: str) -> list[Cell]:
        return layer_cells(self.study.vlm, sites=["lm.*.resid_post"], spans=[span])

    def _swept(self, name: str, spans: Mapping[str, str]) -> pd.DataFrame:
        """Some experiments with their span sets; nothing for those that need no cells."""
        return self._table(
            name, lambda: self.sweep(name, {each: self._cells(span) if span else [] for each, span in spans.items()})
        )

    def sweep(self, name: str, cells: Mapping[str, Sequence[Cell]], *, count: int = PATCHED) -> pd.DataFrame:
        """The rows of experiments on the first items, made in parts."""
        study = self.study
        check_pairs(study.task, study.items)
        sweeper = Sweeper(study.vlm, study.settings, cells, by="span")
        workers = study.workers if is_small(study.vlm) else 1
        count = min(count, len(study.items))
        return study.run.in_parts(name, count, sweeper, workers=workers, progress=study.progress)


def store_holds(store: Store, site: str) -> bool:
    """Whether direct runs have tokens of objects there: a decoder that attends to the image from outside has none."""
    return any(held == site and span.startswith("image.object") for held, span in store.cells("direct"))


def layer_of(site: str) -> int:
    """The number of a site's layer; 0 for one before the first."""
    return Site.parse(site).number
