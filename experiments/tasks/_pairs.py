"""How the records of a file belong together: unique ids, counterfactual pairs, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from seamscope.hooks import TaskError

from ._record import Record


def check_ids(records: Sequence[Record]) -> None:
    """Refuse two records of one id."""
    first: dict[str, Record] = {}
    for record in records:
        if record.id in first:
            earlier = first[record.id].where.rpartition(", ")[2]
            raise TaskError(f"{record.where}, field 'id': {record.id!r} is also that of {earlier}")
        first[record.id] = record


def check_pairs(records: Sequence[Record]) -> None:
    """A partner exists, asks the same, and has another intermediate and another answer."""
    known = {record.id: record for record in records}
    for record in known.values():
        if record.pair is None:
            continue
        if record.pair not in known or record.pair == record.id:
            near = get_close_matches(record.pair, [name for name in known if name != record.id], n=3)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise TaskError(f"{record.where}, field 'pair': there is no other record {record.pair!r}{hint}")
        other = known[record.pair]
        drawn = record.image is None and other.image is None
        for what, wrong in (
            ("another question", record.question != other.question and not drawn),
            ("the same intermediate", record.parts == other.parts),
            ("the same answer", record.answer == other.answer),
        ):
            if wrong:
                raise TaskError(f"{record.where}, field 'pair': {other.id!r} has {what}, so it is no partner")


def grouped(records: Sequence[Record]) -> tuple[Record, ...]:
    """Give every record a group: its own name for it, its partners', or the first id among them."""
    group = {record.id: record.id for record in records}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for record in records:
        if record.pair is not None:
            group[root(record.pair)] = root(record.id)
    named: dict[str, str] = {}
    for record in records:
        if record.group is not None:
            given = named.setdefault(root(record.id), record.group)
            if given != record.group:
                raise TaskError(f"{record.where}, field 'group': {record.group!r}, but a partner of it is in {given!r}")
    return tuple(replace(r, group=named.get(root(r.id), root(r.id))) for r in records)
