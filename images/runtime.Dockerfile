# docker build -f images/runtime.Dockerfile -t quire/runtime:0.2.0 .
# A digest pins the base: --build-arg BASE_IMAGE=python:3.11.13-slim-bookworm@sha256:...
ARG BASE_IMAGE=python:3.11.13-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Where there is no network: PIP_NO_INDEX=1 and PIP_FIND_LINKS=DIRECTORY take every wheel from a mounted directory.
ARG PIP_NO_INDEX PIP_FIND_LINKS
# The build backend too: pip up to 25.2 takes its version from the first, a newer one from the second.
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_BUILD_CONSTRAINT=/source/constraints.txt
WORKDIR /source
COPY . .
# Bytecode fits its source by the time in whole seconds, and buildah rounds times of files that it copies up, too.
RUN python3 -m venv /opt/quire \
 && /opt/quire/bin/pip install --no-cache-dir --disable-pip-version-check --no-compile '.[runtime,cli]' \
 && find /opt/quire -name '*.py' -exec touch -d 2020-01-01 {} + \
 && /opt/quire/bin/python -m compileall -q -j 0 /opt/quire/lib \
 && cp -r models /opt/quire/models

FROM ${BASE_IMAGE}
# Triton compiles its launchers with a C compiler when an engine starts on a GPU.
RUN command -v gcc \
 || (apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*)
RUN useradd --uid 65532 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin quire
# The official images have no bytecode of Python's own library, and user 65532 can write none.
RUN python3 -m compileall -q -x '/(site-packages|dist-packages|test|lib2to3)/' \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/quire /opt/quire
ENV PATH=/opt/quire/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["quire", "serve"]
