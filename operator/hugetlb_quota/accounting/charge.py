"""An amount of huge pages by page size, in bytes."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from hugetlb_quota import quantity
from hugetlb_quota.page_size import RESOURCE_PREFIX, PageSize, UnknownPageSize


class Charge(Mapping[PageSize, int]):
    """Bytes by page size; immutable.

    :meth:`of` returns 0 for a size that the charge does not name. ``in`` says whether the charge
    names a size: a limit of 0 bytes differs from no limit.
    """

    __slots__ = ("_bytes",)

    def __init__(self, amounts: Mapping[PageSize, int] | None = None) -> None:
        given = amounts or {}
        self._bytes: Final = dict(sorted(given.items()) if len(given) > 1 else given)

    @classmethod
    def from_resources(cls, resources: Mapping[str, Any] | None) -> Charge:
        """The huge pages of a Kubernetes resource list; other resources are ignored.

        :raises UnknownPageSize: for a ``hugepages-`` name that is not a huge page size.
        :raises MalformedQuantity: for an amount that is not a quantity.
        """
        amounts: dict[PageSize, int] = {}
        for name, amount in (resources or {}).items():
            if name.startswith(RESOURCE_PREFIX):
                # hugepages-2Mi and hugepages-2048Ki are the same size: their amounts add up.
                size = PageSize.from_resource(name)
                amounts[size] = amounts.get(size, 0) + quantity.parse(amount)
        return _shared(tuple(amounts.items()))

    @classmethod
    def from_sums(cls, resources: Mapping[str, Any]) -> Charge:
        """From sums of charges in a status; an amount may be above 2^63 - 1.

        A size that only a newer release knows is ignored.

        :raises MalformedQuantity: for an amount that is not a quantity.
        """
        amounts: dict[PageSize, int] = {}
        for name, amount in resources.items():
            with suppress(UnknownPageSize):
                size = PageSize.from_resource(name)
                amounts[size] = amounts.get(size, 0) + quantity.parse_sum(amount)
        return _shared(tuple(amounts.items()))

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
        """Bytes of ``size``, 0 if the charge does not name ``size``."""
        return self._bytes.get(size, 0)

    def named(self, sizes: Iterable[PageSize]) -> Charge:
        """A copy that names each of ``sizes``, with 0 bytes for the added ones."""
        return Charge({**dict.fromkeys(sizes, 0), **self._bytes})

    def peak(self, other: Charge) -> Charge:
        """The maximum of the two charges, size by size."""
        return Charge({size: max(self.of(size), other.of(size)) for size in {*self, *other}})

    def within(self, other: Charge) -> Charge:
        """The minimum of the two charges, for each size that this charge names."""
        return Charge({size: min(amount, other.of(size)) for size, amount in self.items()})

    def beyond(self, other: Charge) -> Charge:
        """The difference to ``other``, at least 0, for each size that this charge names."""
        return Charge({size: max(0, amount - other.of(size)) for size, amount in self.items()})

    def without_zeros(self) -> Charge:
        """Return the charge without the sizes that have 0 bytes."""
        return _shared(tuple((size, amount) for size, amount in self.items() if amount))

    def __add__(self, other: Charge) -> Charge:
        return Charge.total((self, other))

    # Mapping's own views call __getitem__ for each entry, and admission adds up thousands.
    def keys(self) -> KeysView[PageSize]:
        """The named sizes, smallest first."""
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


@lru_cache(maxsize=4096)
def _shared(amounts: tuple[tuple[PageSize, int], ...]) -> Charge:
    """One object for all that ask for the same, as tens of thousands of pods do."""
    return Charge(dict(amounts))
