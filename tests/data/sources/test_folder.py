import pytest

from lt_jax.config import DataConfig
from lt_jax.data import sources
from lt_jax.data.sources import SourceError


def load(root, csv=""):
    return sources.load(DataConfig(source="folder", root=str(root), csv=csv))


def test_class_folders(tmp_path, picture):
    for path in ("10/a.png", "2/b.jpg", "2/deeper/c.PNG", ".cache/d.png"):
        picture(tmp_path / path)
    (tmp_path / "2" / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    source = load(tmp_path)
    assert source.classes == ("2", "10")  # by value, since all are numbers
    assert [(r.id, r.label) for r in source.records()] == [
        ("2/b.jpg", 0), ("2/deeper/c.PNG", 0), ("10/a.png", 1),
    ]  # fmt: skip
    assert source.decode("10/a.png").shape == (12, 16, 3)
    with pytest.raises(SourceError, match="no folder with images"):
        load(tmp_path / "empty")


def test_csv_with_every_column(tmp_path):
    (tmp_path / "t.csv").write_text(
        "image,label,patient_id,lesion_id,mask,boxes,device,age\n"
        "a.png,df,p1,l1,m1.png; m2.png,0 0 .5 .5;0.5 0.5 1 1,GE,61\n"
        "b.png,bkl,p1,l2,,,,\n"
        "c.png,df,,l3,,,,70\n"
    )
    a, b, c = load(tmp_path, "t.csv").records()
    assert load(tmp_path, "t.csv").classes == ("bkl", "df") and (a.label, b.label) == (1, 0)
    assert (a.group, b.group, c.group) == ("p1", "p1", "c.png")
    assert a.masks == ("m1.png", "m2.png") and b.masks == ()
    assert a.boxes == ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)) and a.device == "GE"
    assert a.attributes == {"lesion_id": "l1", "age": 61.0} and b.attributes["age"] is None
    assert b.device is None and a.id == "a.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,class\na,b\n", "no column 'label'"),
        ("image,label\na,x\nb,\n", "row 3: column 'label' is empty"),
        ("image,label,boxes\na,x,0 0 1\n", "row 2: got box '0 0 1'"),
        ("image,label,boxes\na,x,0 0 one 1\n", "row 2: got box '0 0 one 1'"),
    ],
)
def test_bad_csv_files_name_row_and_column(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(SourceError, match=message):
        load(tmp_path, "t.csv")


def test_a_missing_csv_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"none\.csv: no such file"):
        load(tmp_path, "none.csv")
