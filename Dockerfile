# syntax=docker/dockerfile:1
# One image for head, workers, submitter and helm test.
#   docker build -t inpaint:0.1.0 .                                   CUDA
#   docker build -t inpaint:0.1.0-cpu --build-arg VARIANT=cpu .       CPU, amd64 and arm64
ARG VARIANT=cuda
ARG CUDA_IMAGE=nvcr.io/nvidia/cuda:13.2.0-base-ubuntu24.04
ARG CUDA_DIGEST=sha256:36cccda4bebc3b0b1ebe1907ead8169cf144d45df890be871b36b304cf91145a
ARG CPU_IMAGE=ubuntu:24.04
ARG CPU_DIGEST=sha256:224a1869083a311ef3f13648a154ba79832fbef6364d31493642ca03082da254

FROM ${CUDA_IMAGE}@${CUDA_DIGEST} AS base-cuda
FROM ${CPU_IMAGE}@${CPU_DIGEST} AS base-cpu

# What runs needs: bash and wget for KubeRay's commands and probes, a C compiler for torch.compile's kernels.
FROM base-${VARIANT} AS base
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        bash ca-certificates gcc g++ libc6-dev procps python3 python3-dev wget \
    && rm -rf /var/lib/apt/lists/*

# The pinned dependencies change rarely and get a layer of their own; the package follows.
FROM base AS build
ARG VARIANT
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/inpaint
WORKDIR /src
COPY pyproject.toml constraints.txt LICENSE ./
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir -p inpaint && printf '__version__ = "0"\n' > inpaint/__init__.py && touch README.md \
    && /opt/inpaint/bin/pip install --constraint constraints.txt \
        $([ "$VARIANT" = cpu ] && echo "--extra-index-url https://download.pytorch.org/whl/cpu") setuptools '.[train]' \
    && /opt/inpaint/bin/pip uninstall -y inpaint
COPY README.md ./
COPY inpaint inpaint
COPY ray_jobs ray_jobs
COPY sweeps sweeps
RUN /opt/inpaint/bin/pip install --no-deps --no-build-isolation --constraint constraints.txt . \
    && /opt/inpaint/bin/python -m compileall -q /opt/inpaint/lib

FROM base AS final
ARG VARIANT
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="inpaint" \
      org.opencontainers.image.description="Distributed training of image-inpainting GANs on Kubernetes with Ray" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      inpaint.variant="${VARIANT}"
# ubuntu:24.04 brings a user with id 1000; ours takes its place. /cache is a volume on a cluster.
RUN (userdel --remove ubuntu 2>/dev/null || true) \
    && groupadd --gid 1000 inpaint \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash inpaint \
    && install -d -o 1000 -g 1000 /cache /cache/inductor /cache/triton /cache/numba /cache/torch \
    && printf 'export PATH=/opt/inpaint/bin:$PATH\n' > /etc/profile.d/inpaint.sh
COPY --from=build /opt/inpaint /opt/inpaint
ENV PATH=/opt/inpaint/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/home/inpaint \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    NUMBA_CACHE_DIR=/cache/numba \
    TORCH_HOME=/cache/torch \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/inpaint
CMD ["inpaint", "--help"]
