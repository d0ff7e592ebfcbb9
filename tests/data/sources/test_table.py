import pytest

from lt_jax.data.sources import SourceError, table


def write(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_rows_are_read_with_marks_quotes_and_blanks(tmp_path):
    path = write(tmp_path, b'\xef\xbb\xbfimage, label\r\n"a,b.png", x \r\n\r\nc.png,y\r\n')
    assert table.read_csv(path, ("image", "label")) == [
        {"image": "a,b.png", "label": "x"}, {"image": "c.png", "label": "y"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,label\n\xff\xfe\x00,x\n", r"t\.csv: cannot be read as comma-separated UTF-8"),
        ('image,label\n"a.png,x\n', r"t\.csv: cannot be read as comma-separated UTF-8"),
        ("image,class\na,b\n", "no column 'label'; the header has image, class"),
        ("", "no column 'image'; the header has nothing"),
        ("image,label\n", "a header and no rows"),
        ("image,label\na,b\na\n", "line 3: 1 fields where the header has 2"),
    ],
)
def test_bad_files_are_named_with_line_and_column(tmp_path, content, message):
    with pytest.raises(SourceError, match=message):
        table.read_csv(write(tmp_path, content), ("image", "label"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"none\.csv: no such file"):
        table.read_csv(tmp_path / "none.csv", ())


def test_attributes_have_one_type_a_column():
    rows = [{"age": "80.0", "id": "007", "site": ""}, {"age": "", "id": "x", "site": ""}]
    assert table.attributes(rows, ("age", "id", "site")) == [
        {"age": 80.0, "id": "007", "site": None}, {"age": None, "id": "x", "site": None},
    ]  # fmt: skip
    assert table.attributes([{"age": "nan"}], ("age",)) == [{"age": "nan"}]


def test_one_hot_rows():
    assert table.one_hot_label({"a": "0.0", "b": "1.0"}, ("a", "b"), "t") == 1
    for marks in ({"a": "0", "b": "0"}, {"a": "1", "b": "1"}, {"a": "1", "b": ""}):
        with pytest.raises(SourceError, match=r"t\.csv, row 2: takes a 1 for one of a, b"):
            table.one_hot_label(marks, ("a", "b"), "t.csv, row 2")
