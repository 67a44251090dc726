# syntax=docker/dockerfile:1
# Images for a cluster, with Ray's dashboard and job server, AWS's autoscaler, and detectron2:
#   docker build --target cpu  --tag segmill:cpu .     head and decode machines
#   docker build --target cuda --tag segmill:cuda .    machines with NVIDIA cards (driver of the host)
# By default the cpu image carries the CUDA build of torch, as the package index has no other; name
# PyTorch's own CPU index with --build-arg TORCH_INDEX=... for an image of a fifth of the size.

ARG UBUNTU=ubuntu:24.04
# Its compiler must be of the CUDA version that torch was built with (torch.version.cuda).
ARG CUDA=nvidia/cuda:13.2.0-devel-ubuntu24.04
ARG TORCH_INDEX=
# Last commit of detectron2 that was tried, and the cards that its kernels are compiled for: A100,
# L4 and L40S, H100.
ARG DETECTRON2=02b5c4e295e990042a714712c21dc79b731e8833
ARG CARDS="8.0;8.9;9.0"

# What runs: Python, certificates, wget for KubeRay's probes, a user without privileges.
FROM ${UBUNTU} AS system
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libgomp1 python3 tini wget \
 && rm -rf /var/lib/apt/lists/* \
 && userdel --remove ubuntu \
 && useradd --create-home --uid 1000 --shell /bin/bash ray
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 FVCORE_CACHE=/tmp \
    RAY_idle_worker_killing_time_threshold_ms=60000

# What builds: compilers, for detectron2 has kernels of its own.
FROM ${UBUNTU} AS tools-cpu
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential ca-certificates git ninja-build \
      python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV FORCE_CUDA=0

FROM ${CUDA} AS tools-cuda
ARG CARDS
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential ca-certificates git ninja-build \
      python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
# There is no card to look at while an image is built (as detectron2's own Dockerfile says).
ENV FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=${CARDS}

# The environment, without our code: it is built anew only when the locked versions change.
FROM tools-cpu AS environment-cpu
ARG TORCH_INDEX
ARG DETECTRON2
WORKDIR /build
COPY pyproject.toml requirements.lock jobs/deploy/install-environment.sh ./
RUN sh install-environment.sh /opt/venv

FROM tools-cuda AS environment-cuda
ARG DETECTRON2
WORKDIR /build
COPY pyproject.toml requirements.lock jobs/deploy/install-environment.sh ./
RUN sh install-environment.sh /opt/venv

FROM tools-cpu AS wheel
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY pipeline pipeline
COPY jobs jobs
RUN python3 -m venv /opt/pip \
 && /opt/pip/bin/pip wheel --quiet --no-deps --wheel-dir /wheels .

FROM system AS cpu
COPY --from=environment-cpu /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --quiet --no-deps --no-cache-dir /wheels/*.whl
USER ray
WORKDIR /home/ray
ENTRYPOINT ["tini", "--"]
CMD ["segmill", "--help"]

FROM system AS cuda
COPY --from=environment-cuda /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --quiet --no-deps --no-cache-dir /wheels/*.whl
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER ray
WORKDIR /home/ray
ENTRYPOINT ["tini", "--"]
CMD ["segmill", "--help"]
