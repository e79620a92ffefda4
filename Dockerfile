# SPDX-License-Identifier: Apache-2.0
# One image per role, each with only what that role runs, as a user without rights.
#   docker build --target compiler -t dovetail/compiler .        (worker | runtime | edge | cache | cli)
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS source
WORKDIR /src
RUN python3 -m venv /opt/dovetail
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY examples/digits examples/digits
COPY tests/fingerprints tests/fingerprints
COPY dovetail dovetail
COPY compiler_svc compiler_svc
COPY runtime_svc runtime_svc
COPY edge_agent edge_agent
COPY cache_node cache_node

FROM source AS build-compiler
RUN /opt/dovetail/bin/pip install --quiet --constraint constraints.txt '.[compiler]'

FROM source AS build-runtime
RUN /opt/dovetail/bin/pip install --quiet --constraint constraints.txt '.[runtime,openvino]'

FROM source AS build-edge
RUN /opt/dovetail/bin/pip install --quiet --constraint constraints.txt '.[edge]'

FROM source AS build-cache
RUN /opt/dovetail/bin/pip install --quiet --constraint constraints.txt .

FROM source AS build-cli
RUN /opt/dovetail/bin/pip install --quiet --constraint constraints.txt '.[cli]'

FROM ${PYTHON_IMAGE} AS base
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin dovetail \
 && install -d -o dovetail -g dovetail -m 0750 /data \
 && install -d -o dovetail -g dovetail -m 0700 /signing \
 && install -d -o dovetail -g dovetail -m 0755 /trusted
ENV PATH=/opt/dovetail/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/data
WORKDIR /data
VOLUME /data
USER dovetail

FROM base AS compiler
COPY --from=build-compiler /opt/dovetail /opt/dovetail
EXPOSE 7001
ENTRYPOINT ["python", "-m", "compiler_svc"]

FROM base AS worker
COPY --from=build-compiler /opt/dovetail /opt/dovetail
ENTRYPOINT ["python", "-m", "compiler_svc.worker"]

FROM base AS runtime
COPY --from=build-runtime /opt/dovetail /opt/dovetail
EXPOSE 8001 8002
ENTRYPOINT ["python", "-m", "runtime_svc"]

FROM base AS edge
COPY --from=build-edge /opt/dovetail /opt/dovetail
EXPOSE 8001
ENTRYPOINT ["python", "-m", "edge_agent"]

FROM base AS cache
COPY --from=build-cache /opt/dovetail /opt/dovetail
EXPOSE 7003
ENTRYPOINT ["python", "-m", "cache_node"]

FROM base AS cli
COPY --from=build-cli /opt/dovetail /opt/dovetail
ENTRYPOINT ["dovetail"]
