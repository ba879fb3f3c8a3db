# docker build -f images/runtime.Dockerfile -t quire/runtime:0.1.0 .
ARG BASE_IMAGE=python:3.11.13-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api api
COPY text text
COPY runtime runtime
COPY kernels kernels
COPY gateway gateway
COPY operator operator
COPY cli cli
RUN python -m venv /opt/quire \
 && /opt/quire/bin/pip install --no-cache-dir --disable-pip-version-check --no-compile -c constraints.txt '.[runtime,cli]'

FROM ${BASE_IMAGE}
COPY --from=build /opt/quire /opt/quire
ENV PATH=/opt/quire/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["quire", "serve"]
