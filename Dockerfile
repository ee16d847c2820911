# One image for all programs: the chart's commands choose, `python -m hugetlb_quota.<program>`.
# `make image` builds it with docker, podman or buildah, and labels it with version and revision.

# All platforms of the official image; with another BASE, a `python` of 3.11 or newer, its `pip`, and
# Debian's apt are needed in it.
ARG BASE=docker.io/library/python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b

# Where the reader is built: the same, or an image that has the compilers already.
ARG READER_BASE=${BASE}

# The reader of the kernel's charge list: a static program, with its BPF program in it.
FROM ${READER_BASE} AS reader
RUN command -v clang > /dev/null \
    || { apt-get -qq update \
    && apt-get -qq install --no-install-recommends bpftool clang gcc libbpf-dev libc6-dev make \
        < /dev/null > /dev/null; }
COPY operator/hugetlb_quota/node/reader /src/reader
RUN make -C /src/reader

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/hugetlb-quota \
    && python -m venv --without-pip /opt/build
# The dependencies first: they change less often than the source, and stay cached.
COPY requirements.lock image/requirements-build.lock /src/
# The secret `ca` may name the certificates to trust, where a proxy stands between; it stays outside.
RUN --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    pip --python /opt/hugetlb-quota install --no-compile --require-hashes \
        --only-binary=:all: -r /src/requirements.lock \
    && pip --python /opt/build install --no-compile --require-hashes \
        --only-binary=:all: -r /src/requirements-build.lock
COPY image/prune.py /src/image/
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
COPY --from=reader /src/reader/charge-reader /src/operator/hugetlb_quota/node/reader/
# The root file system is read-only: what Python would compile at each start is compiled here.
RUN pip --python /opt/build wheel --no-build-isolation --no-deps --wheel-dir /wheels /src \
    && pip --python /opt/hugetlb-quota install --no-compile --no-index --no-deps /wheels/*.whl \
    && python /src/image/prune.py /opt/hugetlb-quota \
    && /opt/hugetlb-quota/bin/python -m compileall -q --invalidation-mode unchecked-hash \
        /opt/hugetlb-quota/lib

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="hugetlb-quota" \
      org.opencontainers.image.description="Hierarchical huge page quotas for Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=build /opt/hugetlb-quota /opt/hugetlb-quota
# Nothing is installed at run time. Starting each program shows that it can be imported, and
# compiles what it uses of the standard library.
RUN set -eu; \
    python -m pip uninstall --quiet --yes --root-user-action=ignore setuptools wheel pip; \
    rm -rf /usr/local/lib/python3*/ensurepip; \
    for program in admission controller agent; do \
        /opt/hugetlb-quota/bin/python -m "hugetlb_quota.$program" --help > /dev/null; \
    done; \
    test -x /opt/hugetlb-quota/lib/python3*/site-packages/hugetlb_quota/node/reader/charge-reader; \
    find / -xdev -xtype l -delete
# User 65532 is in no /etc/passwd, and libraries ask for a home.
ENV PATH=/opt/hugetlb-quota/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/
# As the chart's runAsUser; the agent alone is started as root, by the chart.
USER 65532:65532
CMD ["python", "-c", "print('Choose a program: python -m hugetlb_quota.admission, .controller or .agent')"]
