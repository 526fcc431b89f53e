# Two images from one file: `--target api` (service and migrations, without PyTorch) and `--target worker` (with it).
#
# TORCH_ARGS  arguments of the `pip install` of PyTorch; by default the build of pip's index, on Linux one with CUDA.
#             For a small CPU image name an index of CPU wheels: --build-arg TORCH_ARGS='--index-url URL'

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/bgpo/bin:$PATH

FROM base AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# pip 25.1 is the first to read dependency groups.
RUN python -m venv /opt/bgpo \
    && pip install --quiet 'pip>=25.1'

FROM build AS build-api
RUN pip install --quiet -c constraints.txt --group api
COPY . .
RUN pip install --quiet --no-deps .

FROM build AS build-worker
ARG TORCH_ARGS=""
# constraints.txt pins the version, and TORCH_ARGS holds several arguments, hence no quotes:
# hadolint ignore=DL3013,SC2086
RUN pip install --quiet ${TORCH_ARGS} "$(grep '^torch==' constraints.txt)"
COPY . .
RUN pip install --quiet -c constraints.txt '.[gpu,s3]'

FROM base AS runtime
# The sandbox of python and code graders; Debian's security updates are wanted, hence no version:
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --system --gid 10001 bgpo \
    && useradd --system --uid 10001 --gid bgpo --no-create-home --home-dir /var/lib/bgpo bgpo \
    && install --directory --owner=bgpo --group=bgpo --mode=0750 /var/lib/bgpo \
    && install --directory /models
# Base models are mounted under /models; a new volume at /var/lib/bgpo takes the owner from here.
ENV BGPO_HOME=/var/lib/bgpo \
    BGPO_MODEL_ROOT=/models \
    BGPO_LOG_FORMAT=json
WORKDIR /var/lib/bgpo
USER 10001:10001

FROM runtime AS api
COPY --from=build-api /opt/bgpo /opt/bgpo
ENV BGPO_HOST=0.0.0.0 \
    BGPO_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "api"]

FROM runtime AS worker
COPY --from=build-worker /opt/bgpo /opt/bgpo
# The trainer has BGPO_STOP_GRACE_S to write a checkpoint: give `docker stop` more time than that.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 \
    CMD ["python", "-m", "worker.health"]
CMD ["python", "-m", "worker"]
