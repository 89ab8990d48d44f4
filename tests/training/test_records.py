"""The CSV files of a run."""

import pytest

from jaxdeblur.training.records import Records


def test_rows_after_the_checkpoint_and_torn_rows_are_dropped(tmp_path):
    records = Records(tmp_path, 0)
    records.write("losses", [(1, {"a": 0.1, "b": 1.0}), (2, {"b": 2.0, "a": 1 / 3})])
    records.close()
    with (tmp_path / "losses.csv").open("a") as stream:
        stream.write("3,0.5,3.0\n4,0.")  # killed while writing
    records = Records(tmp_path, 2)
    records.write("losses", [(3, {"a": 0.25, "b": 9.0})])
    records.close()
    assert (tmp_path / "losses.csv").read_text().splitlines() == [
        "step,a,b",
        "1,0.1,1.0",
        f"2,{1 / 3!r},2.0",
        "3,0.25,9.0",
    ]


def test_other_columns_are_refused(tmp_path):
    records = Records(tmp_path, 0)
    records.write("losses", [(1, {"a": 0.1})])
    records.close()
    records = Records(tmp_path, 1)
    with pytest.raises(ValueError, match=r"has the columns \['a'\], the run now writes \['b'\]"):
        records.write("losses", [(2, {"b": 0.1})])
    records.close()


def test_an_empty_file_is_begun_anew(tmp_path):
    (tmp_path / "losses.csv").touch()
    records = Records(tmp_path, 5)
    records.write("losses", [(6, {"a": 1.5})])
    records.close()
    assert (tmp_path / "losses.csv").read_text().splitlines() == ["step,a", "6,1.5"]
