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

# Serving a published repository: docker run --gpus all --shm-size=1g -p 8000-8002:8000-8002 -v "$PWD/triton_repo/demo:/models:ro" IMAGE
# A repository needs nothing of ovr installed: the router carries what it imports, and numpy.
FROM nvcr.io/nvidia/tritonserver:26.04-py3 AS triton
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_BREAK_SYSTEM_PACKAGES=1
RUN python3 -m pip install 'numpy>=1.26,<3'
USER triton-server
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=none", "--disable-auto-complete-config"]

# Verifying and publishing bundles, without torch: docker run -v "$PWD:/data" IMAGE publish bundle=B repository=R
FROM python:3.11-slim AS publish
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/ovr
COPY pyproject.toml README.md LICENSE ./
COPY ovr ovr
COPY conf conf
RUN python -m pip install '.[serve,sign]'
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
