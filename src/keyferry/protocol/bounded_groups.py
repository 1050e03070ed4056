# SPDX-License-Identifier: Apache-2.0
"""What strangers make us remember, bounded by who asked for it (*ours*; DESIGN §11)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

_Name = TypeVar("_Name", bound=Hashable)
_Item = TypeVar("_Item")


class Bound(NamedTuple, Generic[_Item]):
    """At most so many items of a group are kept."""

    group_of: Callable[[_Item], Hashable]
    most: int


class BoundedGroups(Generic[_Name, _Item]):
    """Items by name; one more than a group may have pushes out the oldest of that group, and of no other.

    So an item goes before its time only when a whole group came after it: what its owner answers sooner than that stays, whoever else
    asks meanwhile, however often. To add and to pop one costs the same however many there are.
    """

    def __init__(self, bounds: Iterable[Bound[_Item]]) -> None:
        """Keep these bounds, the narrowest first: what one group gives up counts for those around it."""
        self._items: dict[_Name, _Item] = {}  # in order of age
        self._groups: list[tuple[Bound[_Item], dict[Hashable, dict[_Name, _Item]]]] = [(bound, {}) for bound in bounds]

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: _Name) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[_Item]:
        """Go through all, the oldest first."""
        return iter(self._items.values())

    def group(self, place: int, key: Hashable) -> list[_Item]:
        """Return the items of one group, the oldest first; `place` is that of its bound."""
        return list(self._groups[place][1].get(key, {}).values())

    def size(self, place: int, key: Hashable) -> int:
        """Return how many items a group has."""
        return len(self._groups[place][1].get(key, ()))

    def add(self, name: _Name, item: _Item) -> list[_Item]:
        """Keep an item under a name of its own; return those that had to go."""
        gone = []
        for bound, groups in self._groups:
            group = groups.get(bound.group_of(item), {})
            if len(group) >= bound.most:
                oldest = next(iter(group))
                gone.append(group[oldest])
                self.pop(oldest)
        self._items[name] = item
        for bound, groups in self._groups:
            groups.setdefault(bound.group_of(item), {})[name] = item
        return gone

    def pop(self, name: _Name) -> _Item | None:
        """Forget the item of a name, and return it."""
        item = self._items.pop(name, None)
        if item is not None:
            for bound, groups in self._groups:
                key = bound.group_of(item)
                del groups[key][name]
                if not groups[key]:
                    del groups[key]
        return item
