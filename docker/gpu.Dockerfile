# The example service (examples/service) on an NVIDIA GPU; the bundle, with its engines, is mounted.
#   docker build -f docker/gpu.Dockerfile --build-arg TENSORRT_RTX=1.7.1.116 -t mbexport:gpu .
#   docker run --rm --gpus=1 -p 8000:8000 -v "$PWD/mbexport-out:/bundle:ro" mbexport:gpu
# An engine runs on the release of TensorRT-RTX that built it: `mbexport inspect` names it.
# CUDA is what onnxruntime-gpu was built for, for bundles without an engine for the GPU.
ARG CUDA=13.0.1-cudnn-runtime-ubuntu24.04

FROM nvidia/cuda:${CUDA} AS python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
ARG TENSORRT_RTX=1.7.1.116
ARG ONNXRUNTIME_GPU=1.31.1
WORKDIR /src
RUN python3 -m venv /opt/mbexport
COPY pyproject.toml README.md LICENSE ./
COPY mbexport mbexport
# onnxruntime-gpu takes the place of onnxruntime, whose files have the same names.
RUN /opt/mbexport/bin/pip install --no-cache-dir ".[serve]" "tensorrt-rtx==${TENSORRT_RTX}" "cuda-bindings>=13,<14" \
    && /opt/mbexport/bin/pip uninstall -y onnxruntime \
    && /opt/mbexport/bin/pip install --no-cache-dir "onnxruntime-gpu==${ONNXRUNTIME_GPU}"

FROM python
RUN groupadd --gid 10001 mbexport \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin mbexport
COPY --from=build /opt/mbexport /opt/mbexport
COPY examples/service /app/service
WORKDIR /app
# Without a GPU the service does not start; it would be slow, and nobody would know why.
ENV PATH=/opt/mbexport/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MBEXPORT_BUNDLE=/bundle \
    MBEXPORT_LISTEN=0.0.0.0:8000 \
    MBEXPORT_DEVICE=cuda \
    MBEXPORT_REQUIRE_DEVICE=cuda
USER 10001:10001
EXPOSE 8000
# SIGTERM: the service takes no more, and finishes what it took.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import urlopen; \
urlopen('http://127.0.0.1:' + os.environ['MBEXPORT_LISTEN'].rpartition(':')[2] + '/health/live', timeout=2)"]
CMD ["python", "-m", "service"]
