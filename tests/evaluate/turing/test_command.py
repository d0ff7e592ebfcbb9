"""`make` and `score` from the command line: what they print, write and refuse."""

import json

import pytest

from lt_jax.evaluate.statistics import intervals
from lt_jax.evaluate.turing.__main__ import main
from lt_jax.evaluate.turing.study import load_key
from tests.evaluate.turing.making import results, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of 30 images, made in a folder."""
    made = tmp_path_factory.mktemp("study")
    run(made / "run")
    main(["make", "--pool", str(made / "run"), "--n", "30", "--out", str(made / "turing.html")])
    return made


@pytest.fixture
def key(folder):
    return load_key(folder / "turing.key.json")


def fails(*arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return str(stop.value.code)


def answers(key, wrong=()):
    """The truth, but for these."""
    return [
        "synthetic" if item.synthetic != (i in wrong) else "real"
        for i, item in enumerate(key.items)
    ]


def write(path, values):
    path.write_text(json.dumps(values))
    return path


def test_make_says_what_is_shown_and_where_it_is(tmp_path, capsys):
    run(tmp_path / "run")
    main(["make", "--pool", str(tmp_path / "run"), "--n", "30", "--out", str(tmp_path / "a.html")])
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["naevus"] == ["20", "15", "6"]
    assert rows["dermatofibroma"][:3] == ["3", "9", "3"] and "fewer:" in rows["dermatofibroma"]
    assert "a.html" in out and "a.key.json (keep it from the readers" in out
    main(["make", "--pool", str(tmp_path / "run"), "--n", "10", "--split", "test", "--out",
          str(tmp_path / "b.html")])  # fmt: skip
    assert "test labels opened; logged in" in capsys.readouterr().out


def test_score_prints_tables_and_writes_json(folder, key, tmp_path, capsys):
    first = write(tmp_path / "1.json", results(key, answers(key, range(12)), name="Anna", years=7))
    second = write(
        tmp_path / "2.json", results(key, answers(key, range(4, 14)), range30(), name="Bo")
    )
    out = tmp_path / "score.json"
    arguments = ["--key", str(folder / "turing.key.json"), "--resamples", "500", "--json", str(out)]
    main(["score", str(first), str(second), *arguments])
    text = capsys.readouterr().out
    for told in ("Anna", "7 y", "30 of 30", "0.600 [", "Fleiss", "Distinguishability", "naevus"):
        assert told in text
    assert "0.633 ± 0.047 (n=2)" in text
    found = json.loads(out.read_text())
    assert found["key"]["study"] == key.study and found["version"] == 2
    assert [r["accuracy"]["successes"] for r in found["readers"]] == [18, 20]
    assert found["accuracy"]["n"] == 2 and found["readers"][0]["auc"] is None
    assert found["readers"][1]["auc"]["n"] == 30 and 0 < found["p"] <= 1
    low, high = intervals.wilson(24 / 30, 30)
    agreed = {"successes": 24, "n": 30, "share": 0.8, "ci95": [low, high]}
    assert found["pairs"][0]["agreement"] == agreed
    assert f"0.800 [{low:.3f}, {high:.3f}] (n=30)" in text


def range30():
    return [1 + i % 5 for i in range(30)]


def test_the_key_is_taken_from_where_it_is_written(folder, key, tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "1.json", results(key, answers(key)))
    monkeypatch.chdir(folder)
    main(["score", str(path), "--resamples", "200"])
    assert "reader 1" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert "no such key" in fails("score", path)


def test_what_cannot_be_scored_is_told_in_a_line(folder, key, tmp_path):
    keyed = ("--key", folder / "turing.key.json")
    good = results(key, answers(key), name="Anna")
    path = write(tmp_path / "good.json", good)
    again = write(tmp_path / "again.json", {**good, "answers": good["answers"][:4]})
    said = fails("score", path, again, *keyed)
    assert "good.json (30 answers) and" in said and "again.json (4 answers)" in said
    other = write(tmp_path / "other.json", {**good, "study": "f" * 16})
    assert f"answers to study {'f' * 16}, the key is of study {key.study}" in fails(
        "score", path, other, *keyed
    )
    cut = tmp_path / "cut.json"
    cut.write_text(path.read_text()[:500])
    assert "cut.json: no readable results" in fails("score", cut, *keyed)
    assert "nowhere.json: no such file" in fails("score", tmp_path / "nowhere.json", *keyed)
    assert "no results of a reader" in fails("score", folder / "turing.key.json", *keyed)
    assert "no key of a study" in fails("score", path, "--key", path)


ENTRY = {"answer": "real", "confidence": None, "milliseconds": 5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": []}, "holds no answers"),
        ({"answers": [{**ENTRY, "id": "nobody"}]}, "answer 1: image nobody is not in the study"),
        ({"answers": [{**ENTRY, "id": []}]}, "is not in the study"),
        ({"answers": ["real"]}, "takes an object with id and answer"),
        ({"answers": [{**ENTRY, "id": "0", "answer": "maybe"}]}, "takes real or synthetic"),
        ({"answers": [{**ENTRY, "id": "0", "answer": ["real"]}]}, "takes real or synthetic"),
        ({"answers": [{**ENTRY, "id": "0", "confidence": 6}]}, "confidence 6; takes 1 to 5"),
        ({"answers": [{**ENTRY, "id": "0", "confidence": True}]}, "takes 1 to 5"),
        ({"answers": [{**ENTRY, "id": "0"}] * 2}, "answered twice"),
        ({"answers": 3}, "no results of a reader"),
        ({"version": 2}, "version 2"),
        ({"study": "\x1b[31mred"}, "study [31mred,"),
    ],
)
def test_results_that_the_page_does_not_write_are_refused(folder, key, tmp_path, change, said):
    for entry in change.get("answers") or [] if isinstance(change.get("answers"), list) else []:
        if isinstance(entry, dict) and entry["id"] == "0":
            entry["id"] = key.items[0].id
    path = write(tmp_path / "x.json", {**results(key, answers(key)), **change})
    assert said in fails("score", path, "--key", folder / "turing.key.json")


def test_a_reader_is_called_what_fits_a_terminal(folder, key, tmp_path, capsys):
    values = results(key, answers(key), name="Dr. \x1b[2J\nÅsa " + "x" * 100, years="many")
    path = write(tmp_path / "x.json", values)
    main(["score", str(path), "--key", str(folder / "turing.key.json"), "--resamples", "200"])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "Dr. [2JÅsa xxx" in out and "x" * 60 not in out
