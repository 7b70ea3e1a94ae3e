"""Users' classifiers give labels: ONNX models as their logits say, GlotLID by one word."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove")

from datatrove.data import Document

from data_prep import classifiers, language_id
from data_prep.classifiers import classifier, model_files
from data_prep.clean import label, plan
from data_prep.clean.label import labelling
from data_prep.clean.settings import CleaningInput, CleanSettings
from data_prep.language_id import ModelIdentifier
from data_prep.languages import code_of
from megatron_qwen3.config import ConfigError
from tests.onnx_files import WORDS, write_classifier

LABELS = {"0": "high", "1": "low"}


class Stub:
    """A classifier with one answer."""

    def __init__(self, outputs: dict[str, float]) -> None:
        self._outputs = outputs

    def best(self, text: str) -> tuple[str, float]:
        return max(self._outputs.items(), key=lambda item: item[1])

    def outputs(self, text: str) -> dict[str, float]:
        return self._outputs


def _labelled(settings: CleanSettings, text: str, **labels: Any) -> dict[str, Any]:
    names = ("source", "language", "domain", "quality", "education", "file")
    data: Any = [Document(text, "1", metadata={**dict.fromkeys(names), **labels})]
    for step in labelling(settings):
        data = step.run(data)
    (document,) = data
    return dict(document.metadata)


def test_an_onnx_model_gives_the_probabilities_of_its_logits(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_classifier(tmp_path / "two", [0.5, -0.5], LABELS)
    mean = (WORDS["good"] + WORDS["bad"]) / 2
    share = 1 / (1 + math.exp(-mean))  # of logits that differ by the mean
    for name in (folder, folder / "model.onnx"):
        outputs = pickle.loads(pickle.dumps(classifier(name))).outputs("good bad")
        assert outputs == pytest.approx({"high": share, "low": 1 - share}, abs=1e-6)
    assert classifier(folder).best("good bad")[0] == "high"
    kind = {"problem_type": "multi_label_classification"}
    many = classifier(write_classifier(tmp_path / "many", [0.5, -0.5], LABELS, **kind))
    apart = {"high": 1 / (1 + math.exp(-mean / 2)), "low": 1 / (1 + math.exp(mean / 2))}
    assert many.outputs("good bad") == pytest.approx(apart, abs=1e-6)


def test_an_onnx_model_reads_as_many_tokens_as_it_has_positions(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_classifier(tmp_path / "one", [1.0], max_position_embeddings=2)
    (value,) = classifier(folder).outputs("good good bad bad bad").values()
    assert value == WORDS["good"]


def test_one_option_labels_by_an_onnx_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_classifier(tmp_path / "marks", [0.5])  # 3 for "good", 1 for "bad"
    settings = CleanSettings(
        (CleaningInput("here", str(tmp_path)),),
        "out",
        filters=False,
        steps=("scores",),
        models={"education": str(folder)},
        top_scores={"education": 5.0},
    )
    settings.validate()
    assert _labelled(settings, "good")["education"] == 0.6
    assert _labelled(settings, "good", education=0.1)["education"] == 0.1  # its own stands
    states = plan.state_of_files(settings, [])
    assert {Path(name).name for name in states} == {"model.onnx", "tokenizer.json", "config.json"}


@pytest.mark.parametrize(
    ("outputs", "top", "expected"),
    [
        ({"high": 0.7, "low": 0.3}, None, 0.7),
        ({"0": 0.5, "5": 0.5}, None, 0.5),
        ({"LABEL_0": 7.0}, 5.0, 1.0),
        ({"LABEL_0": -1.0}, 5.0, 0.0),
        ({"LABEL_0": 2.0}, 4.0, 0.5),
    ],
)
def test_outputs_become_a_number_from_0_to_1(
    outputs: dict[str, float], top: float | None, expected: float
) -> None:
    assert label._score(outputs, "education", top) == expected


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"LABEL_0": 2.0}, r"gives one number: say in the recipe .*top_scores. education = 5"),
        ({"LABEL_0": 0.2, "LABEL_1": 0.8}, "has the labels LABEL_0, LABEL_1; one of them must be"),
    ],
)
def test_outputs_that_say_nothing_are_refused(outputs: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        label._score(outputs, "education", None)


def test_models_that_are_not_there_or_broken_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no model.onnx or onnx/model.onnx"):
        model_files(tmp_path / "empty")
    (tmp_path / "alone.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"alone.onnx needs tokenizer.json beside it"):
        model_files(tmp_path / "alone.onnx")
    pytest.importorskip("onnxruntime")
    folder = write_classifier(tmp_path / "other", [1.0], input_name="pixels")
    with pytest.raises(ConfigError, match="asks for pixels; valid: input_ids"):
        classifier(folder).outputs("good")
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="is not an ONNX model"):
        classifier(folder).outputs("good")


def test_an_export_that_keeps_its_model_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "export", [1.0])
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx/model.onnx")
    names = [file.relative_to(folder).as_posix() for file in model_files(folder)]
    assert names == ["onnx/model.onnx", "tokenizer.json", "config.json"]


def test_glotlid_is_found_by_its_name_or_the_command_that_fetches_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    kept = tmp_path / "model.bin"
    kept.write_bytes(b"")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file: str(kept))
    assert model_files("glotlid") == [kept]
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file: None)
    with pytest.raises(ConfigError, match="hf download cis-lmu/glotlid model.bin"):
        model_files("glotlid")
    settings = CleanSettings(
        (CleaningInput("x", str(tmp_path)),), "out", models={"language": "glotlid"}
    )
    with pytest.raises(ConfigError, match="the language model GlotLID's file .* hf download"):
        settings.validate()


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("cmn_Hani", "这条河从山里流出来", "zho_Hans"),
        ("cmn_Hani", "這條河從山裡流出來", "zho_Hant"),
        ("yue_Hani", "佢哋噚日喺條河度游水", "yue_Hant"),
        ("fas_Arab", "رودخانه", "pes_Arab"),
        ("eng_Latn", "The river", "eng_Latn"),
        ("ang_Latn", "Seo ea", "und"),
        ("zxx_Zzzz", "+)J", "und"),
    ],
)
def test_labels_of_glotlid_are_the_codes_of_the_119(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, code: str
) -> None:
    for share, expected in ((0.9, code), (0.3, "und")):
        monkeypatch.setattr(language_id, "classifier", lambda _, s=share: Stub({name: s}))
        assert ModelIdentifier("glotlid")(text) == expected


def test_labels_that_glotlid_merged_or_split_have_a_code() -> None:
    assert code_of("ajp_Arab") == "apc_Arab" and code_of("srp_Latn") == "hrv_Latn"
    assert classifiers.GLOTLID == "glotlid"
