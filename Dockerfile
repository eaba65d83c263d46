# SPDX-License-Identifier: Apache-2.0
# An image with nothing but the program and the libraries that it loads:
#
#     docker build -t moepack .
#     docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/data" moepack inspect checkpoint
FROM debian:12 AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
    gcc libc6-dev libjansson-dev libxxhash-dev libyaml-dev libzstd-dev make pkg-config
COPY Makefile /moepack/
COPY cmd /moepack/cmd/
COPY include /moepack/include/
COPY lib /moepack/lib/
WORKDIR /moepack
RUN make -j"$(nproc)" build/release/moepack
# /image/lib/... as the loader finds it; "=> PATH" are libraries, and a bare PATH is the loader.
RUN install -D -s build/release/moepack /image/usr/bin/moepack && \
    ldd build/release/moepack | sed -n 's|.* => \(/.*\) (.*|\1|p; s|^[[:blank:]]*\(/.*\) (.*|\1|p' | \
        xargs cp -L --parents -t /image

FROM scratch
COPY --from=build /image /
WORKDIR /data
ENTRYPOINT ["/usr/bin/moepack"]
