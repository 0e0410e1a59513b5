# `geep serve` on an NVIDIA GPU. In the project's folder: docker build -f docker/cuda.Dockerfile -t geep-triton:cuda .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt build setuptools
COPY pyproject.toml README.md LICENSE ./
COPY geep_triton geep_triton
RUN python -m build --wheel --no-isolation --outdir /dist

FROM python:${PYTHON}-slim-bookworm
# Triton compiles its launcher when the first kernel runs: a C compiler, libc's headers, and those of Python, which the base has.
# Debian keeps only the newest version of a package, so that a pinned one could not be installed for long.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /opt/geep/
# Alone and first: the largest layer stays when only the code changes. PyPI's torch brings CUDA's libraries; the driver's are the host's.
RUN pip install --no-cache-dir -c /opt/geep/constraints.txt torch
COPY --from=wheel /dist /opt/geep/dist
RUN set -- /opt/geep/dist/*.whl && pip install --no-cache-dir -c /opt/geep/constraints.txt "${1}[serve]"

# What is downloaded or compiled lies in /cache; beside it the server writes to /tmp alone.
RUN useradd --uid 10001 --create-home geep && install -d -o geep -g geep /cache
ENV HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /cache
# A number: Kubernetes sees that it is not root.
USER 10001

LABEL org.opencontainers.image.title="geep-triton" \
      org.opencontainers.image.description="BERT classification where every sample runs only the layers it needs and every batch stays dense" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0"

EXPOSE 8080
STOPSIGNAL SIGTERM
# By http.client, which asks no proxy.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", "from http.client import HTTPConnection as To; to = To('127.0.0.1', 8080, timeout=4); to.request('GET', '/health'); raise SystemExit(to.getresponse().status != 200)"]
ENTRYPOINT ["geep"]
CMD ["serve", "/model", "--host", "0.0.0.0"]
