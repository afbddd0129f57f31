# Four images: docker build --target train|publish|triton|edge .
# tests/test_packaging.py runs every install command (a RUN line) in an empty environment.

# Training, calibration, export: docker run --gpus all -v "$PWD:/data" IMAGE train experiment=digits
FROM python:3.11-slim AS train
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/ovr
COPY pyproject.toml README.md LICENSE ./
COPY ovr ovr
COPY conf conf
RUN python -m pip install '.[digits,report]'
WORKDIR /data
ENTRYPOINT ["ovr"]

# Serving a published repository: docker run --gpus all --shm-size=1g -p 127.0.0.1:8000-8003:8000-8003 -v "$PWD/triton_repo/demo:/models:ro" IMAGE
FROM nvcr.io/nvidia/tritonserver:26.04-py3 AS triton
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_BREAK_SYSTEM_PACKAGES=1
# Models in Python run in the system's Python, with the numpy below 2 that NVIDIA puts there. The router carries what it imports of ovr;
# pillow and tokenizers are for bundles of images and of texts that are made into tokens.
RUN python3 -m pip install 'numpy>=1.26,<2' 'pillow>=11.3,<14' 'tokenizers>=0.22,<0.24'
# `ovr serve`, which starts tritonserver and keeps it answering, needs another numpy: an environment of its own, last on PATH.
WORKDIR /opt/ovr
COPY pyproject.toml README.md LICENSE ./
COPY ovr ovr
COPY conf conf
RUN python3 -m venv --without-pip /opt/ovr/env
RUN python3 -m pip --python /opt/ovr/env/bin/python install '.[serve]'
ENV PATH="$PATH:/opt/ovr/env/bin" XDG_STATE_HOME=/tmp
RUN install -d -o 1000 -g 1000 /repository
WORKDIR /tmp
USER triton-server
EXPOSE 8000 8001 8002 8003
CMD ["ovr", "serve", "repository=/models", "host=0.0.0.0", "health_host=0.0.0.0", "install=false"]

# Verifying and publishing bundles, without torch: docker run -v "$PWD:/data" IMAGE publish bundle=B repository=R
FROM python:3.11-slim AS publish
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/ovr
COPY pyproject.toml README.md LICENSE ./
COPY ovr ovr
COPY conf conf
RUN python -m pip install '.[serve,sign]'
# A volume that is mounted here for the first time gets its owner.
RUN install -d -o 1000 -g 1000 /repository
WORKDIR /tmp
USER 1000
ENTRYPOINT ["ovr"]

# Predictions without torch: docker run -v "$PWD:/data" IMAGE -c "from ovr import EdgePredictor; ..."
FROM python:3.11-slim AS edge
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/ovr
COPY pyproject.toml README.md LICENSE ./
COPY ovr ovr
COPY conf conf
RUN python -m pip install '.[edge]'
WORKDIR /data
USER nobody
ENTRYPOINT ["python"]
