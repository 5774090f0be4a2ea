"""Photographs and drawings that other programs wrote: those that scikit-image and scikit-learn ship."""

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.prepare import prepare
from vllm_annotate.recipe.image_budget import ImageBudget

pytestmark = pytest.mark.prove  # downloads 25 MB
BUDGET = ImageBudget(min_pixels=128 * 784, max_pixels=1280 * 784)
SUFFIXES = (".png", ".jpg", ".tif", ".gif")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of some thirty images, out of the wheels, without installing these or what they need."""
    folder = tmp_path_factory.mktemp("photographs")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", folder, "scikit-image", "scikit-learn"], check=True, cwd=folder)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(SUFFIXES) and ("skimage/data/" in name or "sklearn/datasets/images/" in name):
                    with archive.open(name) as source, (folder / Path(name).name).open("wb") as target:
                        shutil.copyfileobj(source, target)
        wheel.unlink()
    return folder


def test_each_is_sent_upright_and_looks_as_it_did(photographs: Path) -> None:
    names = sorted(path.name for path in photographs.iterdir())
    assert len(names) >= 25
    assert {Path(name).suffix for name in names} == set(SUFFIXES)
    with pytest.raises(ImageFailure, match="not an image that Pillow supports"):  # a TIFF with planes of three pages
        prepare(photographs, "multipage_rgb.tif", BUDGET)
    for name in (name for name in names if name != "multipage_rgb.tif"):
        prepared = prepare(photographs, name, BUDGET)
        with Image.open(photographs / name) as image, Image.open(io.BytesIO(prepared.content)) as sent:
            shown = ImageOps.exif_transpose(image)
            assert (prepared.width, prepared.height) == shown.size, name
            assert (prepared.sent_width, prepared.sent_height) == sent.size, name
            on_white = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown.convert("RGBA"))
            small = (
                min(64, shown.width // 3),
                min(64, shown.height // 3),
            )  # blurs what changes
            difference = ImageChops.difference(on_white.convert("RGB").resize(small, Image.Resampling.BOX),
                                               sent.convert("RGB").resize(small, Image.Resampling.BOX))  # fmt: skip
            assert max(ImageStat.Stat(difference).mean) < 8, name
