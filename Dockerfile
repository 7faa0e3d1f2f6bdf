# The GPU path in a container; docs/howto.md has the two commands. The host needs an NVIDIA driver and the NVIDIA Container Toolkit.
# The CUDA libraries come with torch's wheels, which are built for CUDA 13; the base adds the runtime of CUDA 12, for xformers.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

# Refuses to start on a driver that is too old for torch; the base itself asks only for one of its own version.
ENV NVIDIA_REQUIRE_CUDA=cuda>=13.0

# Triton compiles a small launcher for each of its kernels while it runs, with gcc and Python's headers.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

# The libraries, several gigabytes, in a layer of their own: it is built again only when their versions change.
WORKDIR /opt/cot_unsloth
COPY requirements.txt constraints-gpu.txt ./
RUN grep -v '^-e' requirements.txt > libraries.txt \
    && pip install --no-cache-dir -r libraries.txt -c constraints-gpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY cot_unsloth cot_unsloth
RUN pip install --no-cache-dir -r requirements.txt -c constraints-gpu.txt

# Any user may run it (docker run --user), also one that the image does not know: all that is written goes to /cache and
# /app, and torch takes the user's name from USER where there is no entry for its number.
RUN mkdir -p /cache /app && chmod 1777 /cache /app
ENV HOME=/cache HF_HOME=/cache/huggingface USER=cot
COPY configs /app/configs
WORKDIR /app
USER 1000:1000
ENTRYPOINT ["python", "-m", "cot_unsloth.train"]
