"""Finds coloured shapes in an image by their pixels."""

from PIL import Image, ImageChops

from vllm_annotate.proof.drawings import COLOURS, Form, Shape

TOLERANCE = 40  # per channel: JPEG and resizing shift colours; no two of ours are this close
SMALLEST_PIXELS = 60
BLOCK = 4  # pixels
MARGIN = 8  # pixels: the tip of a triangle beyond its first whole block


def find_shapes(image: Image.Image) -> list[Shape]:
    """The largest area of each known colour, left to right."""
    rgb = image.convert("RGB")
    shapes = [shape for colour in COLOURS if (shape := _shape_of(rgb, colour)) is not None]
    return sorted(shapes, key=lambda shape: shape.box)


def _shape_of(rgb: Image.Image, colour: str) -> Shape | None:
    difference = ImageChops.difference(rgb, Image.new("RGB", rgb.size, COLOURS[colour]))
    red, green, blue = difference.split()
    distance = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    mask = distance.point(lambda value: 255 if value <= TOLERANCE else 0)
    # Blends at the edge of two other colours can fall within the tolerance: thin lines, never whole blocks.
    blocks = mask.reduce(BLOCK).point(lambda value: 255 if value == 255 else 0)
    core = blocks.getbbox()
    if core is None:
        return None
    # Corners and tips contain no whole block; the mask around the core has them.
    left, top = max(0, core[0] * BLOCK - MARGIN), max(0, core[1] * BLOCK - MARGIN)
    right, bottom = min(rgb.width, core[2] * BLOCK + MARGIN), min(rgb.height, core[3] * BLOCK + MARGIN)
    inner = mask.crop((left, top, right, bottom)).getbbox() or (0, 0, 0, 0)
    box = (left + inner[0], top + inner[1], left + inner[2], top + inner[3])
    filled = mask.crop(box).histogram()[255]
    if filled < SMALLEST_PIXELS:
        return None
    return Shape(colour, _form(filled / ((box[2] - box[0]) * (box[3] - box[1]))), box)


def _form(share: float) -> Form:
    """The form that fills this share of its box: a square all of it, a circle π/4, a triangle half."""
    if share > 0.9:
        return "square"
    return "circle" if share > 0.65 else "triangle"
