"""`helm upgrade` from the chart of the previous commit, and `helm rollback`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hugetlb_quota.controller.certificates import stored
from hugetlb_quota.controller.webhooks.rules import has_rules
from tests import previous
from tests.kube import chart as charts
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane
from tests.kube.quotas import quota_object

WEBHOOKS = "admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
OF = f"--set=image.repository={charts.IMAGE['repository']}"

Helm = Callable[..., str]


@pytest.fixture
def plane(assets: Path) -> Iterator[ControlPlane]:
    """A control plane for this test alone."""
    with ControlPlane(assets) as running:
        yield running


@pytest.fixture
def helm(plane: ControlPlane) -> Helm:
    return lambda *words: plane.helm(*words, f"--namespace={charts.NAMESPACE}").stdout


def kinds(manifest: str) -> dict[tuple[str, str], Any]:
    """Get the objects by kind and name."""
    objects = [each for each in yaml.safe_load_all(manifest) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


@pytest.mark.timeout(300)
def test_a_rollback_restores_the_release_and_keeps_the_leaders_fields(
    plane: ControlPlane, helm: Helm, tmp_path: Path
) -> None:
    commit = previous.commit()
    if commit is None:
        pytest.skip("the repository has no commit before this commit")
    before = previous.unpack(commit, tmp_path) / "charts" / "hugetlb-quota"
    name = charts.RELEASE
    helm("install", name, str(before), "--create-namespace", OF)
    first = kinds(helm("get", "manifest", name))
    # The fields that the leading controller sets.
    rendered = charts.render(plane.assets / "helm")
    charts.complete(plane, rendered)
    expected = plane.api.get(WEBHOOKS, name)
    serving = charts.serving(plane, rendered)

    def check(step: str) -> None:
        now = plane.api.get(WEBHOOKS, name)
        assert has_rules(now), step
        assert stored.read_trust(now) == stored.read_trust(expected), step
        assert charts.serving(plane, rendered) == serving, step

    check("installed")
    helm("upgrade", name, str(charts.CHART), OF)
    check("upgraded")
    second = kinds(helm("get", "manifest", name))
    helm("rollback", name)
    check("rolled back")
    assert kinds(helm("get", "manifest", name)) == first
    # Objects that only the later release has are gone.
    for kind, gone in second.keys() - first.keys():
        assert gone not in plane.kubectl("get", kind, "-A", check=False).stdout
    # Upgrade again, with CRDs.
    helm("upgrade", name, str(charts.CHART), OF)
    check("upgraded again")
    assert kinds(helm("get", "manifest", name)) == second
    quota: Object = quota_object("default", "q", {"hard": {"hugepages-2Mi": "4Mi"}})
    plane.api.delete(WEBHOOKS, name)  # admission does not run here
    plane.api.create(QUOTAS, quota)
