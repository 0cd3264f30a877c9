# The example service (examples/service) on CPUs; the bundle is mounted.
#   docker build -f docker/cpu.Dockerfile -t mbexport:cpu .
#   docker run --rm -p 8000:8000 -v "$PWD/mbexport-out:/bundle:ro" mbexport:cpu
#   docker run --rm -v "$PWD/mbexport-out:/bundle:ro" mbexport:cpu mbexport predict /bundle "some text"
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
# For the kernels, which are compiled once, here.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV MBEXPORT_BUILD_KERNELS=on
WORKDIR /src
RUN python -m venv /opt/mbexport
COPY pyproject.toml README.md LICENSE ./
COPY mbexport mbexport
RUN /opt/mbexport/bin/pip install --no-cache-dir ".[serve]"

FROM python:${PYTHON}
RUN groupadd --gid 10001 mbexport \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin mbexport
COPY --from=build /opt/mbexport /opt/mbexport
COPY examples/service /app/service
WORKDIR /app
ENV PATH=/opt/mbexport/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MBEXPORT_BUNDLE=/bundle \
    MBEXPORT_LISTEN=0.0.0.0:8000
USER 10001:10001
EXPOSE 8000
# SIGTERM: the service takes no more, and finishes what it took.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import urlopen; \
urlopen('http://127.0.0.1:' + os.environ['MBEXPORT_LISTEN'].rpartition(':')[2] + '/health/live', timeout=2)"]
CMD ["python", "-m", "service"]
