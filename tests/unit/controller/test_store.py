"""The store keeps objects and indexes, and notes exactly the scope of the next count."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller.counting.changes import Changes
from hugetlb_quota.controller.counting.store import Namespace, Store
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject

KEY = QuotaKey("ns", "q")
CHARGE = Charge.from_resources({"hugepages-2Mi": "2Mi"})
NOW = datetime(2030, 1, 1, tzinfo=UTC)
LINE = Reservation("uid", "ns/pod", CHARGE, NOW, "request")
QUOTA = QuotaObject(KEY, "of-q", "5", 1, Quota(KEY, uid="of-q"), Counter(KEY, NOTHING))


def store_of(*quotas: QuotaObject) -> Store:
    store = Store()
    for each in quotas:
        store.quota_changed(None, each)
    store.changes.take()
    return store


def test_taking_the_changes_starts_again_without_any() -> None:
    changes = Changes(uids={"uid"}, heirs=True)
    assert changes.take() == Changes(uids={"uid"}, heirs=True)
    assert changes == Changes()
    assert not Changes(uids={"uid"}, advanced={"worker"}).is_only_advanced
    assert Changes(advanced={"worker"}).is_only_advanced


def test_a_new_store_has_everything_to_count() -> None:
    assert Store().changes == Changes(everything=True)


def test_pods_are_indexed_by_node() -> None:
    store, pod = store_of(), Pod("uid", "ns", "pod", 7, {})
    bound = replace(pod, node="worker")
    store.pod_changed(None, pod)
    store.pod_changed(pod, bound)
    assert store.uids_on_node == {"worker": {"uid"}}
    store.pod_changed(bound, None)
    assert (store.pods, store.uids_on_node) == ({}, {})
    assert store.changes == Changes(uids={"uid"})


def test_a_quota_with_another_resource_version_alone_notes_nothing() -> None:
    store, annotated = store_of(QUOTA), replace(QUOTA, resource_version="6")
    store.quota_changed(QUOTA, annotated)
    assert store.quotas == {KEY: annotated}
    assert store.changes == Changes()


def test_a_line_is_indexed_by_its_uid() -> None:
    store = store_of(QUOTA)
    charged = replace(QUOTA, counter=QUOTA.counter.charge(LINE))
    store.quota_changed(QUOTA, charged)
    assert store.lines == {"uid": {KEY: LINE}}
    assert store.pending == {KEY}
    assert store.changes.take() == Changes(uids={"of-q", "uid"}, quotas={KEY})
    store.quota_changed(charged, QUOTA)
    assert (store.lines, store.pending) == ({}, set())
    assert store.changes.uids == {"of-q", "uid"}


def test_an_attachment_is_noted_apart_from_the_spec() -> None:
    store, attached = store_of(QUOTA), replace(QUOTA.quota, attached_to=QuotaKey("ns", "root"))
    store.quota_changed(QUOTA, replace(QUOTA, quota=attached))
    assert (store.changes.attachments, store.changes.specs) == ({KEY}, set())
    store = store_of(QUOTA)
    limited = replace(QUOTA.quota, hard=CHARGE)
    store.quota_changed(QUOTA, replace(QUOTA, quota=limited))
    assert (store.changes.attachments, store.changes.specs) == (set(), {KEY})
    assert store.changes.selections == set()
    selecting = replace(limited, pod_selector=Selector.from_json({"matchLabels": {"a": "b"}}))
    store.quota_changed(replace(QUOTA, quota=limited), replace(QUOTA, quota=selecting))
    assert store.changes.selections == {"ns"}


def test_a_namespace_is_noted() -> None:
    store, namespace = store_of(), Namespace("ns", {"a": "b"}, leaving=False)
    store.namespace_changed(None, namespace)
    assert store.namespaces == {"ns": namespace}
    store.namespace_changed(namespace, None)
    assert store.namespaces == {}
    assert store.changes == Changes(namespaces={"ns"})
