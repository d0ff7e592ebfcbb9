"""The page of a study: one HTML file that works offline and cannot tell its answers.

It holds pixels, opaque ids and nothing else of an image. Pixels lie in sheets, large PNG files of
many images each in the order in which they are shown, from which the page cuts one at a time onto a
canvas. So no image has a file, name, size, compression or metadata of its own, and there is no
element of the page that belongs to one image. (Padding files to equal length would still let their
true lengths be read.) All sheets have the same number of places and are written by one encoder.

The ids are hashes of the study's id and the position, which is all that they say.
"""

import base64
import hashlib
import io
import json
import math
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# A sheet's longest side, in pixels: what phones decode and draw without scaling it down.
_SIDE = 2048
_HERE = pathlib.Path(__file__).parent


def study_id(images: UInt8[np.ndarray, "n h w c"]) -> str:
    """16 hex digits: a hash of the images in their order, and of nothing that a page lacks."""
    digest = hashlib.sha256(json.dumps(["lt_jax turing 1", *images.shape]).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    return digest.hexdigest()[:16]


def image_ids(study: str, n: int) -> tuple[str, ...]:
    """Opaque names of n images, 12 hex digits each."""
    return tuple(hashlib.sha256(f"{study}/{i}".encode()).hexdigest()[:12] for i in range(n))


def sheets(images: UInt8[np.ndarray, "n h w c"]) -> tuple[tuple[int, int], list[bytes]]:
    """The images on sheets, row by row.

    Returns:
      (columns, rows) of a sheet, and the sheets as PNG files without metadata; places that are
      left over on the last one are black.
    """
    n, height, width, channels = images.shape
    most = max(_SIDE // width, 1), max(_SIDE // height, 1)
    columns = min(most[0], math.ceil(math.sqrt(n)))
    rows = min(most[1], math.ceil(n / columns))
    made = []
    for start in range(0, n, columns * rows):
        tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
        part = images[start : start + columns * rows]
        tiles[: len(part)] = part
        grid = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
        pixels = grid.reshape(rows * height, columns * width, channels)
        stream = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(
            stream, "PNG", compress_level=9
        )
        made.append(stream.getvalue())
    return (columns, rows), made


def render(
    images: UInt8[np.ndarray, "n h w c"], confidence: bool = False, scale: int = 0
) -> tuple[str, str]:
    """The page of these images, in this order.

    Args:
      images: uint8, 1 or 3 channels.
      confidence: also ask how sure the reader is, 1 to 5.
      scale: CSS pixels a side of an image's pixel, where the screen has room; 0: as many as fit.

    Returns:
      The study's id, and the HTML text.
    """
    import jinja2
    import markupsafe

    study = study_id(images)
    (columns, rows), files = sheets(images)
    content = {
        "id": study,
        "images": image_ids(study, len(images)),
        "width": images.shape[2],
        "height": images.shape[1],
        "columns": columns,
        "rows": rows,
        "confidence": confidence,
        "scale": scale,
        "sheets": [base64.b64encode(file).decode("ascii") for file in files],
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    return study, environment.get_template("page.html.jinja").render(
        n=len(images),
        confidence=confidence,
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        content=markupsafe.Markup(json.dumps(content, separators=(",", ":"))),
    )


def _hash(text: str) -> str:
    """Under which the content security policy lets an inline text pass."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
