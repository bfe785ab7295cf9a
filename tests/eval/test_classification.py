"""GLUE's metrics, against scikit-learn and SciPy where they are defined, and where they are not."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from eval.candidates import Target
from eval.classification import score, score_classifiers
from utils.config import Config
from utils.errors import UserError
from utils.files import read_record
from utils.runs import held


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_the_usual_ones(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    gold, predicted = np.random.default_rng(seed).integers(0, 2, (2, 60)).tolist()
    usual = {"accuracy": "accuracy_score", "f1": "f1_score", "matthews_correlation": "matthews_corrcoef"}
    for metric, name in usual.items():
        assert score(metric, gold, predicted) == pytest.approx(getattr(metrics, name)(gold, predicted))


def test_correlations_of_scores():
    gold, predicted = [0.0, 1.0, 2.5, 2.5, 5.0], [0.3, 0.2, 2.0, 9.0, 4.0]
    assert score("pearson", gold, predicted) == pytest.approx(pearsonr(gold, predicted).statistic)
    assert score("spearman", gold, predicted) == pytest.approx(spearmanr(gold, predicted).statistic)


def test_what_is_scored_anew_is_reported_to_trackers(tmp_path, monkeypatch):
    reported = []
    problems = [{"text": "a", "text_pair": "b", "label": label} for label in (0, 1)]
    monkeypatch.setattr("eval.classification.load_glue", lambda *_: problems)
    monkeypatch.setattr("eval.classification._predict", lambda *_: [1, 1])
    monkeypatch.setattr("eval.candidates.model_fingerprint", lambda _: "f")
    monkeypatch.setattr("eval.classification.track", lambda _, target, results: reported.append(results))
    config = Config(output_dir=str(tmp_path), data={"train": "rte"}, model={"task_type": "SEQ_CLS"})
    targets = [Target("mine", tmp_path, None, tmp_path / "mine" / "eval")]
    for _ in range(2):
        score_classifiers(config, targets)
    assert [found["rte"]["accuracy"] for found in reported] == [0.5]
    with held(tmp_path / "mine"), pytest.raises(UserError, match="is at work here"):
        score_classifiers(config, targets, force=True)
    assert read_record(tmp_path / "mine" / "eval" / "rte.json")["n"] == 2, "what another command holds stays"
    monkeypatch.setattr("eval.classification._predict", lambda *_: [1])
    config.eval.limit = 1
    score_classifiers(config, targets)
    assert [found["rte"]["n"] for found in reported] == [2, 1]


@pytest.mark.parametrize("metric", ["f1", "matthews_correlation", "pearson", "spearman"])
def test_constant_predictions_score_nothing(metric):
    assert score(metric, [0, 1, 0, 1], [0, 0, 0, 0]) == 0.0
    assert score(metric, [0.1, 1.0, 0.4], [0.1, 0.1, 0.1]) == 0.0
