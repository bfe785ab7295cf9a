"""GLUE in its TSV forms, and the hub's rows in the same record form."""

import pytest

from dataset.glue import GLUE, glue_sources, load_glue
from dataset.sources import check_training
from utils.config import DataConfig
from utils.errors import UserError

ONE, TWO = {"sentence1": "A.", "sentence2": "B."}, {"question1": "A?", "question2": "B?"}
# The header (or none) and a line of each task's train.tsv, the columns of its texts on the hub, and its label.
TSV = {
    "cola": ("", "gj04\t1\t\tShe sleeps.\n", {"sentence": "She sleeps."}, 1),
    "sst2": ("sentence\tlabel\n", "a fine film\t1\n", {"sentence": "a fine film"}, 1),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n", "0\t1\t2\tA.\tB.\n", ONE, 0),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n", "0\t1\t2\tA?\tB?\t1\n", TWO, 1),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n",
        "0\tg\tf\t2012\t1\tn\tn\tA.\tB.\t3.8\n",
        ONE,
        3.8,
    ),
    "mnli": (
        "index\tsentence1\tsentence2\tgold_label\n", "0\tA.\tB.\tneutral\n", {"premise": "A.", "hypothesis": "B."}, 1
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n", "0\tA?\tB.\tnot_entailment\n", {"question": "A?", "sentence": "B."}, 1
    ),
    "rte": ("index\tsentence1\tsentence2\tlabel\n", '0\tThe "A.\tB.\tentailment\n', ONE | {"sentence1": 'The "A.'}, 0),
}  # fmt: skip


def write(tmp_path, task, text):
    folder = tmp_path / "glue" / GLUE[task].folder
    folder.mkdir(parents=True)
    for name in ("train", *(["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"])):
        (folder / f"{name}.tsv").write_text(text)


def as_record(texts, label):
    first, second = (*texts.values(), None)[:2]
    return {"text": first, "text_pair": second, "label": label}


def check(task, folder):
    check_training(DataConfig(train=task, dir=str(folder)), "SEQ_CLS")


@pytest.mark.parametrize("task", GLUE)
def test_every_tsv_form(tmp_path, task):
    header, line, texts, label = TSV[task]
    write(tmp_path, task, header + line)
    check(task, tmp_path)
    for split in ("train", "validation"):
        (record,) = load_glue(task, split, tmp_path)
        assert record == as_record(texts, label)


@pytest.mark.parametrize("task", GLUE)
def test_the_hubs_rows_give_the_same_form(task):
    hub, texts = glue_sources(task)[1], TSV[task][2]
    assert hub.convert({"label": 1, "idx": 0, **texts}) == as_record(texts, 1)
    assert hub.split == ("validation_matched" if task == "mnli" else "validation")


def test_the_mirror_has_rte_and_cola(mirror):
    assert [len(load_glue("rte", split, mirror)) for split in ("train", "validation")] == [2127, 277]
    assert len(load_glue("cola", "train", mirror)) == 7250
    for task in ("rte", "cola"):
        labels = {record["label"] for record in load_glue(task, "validation", mirror)}
        assert labels == set(range(GLUE[task].num_labels))


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="data.train: no GLUE task 'wnli'; allowed: cola, sst2"):
        load_glue("wnli", "train")
    write(tmp_path, "rte", TSV["rte"][0] + TSV["rte"][1] + "1\tone field\n")
    with pytest.raises(UserError, match="RTE/train.tsv:3: has 2 columns, not 4"):
        load_glue("rte", "train", tmp_path)
    write(tmp_path, "cola", "gj04\t2\t\tTwo.\n")
    with pytest.raises(UserError, match="CoLA/train.tsv:1: not a row of glue/CoLA/train.tsv"):
        check("cola", tmp_path)
    with pytest.raises(UserError, match="QQP/train.tsv: No such file"):
        check("qqp", tmp_path)
    write(tmp_path, "mnli", "".join(TSV["mnli"][:2]))
    (tmp_path / "glue/MNLI/dev_mismatched.tsv").unlink()
    with pytest.raises(UserError, match="MNLI/dev_mismatched.tsv: No such file"):
        check("mnli", tmp_path)
