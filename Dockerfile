# A server of one model: docker run -p 8000:8000 -v /path/to/model:/model cee-gym --allowed-host NAME
FROM python:3.12-slim

# Without a GPU; leave the index out for the build with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.8,<3" \
    && pip install --no-cache-dir "/src[serve]" \
    && useradd --create-home --uid 1000 server

USER 1000
WORKDIR /home/server
ENV HF_HUB_OFFLINE=1
EXPOSE 8000
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["cee-gym", "serve", "/model", "--host", "0.0.0.0"]
