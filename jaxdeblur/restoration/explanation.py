"""Pictures of how a model came to a frame, all on one sheet."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_CAPTION_PX = 18
_GAP_PX = 4


def contact_sheet(pictures_u8: dict[str, np.ndarray]) -> np.ndarray:
    """Equal (H, W, 3) uint8 pictures in rows, each under its name, on white."""
    height, width, _ = next(iter(pictures_u8.values())).shape
    columns = math.ceil(math.sqrt(len(pictures_u8)))
    rows = math.ceil(len(pictures_u8) / columns)
    cell_height, cell_width = height + _CAPTION_PX + _GAP_PX, width + _GAP_PX
    sheet = Image.new("RGB", (columns * cell_width - _GAP_PX, rows * cell_height - _GAP_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, (name, picture) in enumerate(pictures_u8.items()):
        row, column = divmod(number, columns)
        left, top = column * cell_width, row * cell_height
        draw.text((left + 2, top + 2), name, fill="black", font=font)
        # After its caption, so that a caption wider than its picture is cut by the next one, not drawn over it.
        sheet.paste(Image.fromarray(picture), (left, top + _CAPTION_PX))
    return np.asarray(sheet)
