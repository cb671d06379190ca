# The image of the sidecar: built and tested with the same package list and presets as a checkout.
FROM debian:12 AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make git ca-certificates
WORKDIR /src
COPY deploy/apt-packages.txt deploy/install-packages.sh deploy/
RUN deploy/install-packages.sh
COPY . .
RUN cmake --preset cpu -DBUILD_TESTING=OFF && cmake --build --preset cpu --target kvernd kvern \
 && strip build/cpu/kvernd build/cpu/kvern

# docker build --target test: runs every test in the build image.
FROM build AS test
RUN make test LINT=off

# docker build --target cuda: the same image with the cuda backend. The driver's libcuda comes from the
# container runtime; nothing of the toolkit is in the image (the CUDA runtime is linked statically).
FROM build AS build-cuda
RUN apt-get install -y -qq --no-install-recommends python3-venv && python3 -m venv /opt/cuda-wheels \
 && /opt/cuda-wheels/bin/pip install -q nvidia-cuda-nvcc==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-crt==13.0.* \
      nvidia-nvvm==13.0.* nvidia-cuda-cccl==13.0.*
# The wheels keep the libraries in lib; nvcc looks for them in lib64.
RUN export CUDA_HOME=$(dirname $(dirname $(find /opt/cuda-wheels -name nvcc -type f))) \
 && ln -s lib $CUDA_HOME/lib64 \
 && cmake --preset cuda -DBUILD_TESTING=OFF && cmake --build --preset cuda --target kvernd kvern \
 && strip build/cuda/kvernd build/cuda/kvern

FROM debian:12-slim AS runtime
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends tini libgrpc++1.51 libprotobuf32 libhwy1 \
      libprometheus-cpp-pull1.0 libprometheus-cpp-core1.0 libspdlog1.10 libyaml-cpp0.7 libssl3 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 65532 kvern && useradd --uid 65532 --gid kvern --no-create-home kvern \
 && install -d -o kvern -g kvern -m 0750 /run/kvern
COPY --from=build /src/build/cpu/kvernd /src/build/cpu/kvern /usr/local/bin/
USER kvern
ENV KVERN_SERVER=unix:/run/kvern/kvern.sock
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["kvern", "ping"]
ENTRYPOINT ["tini", "--", "kvernd"]
CMD ["--listen", "unix:/run/kvern/kvern.sock", "--metrics-listen", "0.0.0.0:9464", "--log-format", "json"]

FROM runtime AS cuda
COPY --from=build-cuda /src/build/cuda/kvernd /src/build/cuda/kvern /usr/local/bin/
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute

# What `docker build .` makes.
FROM runtime
