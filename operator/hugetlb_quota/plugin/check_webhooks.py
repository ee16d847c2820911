"""The part of ``check`` for webhooks: their certificates, rules and endpoints."""

from __future__ import annotations

import ssl
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from hugetlb_quota.plugin.facts import WEBHOOKS, Facts, Json
from hugetlb_quota.plugin.findings import MOST_NAMES, Finding, Level
from hugetlb_quota.plugin.table import listed
from hugetlb_quota.plural import number_of

#: A CA that ends within this time is a warning.
EXPIRES_SOON: Final = timedelta(days=30)
_TOPIC: Final = "webhooks"


def check(facts: Facts) -> Iterator[Finding]:
    """The findings about webhooks: at least one."""
    hooks = {
        hook["name"]: hook
        for configuration in facts.webhooks or ()
        for hook in configuration.get("webhooks") or ()
        if hook.get("name") in WEBHOOKS
    }
    # Without a quota, the controller gives no rules to the webhooks for pods.
    without_rules = [name for name, hook in hooks.items() if not hook.get("rules")]
    bad = [*_missing(hooks), *_without_ca(hooks)]
    bad += [finding for hook in hooks.values() for finding in _certificate(hook, facts.now)]
    bad += _failure_policy(hooks)
    if facts.quotas:
        bad += _without_rules(without_rules)
    bad += _endpoints(hooks.values(), facts.endpoints)
    yield from dict.fromkeys(bad)
    if not bad:
        idle = " Without a quota, admission decides about no pod." if without_rules else ""
        message = f"{number_of(len(hooks), 'webhook')} configured, with their CA.{idle}"
        yield Finding(Level.OK, _TOPIC, message)


def _missing(hooks: Mapping[str, Json]) -> Iterator[Finding]:
    if missing := [name for name in WEBHOOKS if name not in hooks]:
        pods = "pods.hugetlb.dev" in missing
        effect = "quotas refuse nothing" if pods else "the API server does not call them"
        yield Finding(
            Level.ERROR,
            _TOPIC,
            f"No ValidatingWebhookConfiguration has {listed(missing, MOST_NAMES)}, so {effect}.",
            "Install or upgrade the chart.",
        )


def _without_ca(hooks: Mapping[str, Json]) -> Iterator[Finding]:
    if bare := [name for name, hook in hooks.items() if not _bundle(hook)]:
        yield Finding(
            Level.ERROR,
            _TOPIC,
            f"{_have(bare)} no caBundle, so the API server can't trust admission's answers.",
            "After an install, wait until the pods are ready: the controller (or cert-manager)"
            " sets the caBundle. If it stays empty, see the log of the controller.",
        )


def _certificate(hook: Json, now: datetime) -> Iterator[Finding]:
    bundle = _bundle(hook)
    if not bundle:
        return
    ends = end_of(bundle)
    if ends is None:
        yield Finding(
            Level.ERROR,
            _TOPIC,
            f"The caBundle of webhook {hook['name']} holds no certificate.",
            "Upgrade the chart, or correct admission.tls.caBundle.",
        )
    elif ends < now:
        yield Finding(
            Level.ERROR,
            _TOPIC,
            f"The CA of the webhooks ended at {ends:%Y-%m-%d %H:%M} UTC.",
            "Renew the CA: docs/operations.md says how.",
        )
    elif ends < now + EXPIRES_SOON:
        yield Finding(
            Level.WARNING,
            _TOPIC,
            f"The CA of the webhooks ends at {ends:%Y-%m-%d %H:%M} UTC.",
            "Renew the CA before that: docs/operations.md says how.",
        )


def end_of(bundle: str) -> datetime | None:
    """The earliest end of the certificates in a caBundle; None if there is no certificate."""
    try:
        # A default context would load the CAs of this machine if the bundle is empty.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=b64decode(bundle).decode())
        ends = [
            ssl.cert_time_to_seconds(str(certificate["notAfter"]))
            for certificate in context.get_ca_certs()
            if "notAfter" in certificate
        ]
    except (ValueError, ssl.SSLError):
        return None
    return datetime.fromtimestamp(min(ends), UTC) if ends else None


def _failure_policy(hooks: Mapping[str, Json]) -> Iterator[Finding]:
    name = "pods.hugetlb.dev"
    if (hooks.get(name) or {}).get("failurePolicy") == "Ignore":
        yield Finding(
            Level.WARNING,
            _TOPIC,
            f"Webhook {name} has failurePolicy Ignore: while admission does not answer, the API"
            " server admits pods beyond any quota.",
            "Set admission.failurePolicy to Fail, unless Ignore is wanted.",
        )


def _without_rules(names: Sequence[str]) -> Iterator[Finding]:
    if names:
        yield Finding(
            Level.ERROR,
            _TOPIC,
            f"{_have(names)} no rules, so the API server does not call admission, and quotas"
            " refuse nothing.",
            "See the log of the controller that leads: the controller sets the rules once"
            " admission answers.",
        )


def _endpoints(hooks: Iterable[Json], ready: Mapping[str, int] | None) -> Iterator[Finding]:
    if ready is None:
        return
    services = {
        f"{service.get('namespace')}/{service.get('name')}"
        for hook in hooks
        if (service := (hook.get("clientConfig") or {}).get("service"))
    }
    for name in sorted(services):
        if not ready.get(name):
            yield Finding(
                Level.ERROR,
                _TOPIC,
                f"Service {name} has no ready endpoint, so admission does not answer.",
                f"See kubectl -n {name.partition('/')[0]} get pods.",
            )


def _bundle(hook: Json) -> str:
    return str((hook.get("clientConfig") or {}).get("caBundle") or "")


def _have(names: Sequence[str]) -> str:
    return f"{listed(names, MOST_NAMES)} {'has' if len(names) == 1 else 'have'}"
