# Triton Inference Server with mbexport for its Python backend; the repository of `mbexport package` is mounted.
#   docker build -f docker/triton.Dockerfile --build-arg TRITON=IMAGE -t mbexport-triton .
# IMAGE: NVIDIA's, by the full name that its catalog gives nvidia/tritonserver, e.g. with the tag 25.10-py3.
#   docker run --rm --shm-size=1g -p 8000:8000 -v "$PWD/triton-models:/models:ro" mbexport-triton
# With an engine: a release of Triton that has the very TensorRT that built it.
ARG TRITON=nvidia/tritonserver:25.10-py3

FROM python:3.12.12-slim-bookworm AS build
# For the kernels, which are compiled once, here.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV MBEXPORT_BUILD_KERNELS=on
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mbexport mbexport
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${TRITON}
COPY --from=build /wheels /wheels
# Into the Python that the backend was built for; its NumPy stays as the image has it.
RUN numpy="$(python3 -c 'import numpy; print(numpy.__version__)')" \
    && python3 -m pip install --no-cache-dir --break-system-packages /wheels/*.whl "numpy==${numpy}"
# Triton's own ONNX Runtime backend, which no Python of ours comes before, sends usage data to its maker unless told.
ENV ORT_DISABLE_TELEMETRY=1
# The image's own user, triton-server.
USER 1000:1000
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
CMD ["tritonserver", "--model-repository=/models"]
