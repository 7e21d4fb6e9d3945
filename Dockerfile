# The program, a model, and no more rights than it needs (docs/docker.md).
#
#   docker build -t deit-batch .                           for CPUs, with the default model in it
#   docker build -t deit-batch --build-arg VARIANT=cuda .  for NVIDIA GPUs: PyPI's torch brings CUDA
#   docker build -t deit-batch --build-arg MODEL=demo .    with another model: a name on the Hub, or a folder here
ARG PYTHON=3.11

# Not the slim one: it has the compiler for what decodes JPEGs faster.
FROM python:${PYTHON} AS build
ARG VARIANT=cpu
ARG EXTRAS=[eval,onnx,report,s3,serve,turbo]
ARG MODEL=facebook/deit-base-patch16-224
ARG REVISION=
WORKDIR /src
RUN python -m venv /opt/deit-batch
ENV PATH=/opt/deit-batch/bin:$PATH
COPY constraints.txt ./
# In a layer of its own: it changes seldom, and is large.
RUN if [ "$VARIANT" = cpu ]; then \
      pip install --no-cache-dir --no-deps --constraint constraints.txt \
        --index-url https://download.pytorch.org/whl/cpu torch; \
    fi
COPY pyproject.toml setup.cfg setup.py README.md LICENSE NOTICE ./
COPY examples/LICENSE examples/
COPY deit_batch deit_batch
RUN pip install --no-cache-dir --constraint constraints.txt ".$EXTRAS"
COPY . .
RUN deit-batch pull "$MODEL" ${REVISION:+--revision "$REVISION"} --out /opt/model

FROM python:${PYTHON}-slim
COPY --from=build /opt/deit-batch /opt/deit-batch
COPY --from=build /opt/model /opt/model
# What it keeps for itself goes to /tmp, the one place beside the data that must be writable.
ENV PATH=/opt/deit-batch/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    HF_HOME=/tmp/huggingface \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    DEIT_BATCH_EMBED_MODEL=/opt/model \
    DEIT_BATCH_EVALUATE_MODEL=/opt/model \
    DEIT_BATCH_PLOT_MODEL=/opt/model \
    DEIT_BATCH_SCORE_MODEL=/opt/model \
    DEIT_BATCH_SERVE_MODEL=/opt/model
WORKDIR /data
USER 10001:10001
ENTRYPOINT ["deit-batch"]
CMD ["--help"]
