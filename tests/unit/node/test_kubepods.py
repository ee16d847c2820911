"""Finds pod and container from the path of a cgroup, with the names of both cgroup drivers."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.node import kubepods
from hugetlb_quota.node.kubepods import Place, PodCgroup, Qos, place
from tests.testnode import naming

UID = "6687db17-22f1-4083-b01c-8e9a02f8b808"
ESCAPED = UID.replace("-", "_")
ID = "1f" * 32
HASH = "0123456789abcdef0123456789abcdef"
LEVELS = {"Guaranteed": Qos.GUARANTEED, "Burstable": Qos.BURSTABLE, "BestEffort": Qos.BEST_EFFORT}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("kubepods", Place(Qos.GUARANTEED)),
        ("/kubepods/burstable", Place(Qos.BURSTABLE)),
        (f"/kubepods/pod{UID}", Place(Qos.GUARANTEED, UID)),
        (f"/kubepods/besteffort/pod{UID}/{ID}", Place(Qos.BEST_EFFORT, UID, ID)),
        (f"/kubepods/burstable/pod{HASH}/{ID}/container", Place(Qos.BURSTABLE, HASH, ID)),
        (f"/kubelet/kubepods/burstable/pod{UID}", Place(Qos.BURSTABLE, UID)),
        ("kubepods.slice", Place(Qos.GUARANTEED)),
        (f"kubepods.slice/kubepods-pod{ESCAPED}.slice", Place(Qos.GUARANTEED, UID)),
        (
            f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice"
            f"/cri-containerd-{ID}.scope",
            Place(Qos.BURSTABLE, UID, ID),
        ),
        (
            f"kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-{ID}.scope/container",
            Place(Qos.GUARANTEED, UID, ID),
        ),
        (
            f"kubepods.slice/kubepods-pod{ESCAPED}.slice/docker-{ID}.scope",
            Place(Qos.GUARANTEED, UID, ID),
        ),
        (
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"
            f"/kubelet-kubepods-besteffort-pod{ESCAPED}.slice/cri-containerd-{ID}.scope",
            Place(Qos.BEST_EFFORT, UID, ID),
        ),
    ],
)
def test_finds_the_names_of_kubelet_and_the_runtimes(path: str, found: Place) -> None:
    assert place(path) == found


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "system.slice/kubelet.service",
        "kubepods/system",
        "kubepods/burstable/notapod",
        "kubepods/pod",
        f"kubepods.slice/kubepods-burstable-pod{ESCAPED}.slice",  # the name of another level
        f"kubepods.slice/pod{UID}",  # the name of the other driver
        f"kubepods/kubepods-pod{ESCAPED}.slice",
        f"kubepods/pod{UID}/crio-conmon-{ID}",  # CRI-O's monitor
        f"kubepods/pod{UID}/init.scope",
        f"kubepods/pod{UID}/{ID}/system.slice",  # created by the container
        f"kubepods/pod{UID}/{ID}/container/more",
        f"xkubepods/pod{UID}",
        f"kubepodsx.slice/kubepods-pod{ESCAPED}.slice",
    ],
)
def test_refuses_other_names(path: str) -> None:
    assert place(path) is None


@given(
    driver=st.sampled_from(naming.DRIVERS),
    qos=st.sampled_from(sorted(LEVELS)),
    uid=st.uuids().map(str) | st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    container=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
)
def test_reads_back_every_name_that_a_node_makes(
    driver: naming.Driver, qos: str, uid: str, container: str
) -> None:
    pod = naming.pod_level(driver, qos, uid)
    assert place(str(naming.qos_level(driver, qos))) == Place(LEVELS[qos])
    assert place(str(pod)) == Place(LEVELS[qos], uid)
    below = pod / naming.container_name(driver, container)
    assert place(str(below)) == Place(LEVELS[qos], uid, container)


@given(st.text(alphabet="abk/.-_podslice0", max_size=60))
def test_accepts_any_path(path: str) -> None:
    place(path)


def test_lists_only_the_pods_of_both_drivers(tmp_path: Path) -> None:
    wanted = set()
    for driver in naming.DRIVERS:
        for qos, level in LEVELS.items():
            uid = f"{driver}-{qos}".lower()
            path = tmp_path / naming.pod_level(driver, qos, uid)
            (path / naming.container_name(driver, ID)).mkdir(parents=True)
            wanted.add(PodCgroup(uid, level, path))
    (tmp_path / "kubepods/cgroup.procs").write_text("")
    (tmp_path / "kubepods/other").mkdir()
    (tmp_path / f"system.slice/kubepods/pod{UID}").mkdir(parents=True)
    assert set(kubepods.pods([tmp_path, tmp_path / "kubelet"])) == wanted


def test_lists_the_containers_of_a_pod_with_the_inner_cgroups_of_crun(tmp_path: Path) -> None:
    other = "2e" * 32
    for name in (f"crio-{ID}.scope/container", f"{other}/init", f"crio-conmon-{ID}.scope"):
        (tmp_path / name).mkdir(parents=True)
    found = kubepods.containers(PodCgroup(UID, Qos.GUARANTEED, tmp_path))
    assert {(each.id, str(each.path.relative_to(tmp_path))) for each in found} == {
        (ID, f"crio-{ID}.scope"),
        (ID, f"crio-{ID}.scope/container"),
        (other, other),
    }


def test_a_pod_without_containers_has_none(tmp_path: Path) -> None:
    assert list(kubepods.containers(PodCgroup(UID, Qos.GUARANTEED, tmp_path))) == []


def test_lists_containers_on_a_file_system_that_counts_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ID).mkdir()
    fields = [*range(3), 1, *range(6)]  # the fourth field is st_nlink
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda _: os.stat_result(fields))
        found = list(kubepods.containers(PodCgroup(UID, Qos.GUARANTEED, tmp_path)))
    assert [each.id for each in found] == [ID]


def test_a_pod_that_is_gone_has_no_containers(tmp_path: Path) -> None:
    gone = PodCgroup(UID, Qos.GUARANTEED, tmp_path / "gone")
    assert list(kubepods.containers(gone)) == []
    assert list(kubepods.pods([tmp_path / "gone"])) == []


def test_looks_for_kubepods_where_kubelet_and_kind_put_it(tmp_path: Path) -> None:
    usual = kubepods.parents(tmp_path, None)
    assert usual == (tmp_path, tmp_path / "kubelet", tmp_path / "kubelet.slice")
    assert kubepods.parents(tmp_path, "/a/b/") == (tmp_path / "a/b",)


def test_looks_for_kubepods_in_every_slice_that_belongs_to_no_pod(tmp_path: Path) -> None:
    slices = ("container.slice", "container.slice/container-inner.slice", "kubelet.slice")
    for name in (
        *slices,
        "system.slice/app.service/forged.slice",
        f"kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/forged.slice",
        "container.slice/container-kubepods.slice/forged.slice",
        "plain/forged.slice",
        "a.slice/b.slice/c.slice/d.slice/too-deep.slice",
    ):
        (tmp_path / name).mkdir(parents=True)
    found = {str(path.relative_to(tmp_path)) for path in kubepods.parents(tmp_path, None)}
    deep = ["/".join(f"{name}.slice" for name in "abcd"[:levels]) for levels in (1, 2, 3, 4)]
    assert found == {".", "kubelet", *slices, "system.slice", *deep}


@given(
    driver=st.sampled_from(naming.DRIVERS),
    qos=st.sampled_from(sorted(LEVELS)),
    below=st.lists(st.sampled_from(["init.scope", "kubepods.slice", "podx", "system.slice"])),
)
def test_every_cgroup_below_a_pod_belongs_to_that_pod(
    driver: naming.Driver, qos: str, below: list[str]
) -> None:
    pod = naming.pod_level(driver, qos, UID)
    assert kubepods.pod_of([*pod.parts, *below]) == UID
    assert kubepods.pod_of(["elsewhere", *pod.parts]) is None
    assert kubepods.pod_of(pod.parts[:-1]) is None
