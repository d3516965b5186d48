"""A dataset: queries, documents, and judgements of which document answers which query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from m3fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Texts and their ids, in order. Two are the same only if they are one object.

    Attributes:
        ids: N ids, none twice; texts: N texts.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.texts) or len(set(self.ids)) != len(self.ids):
            raise InputError(
                f"ids: expected one per text and none twice, found {len(self.ids)} "
                f"({len(set(self.ids))} distinct) for {len(self.texts)} texts"
            )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Dataset:
    """One retrieval task.

    Attributes:
        name: what the rows of a table call it: a language, else a file's or folder's name.
        queries: all of them are judged; documents: what is ranked.
        qrels: query id -> document id -> relevance, relevant from 1 on. An id that `documents`
            lacks is a relevant document that nothing can find.
    """

    name: str
    queries: Texts
    documents: Texts
    qrels: Mapping[str, Mapping[str, int]]

    def __post_init__(self) -> None:
        if not self.queries.ids or not self.documents.ids:
            raise InputError(
                f"{self.name}: expected judged queries and documents, found {len(self.queries)} "
                f"and {len(self.documents)}"
            )
        if missing := [i for i in self.queries.ids if not self.qrels.get(i)]:
            raise InputError(
                f"{self.name}: expected a judgement of query {missing[0]!r}, found none"
            )


def cross(datasets: Sequence[Dataset], target: str) -> list[Dataset]:
    """Queries of each other dataset against the documents of `target`, named like `de→en`.

    Parallel datasets give a query the same id in all languages: what is relevant to it in the
    target is what the target's own query of that id has. Queries without one are left out.

    Raises:
        InputError: no dataset of that name, no other one, or one that shares no query id with it.
    """
    names = [d.name for d in datasets]
    if target not in names:
        raise InputError(f"cross: expected one of {', '.join(names)}, found {target!r}")
    goal = datasets[names.index(target)]
    crossed: list[Dataset] = []
    for source in datasets:
        if source.name == target:
            continue
        pairs = zip(source.queries.ids, source.queries.texts, strict=True)
        kept = [(i, text) for i, text in pairs if i in goal.qrels]
        if not kept:
            raise InputError(
                f"cross: expected {source.name} to share ids of queries with {target}, found none"
            )
        queries = Texts(tuple(i for i, _ in kept), tuple(text for _, text in kept))
        qrels = {i: goal.qrels[i] for i in queries.ids}
        crossed.append(Dataset(f"{source.name}→{target}", queries, goal.documents, qrels))
    if not crossed:
        raise InputError(f"cross: expected languages beside {target}, found none")
    return crossed
