"""Demand equals the result of Kubernetes' own code: ``resource.PodRequests``."""

from __future__ import annotations

import json
import random
import subprocess
from decimal import Decimal
from pathlib import Path

from hugetlb_quota.accounting.demand import demand
from tests import seeds
from tests.generated_pods import pod_spec, with_overhead

PODS = 10_000


def test_no_difference_on_thousands_of_generated_pods(assets: Path) -> None:
    seed = seeds.seed()
    draw = random.Random(seed)
    specs = [with_overhead(draw, pod_spec(draw)) for _ in range(PODS)]
    lines = "\n".join(json.dumps({"spec": spec}) for spec in specs)
    answers = subprocess.run(
        [assets / "pod-requests"],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.splitlines()
    assert len(answers) == PODS
    demanding = 0
    for spec, line in zip(specs, answers, strict=True):
        theirs = {
            name: Decimal(amount)
            for name, amount in json.loads(line).items()
            if name.startswith("hugepages-") and Decimal(amount)
        }
        ours = {size.resource: amount for size, amount in demand(spec).items()}
        assert ours == theirs, f"SEED={seed}: {json.dumps(spec)}"
        demanding += bool(ours)
    assert demanding > PODS / 2
