"""An amount of huge pages by page size: the unit that everything here adds up."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import suppress
from typing import Any, Final

from hugetlb_quota import quantity
from hugetlb_quota.page_size import RESOURCE_PREFIX, PageSize, UnknownPageSize


class Charge(Mapping[PageSize, int]):
    """Bytes by page size; immutable, and no entry is zero unless it was given.

    Absent sizes read as 0 through :meth:`of`; ``in`` tells whether one was named at
    all, which is the difference between "limited to nothing" and "not limited".
    """

    __slots__ = ("_bytes",)

    def __init__(self, amounts: Mapping[PageSize, int] | None = None) -> None:
        known = amounts or {}
        self._bytes: Final = dict(sorted(known.items()) if len(known) > 1 else known)

    @classmethod
    def from_resources(cls, resources: Mapping[str, Any] | None) -> Charge:
        """From a Kubernetes resource list; what is no huge page is passed over.

        :raises UnknownPageSize: for a ``hugepages-`` name that is no size.
        :raises MalformedQuantity: for an amount that is none.
        """
        amounts: dict[PageSize, int] = {}
        for name, amount in (resources or {}).items():
            if name.startswith(RESOURCE_PREFIX):
                # Two spellings of one size add up, so that neither hides the other.
                size = PageSize.from_resource(name)
                amounts[size] = amounts.get(size, 0) + quantity.parse(amount)
        return cls(amounts)

    @classmethod
    def from_sums(cls, resources: Mapping[str, Any]) -> Charge:
        """From sums of charges, which have no bound, as a status tells them.

        A size that only a newer release knows is passed over.

        :raises MalformedQuantity: for an amount that is none.
        """
        amounts: dict[PageSize, int] = {}
        for name, amount in resources.items():
            with suppress(UnknownPageSize):
                size = PageSize.from_resource(name)
                amounts[size] = amounts.get(size, 0) + quantity.parse_sum(amount)
        return cls(amounts)

    @classmethod
    def total(cls, charges: Iterable[Charge]) -> Charge:
        """The sum of ``charges``."""
        amounts: dict[PageSize, int] = {}
        for charge in charges:
            for size, amount in charge.items():
                amounts[size] = amounts.get(size, 0) + amount
        return cls(amounts)

    def to_resources(self) -> dict[str, str]:
        """As a Kubernetes resource list, ``{"hugepages-2Mi": "64Mi"}``."""
        return {size.resource: quantity.render(amount) for size, amount in self.items()}

    def of(self, size: PageSize) -> int:
        """Bytes of ``size``, 0 when it is not named."""
        return self._bytes.get(size, 0)

    def named(self, sizes: Iterable[PageSize]) -> Charge:
        """The same with each of ``sizes`` named, at 0 where it was not."""
        return Charge({**dict.fromkeys(sizes, 0), **self._bytes})

    def peak(self, other: Charge) -> Charge:
        """The larger of the two, size by size."""
        return Charge({size: max(self.of(size), other.of(size)) for size in {*self, *other}})

    def within(self, other: Charge) -> Charge:
        """What of it ``other`` has room for: the smaller of the two, of the sizes named here."""
        return Charge({size: min(amount, other.of(size)) for size, amount in self.items()})

    def beyond(self, other: Charge) -> Charge:
        """What there is more than in ``other``, size by size."""
        return Charge({size: max(0, amount - other.of(size)) for size, amount in self.items()})

    def without_zeros(self) -> Charge:
        """Only the sizes of which there is something."""
        return Charge({size: amount for size, amount in self.items() if amount})

    def __add__(self, other: Charge) -> Charge:
        return Charge.total((self, other))

    # The views of Mapping go through __getitem__ one by one; admission adds up thousands.
    def keys(self) -> KeysView[PageSize]:
        """The sizes that are named, smallest first."""
        return self._bytes.keys()

    def values(self) -> ValuesView[int]:
        """The bytes of each size."""
        return self._bytes.values()

    def items(self) -> ItemsView[PageSize, int]:
        """Each size with its bytes."""
        return self._bytes.items()

    def __contains__(self, size: object) -> bool:
        return size in self._bytes

    def __bool__(self) -> bool:
        return any(self._bytes.values())

    def __getitem__(self, size: PageSize) -> int:
        return self._bytes[size]

    def __iter__(self) -> Iterator[PageSize]:
        return iter(self._bytes)

    def __len__(self) -> int:
        return len(self._bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Charge) and self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash(tuple(self._bytes.items()))

    def __repr__(self) -> str:
        return f"Charge({self.to_resources()})"


NOTHING: Final = Charge()
