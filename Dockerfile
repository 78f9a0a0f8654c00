# What the wheel installs, without TensorFlow, in the versions of the lock:
#   docker build -t miniplm .
#   docker run -v "$PWD/runs:/work/runs" miniplm run --config=demo
# On a TPU VM: --build-arg EXTRA='jax[tpu]==0.10.2', and docker run --privileged
# --net=host; with NVIDIA's runtime: EXTRA='jax[cuda12]==0.10.2', and --gpus=all.
# gcp/Dockerfile is the image of a GKE pod or a Beam worker. Neither has been
# built where this code is made: there is no Docker there.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY miniplm_jax miniplm_jax
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.11-slim
ARG EXTRA="jax==0.10.2"
COPY requirements-lock.txt /tmp/
COPY --from=build /dist /tmp/dist
RUN pip install --no-cache-dir --constraint /tmp/requirements-lock.txt \
    /tmp/dist/*.whl "${EXTRA}" \
  && useradd --create-home --uid 1000 miniplm \
  && install --directory --owner=miniplm /work /work/runs
USER 1000
WORKDIR /work
ENTRYPOINT ["miniplm"]
CMD ["--help"]
