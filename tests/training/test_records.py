"""The CSV files of a run."""

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


def test_columns_come_as_they_are_needed_and_may_stay_empty(tmp_path):
    records = Records(tmp_path, 0)
    records.write("losses", [(1, {"a": 0.5}), (2, {"b": 1.5, "a": 2.5})])
    records.write("losses", [(3, {"c": 3.5})])
    records.close()
    records = Records(tmp_path, 2)  # the third row was written after the checkpoint
    records.write("losses", [(3, {"d": 4.5, "b": 5.5})])
    records.write("losses", [(4, {"a": 6.5})])
    records.close()
    lines = ["step,a,b,c,d", "1,0.5,,,", "2,2.5,1.5,,", "3,,5.5,,4.5", "4,6.5,,,"]
    assert (tmp_path / "losses.csv").read_text().splitlines() == lines


def test_an_empty_file_is_begun_anew(tmp_path):
    (tmp_path / "losses.csv").touch()
    records = Records(tmp_path, 5)
    records.write("losses", [(6, {"a": 1.5})])
    records.close()
    assert (tmp_path / "losses.csv").read_text().splitlines() == ["step,a", "6,1.5"]
