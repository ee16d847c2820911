# syntax=docker/dockerfile:1
# One image for all programs: the chart's commands choose, `python -m hugetlb_quota.<program>`.

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/hugetlb-quota
# The dependencies first: they change less often than the source, and stay cached.
COPY requirements.lock /src/
RUN /opt/hugetlb-quota/bin/pip install --require-hashes --only-binary=:all: -r /src/requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
RUN pip wheel --no-deps --wheel-dir /wheels /src \
    && /opt/hugetlb-quota/bin/pip install --no-deps /wheels/*.whl \
    # The root file system is read-only: what Python would compile at each start is compiled here.
    && /opt/hugetlb-quota/bin/python -m compileall -q /opt/hugetlb-quota/lib \
    && rm -r /opt/hugetlb-quota/lib/python3.11/site-packages/pip*

FROM python:3.11-slim
COPY --from=build /opt/hugetlb-quota /opt/hugetlb-quota
ENV PATH=/opt/hugetlb-quota/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# As the chart's runAsUser; the agent alone is started as root, by the chart.
USER 65532:65532
CMD ["python", "-c", "print('Choose a program: python -m hugetlb_quota.admission, .controller or .agent')"]
