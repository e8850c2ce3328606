# One image for every part: the command is `api`, `worker`, `scheduler` or `migrate`, or any other of `headrace`.

ARG PYTHON_IMAGE=python:3.11.14-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# What changes seldom comes first: an edit of the code builds nothing but its own wheel.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /opt/headrace \
    && /opt/headrace/bin/pip install --no-deps --only-binary :all: --require-hashes -r requirements.lock \
    && pip install --no-deps --only-binary :all: --require-hashes -r requirements-build.lock
COPY pyproject.toml LICENSE README.md ./
COPY headrace headrace
COPY api api
COPY scheduler scheduler
COPY worker worker
COPY console console
COPY migrations migrations
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/headrace/bin/pip install --no-deps /dist/*.whl

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin headrace
COPY --from=build /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HEADRACE_HOST=0.0.0.0
# By number, so that `runAsNonRoot` can tell.
USER 10001:10001
# A headrace.toml mounted here is found.
WORKDIR /home/headrace
EXPOSE 8700 8701
# Healthy is a process whose event loop runs, or one without a metrics port. http.client knows no proxy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import http.client, os, sys; \
    port = int(os.environ.get('HEADRACE_METRICS_PORT') or 0) or sys.exit(0); \
    process = http.client.HTTPConnection('127.0.0.1', port, timeout=4); process.request('GET', '/livez'); \
    sys.exit(process.getresponse().status != 200)"]
ENTRYPOINT ["headrace"]
CMD ["api"]
