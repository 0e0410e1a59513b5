# `geep serve` on CPUs. In the project's folder: docker build -f docker/cpu.Dockerfile -t geep-triton:cpu .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt build setuptools
COPY pyproject.toml README.md LICENSE ./
COPY geep_triton geep_triton
RUN python -m build --wheel --no-isolation --outdir /dist

FROM python:${PYTHON}-slim-bookworm
# Where torch without CUDA comes from; name a mirror of it where the build may not ask pytorch.org.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /opt/geep/
# Alone and first: the largest layer stays when only the code changes.
RUN pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" -c /opt/geep/constraints.txt torch
COPY --from=wheel /dist /opt/geep/dist
RUN set -- /opt/geep/dist/*.whl && pip install --no-cache-dir -c /opt/geep/constraints.txt "${1}[serve]"

# What is downloaded lies in /cache; beside it the server writes to /tmp alone.
RUN useradd --uid 10001 --create-home geep && install -d -o geep -g geep /cache
ENV HF_HOME=/cache/huggingface
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
