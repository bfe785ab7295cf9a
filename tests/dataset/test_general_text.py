"""The text that forgetting is measured on: named, whole, long enough; never another than the one asked for."""

import pytest

from dataset.general_text import WINDOWS, GeneralText, check_general_text, load_general_text
from utils.errors import UserError


class Letters:
    """A tokenizer of one token per letter."""

    def __call__(self, text, **_):
        return {"input_ids": list(range(len(text)))}


def test_windows_are_spread_over_the_text_and_do_not_overlap():
    for length in (256 * 128, 100_000):
        windows = GeneralText("a", "x" * length).windows(Letters())
        starts = [window[0] for window in windows]
        assert len(windows) == WINDOWS == 256 and {len(window) for window in windows} == {128}
        assert starts[0] == 0 and windows[-1][-1] == length - 1
        assert min(after - before for before, after in zip(starts, starts[1:], strict=False)) >= 128


def test_the_manual_is_on_every_machine():
    check_general_text("python-manual")
    text = load_general_text("python-manual")
    assert text.name == "python-manual" and len(text.fingerprint) == 16 and len(text.text) > 300_000
    assert text.fingerprint == load_general_text("python-manual").fingerprint


def test_a_file_is_a_text_of_its_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("word " * 20_000, encoding="utf-8")
    check_general_text(str(path))
    text = load_general_text(str(path))
    assert text.name == str(path) and text.fingerprint != GeneralText(text.name, text.text + "x").fingerprint


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("wikitext-3", None, "data.general_text: no text 'wikitext-3'; allowed: wikitext-2, python-manual, the path"),
        ("missing.txt", None, "data.general_text: .*missing.txt: can't be read .No such file"),
        ("binary.txt", b"\xff\xfe\x00", "data.general_text: .*binary.txt: can't be read .*utf-8"),
        ("short.txt", b"a few words", "short.txt has 11 characters; 256 windows of 128 tokens need 32,768 tokens"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        check_general_text(str(path) if name.endswith(".txt") else name)
    assert "\n" not in str(error.value)


def test_a_text_of_too_few_tokens_is_refused():
    with pytest.raises(UserError, match="a has 32,767 tokens; 256 windows"):
        GeneralText("a", "x" * (256 * 128 - 1)).windows(Letters())


def test_without_the_hub_no_other_text_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said = "data.general_text: wikitext-2 comes from Salesforce/wikitext on the hub, .*set data.general_text to py"
    for act in (check_general_text, load_general_text):
        with pytest.raises(UserError, match=said):
            act("wikitext-2")
