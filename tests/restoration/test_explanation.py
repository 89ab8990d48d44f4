import flax.linen as nn
import numpy as np
import pytest

from jaxdeblur import restore
from jaxdeblur.restoration.explanation import contact_sheet


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (9, 3, 3)])
def test_every_picture_is_on_the_sheet_under_its_name(count, rows, columns):
    pictures = {f"picture {n}": np.full((30, 60, 3), 20 * n + 1, np.uint8) for n in range(count)}
    sheet = contact_sheet(pictures)
    assert sheet.shape == (rows * 52 - 4, columns * 64 - 4, 3)
    for n in range(count):
        row, column = divmod(n, columns)
        cell = sheet[52 * row : 52 * row + 48, 64 * column : 64 * column + 60]
        np.testing.assert_array_equal(cell[18:], 20 * n + 1)
        assert cell[:18].min() < 128  # the name, black on white


def test_a_model_without_pictures_says_so():
    class Silent(nn.Module):
        def step(self):
            pass

    with pytest.raises(ValueError, match="Silent has no pictures to explain its frames with"):
        restore(np.zeros((1, 4, 4, 3), np.uint8), Silent(), {}, explain=print)
