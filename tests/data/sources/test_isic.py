import os
import pathlib

import pytest

from lt_jax.config import DataConfig
from lt_jax.data import sources
from lt_jax.data.images import ImageError
from lt_jax.data.sources import SourceError

HAM = pathlib.Path(__file__).parents[3] / "../shared/data/ham10000"


def load(name, root):
    return sources.load(DataConfig(source=name, root=str(root)))


def test_ham10000_in_its_official_parts_with_lesions_and_masks(tmp_path, picture, mask):
    picture(tmp_path / "HAM10000_images_part_1" / "ISIC_1.jpg")
    picture(tmp_path / "HAM10000_images_part_2" / "ISIC_2.jpg")
    folder = "HAM10000_segmentations_lesion_tschandl"
    mask(tmp_path / folder / "ISIC_2_segmentation.png")
    table = tmp_path / "HAM10000_metadata"
    table.write_text(
        "lesion_id,image_id,dx,age,sex\nL1,ISIC_1,nv,80.0,male\n,ISIC_2,df,,\nL3,ISIC_3,mel,5,\n"
    )
    source = load("ham10000", tmp_path)
    one, two, three = source.records()
    assert source.classes[one.label] == "nv" and one.group == "L1" and one.masks == ()
    assert one.attributes == {"age": 80.0, "sex": "male"}
    assert two.attributes == {"age": None, "sex": None}
    assert two.group == "ISIC_2" and two.masks == (f"{folder}/ISIC_2_segmentation.png",)
    assert source.decode(one.image).shape == source.decode(two.image).shape == (12, 16, 3)
    assert source.decode(two.masks[0]).shape == (12, 16, 1)
    with pytest.raises(ImageError, match=r"ISIC_3\.jpg: no such file"):
        source.decode(three.image)

    table.write_text("lesion_id,image_id,dx\nL1,ISIC_1,nv\nL2,ISIC_2,zzz\n")
    with pytest.raises(SourceError, match=r"row 3 \(ISIC_2\): unknown label 'zzz'.*akiec"):
        source.records()
    table.write_text("lesion_id,image_id\nL1,ISIC_1\n")
    with pytest.raises(SourceError, match="no column 'dx'"):
        source.records()
    table.unlink()
    with pytest.raises(SourceError, match=r"no HAM10000_metadata\.csv"):
        source.records()
    with pytest.raises(SourceError, match="no images in ISIC2018_Task3_Training_Input"):
        load("isic2018", tmp_path).records()


def test_isic2018_with_and_without_lesion_groupings(tmp_path, picture, mask):
    inputs = "ISIC2018_Task3_Training_Input"
    # As unpacked: the archive's folder may hold another of its own name.
    picture(tmp_path / inputs / inputs / "ISIC_1.jpg")
    mask(tmp_path / "ISIC2018_Task1_Training_GroundTruth" / "ISIC_1_segmentation.png")
    truth = tmp_path / "ISIC2018_Task3_Training_GroundTruth"
    truth.mkdir()
    (truth / "ISIC2018_Task3_Training_GroundTruth.csv").write_text(
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_1,0.0,0.0,0.0,0.0,0.0,1.0,0.0\n"
    )
    source = load("isic2018", tmp_path)
    (record,) = source.records()
    assert source.classes[record.label] == "DF" and record.group == "ISIC_1" and record.masks
    assert source.decode(record.image).shape == (12, 16, 3)
    (tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(
        "image,lesion_id,diagnosis_confirm_type\nISIC_1,HAM_7,histo\n"
    )
    (record,) = source.records()
    assert record.group == "HAM_7" and record.attributes == {"diagnosis_confirm_type": "histo"}


def test_isic2019_needs_its_lesions(tmp_path, picture):
    for i in (1, 2):
        picture(tmp_path / "ISIC_2019_Training_Input" / f"ISIC_{i}_downsampled.jpg", i)
    truth = tmp_path / "ISIC_2019_Training_GroundTruth.csv"
    header = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
    truth.write_text(
        f"{header}ISIC_1_downsampled,0,0,0,0,0,0,0,1,0\nISIC_2_downsampled,1,0,0,0,0,0,0,0,0\n"
    )
    source = load("isic2019", tmp_path)
    with pytest.raises(SourceError, match=r"no ISIC_2019_Training_Metadata\.csv"):
        source.records()
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "ISIC_1_downsampled,55.0,head/neck,MSK4_1,female\nISIC_2_downsampled,,,,\n"
    )
    one, two = source.records()
    assert (one.group, two.group) == ("MSK4_1", "ISIC_2_downsampled")
    assert [source.classes[r.label] for r in (one, two)] == ["SCC", "MEL"]
    assert one.attributes["age_approx"] == 55.0 and two.attributes["age_approx"] is None
    for marks in ("0,0,0,0,0,0,0,0,0", "0,0,0,0,0,1,0,1,0", "0,0,0,0,0,0,0,0,1"):
        truth.write_text(f"{header}ISIC_1_downsampled,{marks}\n")
        with pytest.raises(SourceError, match=r"row 2 \(ISIC_1_downsampled\)"):
            source.records()


@pytest.mark.skipif(not HAM.is_dir(), reason="HAM10000 is not at hand")
def test_ham10000_itself(tmp_path):
    source = load("ham10000", HAM)
    records = source.records()
    assert len(records) == len(os.listdir(HAM / "HAM10000_images")) == 7955
    assert len({record.group for record in records}) == 5937
    counts = dict.fromkeys(source.classes, 0)
    for record in records:
        counts[source.classes[record.label]] += 1
    assert counts == {
        "nv": 5302, "mel": 914, "bkl": 864, "bcc": 423, "akiec": 260, "vasc": 112, "df": 80,
    }  # fmt: skip
    assert all(len(record.masks) == 1 for record in records)
    assert source.decode(records[0].image).shape == (150, 200, 3)
    assert source.decode(records[0].masks[0]).shape == (150, 200, 1)
