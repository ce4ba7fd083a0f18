# The servers: controller, workers, page and API are one image with different commands (compose.yaml).
#
#   docker build -t lrm-llava:cpu .
#   docker build -t lrm-llava:gpu --build-arg TORCH_BUILD=gpu .
#
# torch's GPU build brings its own CUDA libraries; the machine needs NVIDIA's driver and its container
# toolkit only.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# cpu or gpu, as for scripts/setup.sh
ARG TORCH_BUILD=cpu

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY scripts scripts
COPY llava llava
COPY lrm_ext lrm_ext
# the page's example pictures
COPY playground/data/emoji_scenes/examples playground/data/emoji_scenes/examples
RUN TORCH_BUILD=${TORCH_BUILD} bash scripts/setup.sh --venv /opt/venv --extras serve \
    && rm -rf /root/.cache

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Logs and uploaded pictures go to the current folder; nothing else is written but /tmp.
RUN useradd --uid 10001 --create-home llava && mkdir /data && chown llava /data
USER llava
WORKDIR /data
VOLUME /data

EXPOSE 7860 8000 21001 21002
CMD ["python", "-m", "llava.serve.check", "--help"]
