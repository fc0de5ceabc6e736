# The one image of all Argosy services: worker, migration, model download, Flower, gateway.
#
# TORCH_INDEX chooses the build of PyTorch: the address of a pip index that has the wanted one, such as PyTorch's own
# index of CPU builds. Empty takes what pip's configured index has (on Linux/x86-64 a CUDA build: large, but it runs
# on a CPU too).
ARG PYTHON=3.11-slim-bookworm
FROM python:${PYTHON}

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    VIRTUAL_ENV=/opt/argosy \
    PATH=/opt/argosy/bin:$PATH
RUN python -m venv /opt/argosy

# The largest layer first, and bound to the pins alone: changes of the code never download PyTorch again.
WORKDIR /usr/src/argosy
COPY constraints.txt ./
ARG TORCH_INDEX=
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch

# Then the other dependencies, by way of an empty package of the same name. EXTRAS are those of pyproject.toml.
ARG EXTRAS=worker,gateway
COPY pyproject.toml README.md LICENSE ./
RUN mkdir producers workers results_store \
    && touch producers/__init__.py workers/__init__.py results_store/__init__.py \
    && pip install --constraint constraints.txt ".[${EXTRAS}]" flower \
    && pip uninstall --yes argosy

COPY producers producers
COPY workers workers
COPY results_store results_store
RUN pip install --no-deps .

# An own user; the volumes of the models, of Flower and of a site are mounted in its folders, and take over the ownership.
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/argosy argosy \
    && install -d -o argosy -g argosy /var/lib/argosy/cache /var/lib/argosy/flower \
    && install -d -o argosy -g argosy -m 700 /var/lib/argosy/site
USER argosy
WORKDIR /var/lib/argosy
ENV ARGOSY_CACHE=/var/lib/argosy/cache \
    ARGOSY_HOME=/tmp/argosy \
    HF_HUB_DISABLE_TELEMETRY=1
CMD ["argosy", "--help"]
