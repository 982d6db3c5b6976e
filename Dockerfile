# One image for every service of docker-compose.yml: worker, beat, Flower, simulator.

FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.lock requirements-runtime.lock ./
# /tools has what builds the package and stays behind; /opt/vmops is what the services run.
RUN python -m venv /tools \
 && /tools/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
 && python -m venv /opt/vmops \
 && /opt/vmops/bin/pip install --no-cache-dir --require-hashes -r requirements-runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY worker/ worker/
COPY tasks/ tasks/
COPY simulator/ simulator/
COPY dom0/ dom0/
RUN /tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/vmops/bin/pip install --no-deps --no-index /wheels/*.whl \
 && /opt/vmops/bin/pip uninstall --yes pip

FROM python:3.13-slim
# e2fsprogs: the worker makes file systems on ephemeral disks, and makes those of root disks smaller.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends e2fsprogs \
 && rm -rf /var/lib/apt/lists/* \
 && python -m pip uninstall --yes pip \
 && useradd --uid 1000 --create-home --home-dir /home/vmops vmops \
 && install -d -o vmops -g vmops /var/lib/vmops /var/lib/vmops/images /var/lib/vmops/work /var/lib/vmops/beat /var/lib/vmops/simulator
COPY --from=build /opt/vmops /opt/vmops
COPY config/ /etc/vmops/
ENV PATH=/opt/vmops/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/vmops
USER vmops
CMD ["vmops", "--help"]
