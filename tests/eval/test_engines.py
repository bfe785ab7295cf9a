"""vLLM and transformers: the same greedy text in float32, bare and with adapters, and the same likelihoods."""

import importlib.util
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from eval.candidates import Target, check_base, read_adapter
from eval.engines import Pair, Prompt, Sampling, cpu_lora, open_engine
from eval.engines.transformers import TransformersEngine
from tests.eval.engine_fixtures import PROMPTS, save_adapter, tiny_llama
from utils.config import EvalConfig, ModelConfig
from utils.errors import UserError

GREEDY = Sampling(max_new_tokens=16)
CONTEXT = 96
PAIRS = {0: "The capital of France is|| Paris", 3: "The capital of France is|| a large city in England", 4: "A|| b"}
ENGINES = ("transformers", "vllm")


@pytest.fixture(scope="module")
def adapters(smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [read_adapter(save_adapter(smollm2, folder / f"r{rank}", rank, seed=rank)) for rank in (4, 12)]


@pytest.fixture(scope="module")
def answers(smollm2, adapters):
    """What each engine makes of everything the tests look at; engines are opened one after the other, once each."""
    found = {}
    for name in ENGINES:
        if name == "vllm":
            pytest.importorskip("vllm")
        with open_engine(smollm2, EvalConfig(engine=name, batch_size=3), "float32", adapters, CONTEXT) as engine:
            found[name] = _ask(engine, adapters)
    return found


def generate(engine, prompts, sampling, adapter=None):
    return dict(engine.run({number: Prompt(text, sampling, adapter) for number, text in prompts.items()}))


def _ask(engine, adapters):
    texts = {number: text.split("||") for number, text in PAIRS.items()}
    ids = {number: [tuple(engine.tokenizer(part)["input_ids"]) for part in parts] for number, parts in texts.items()}
    targets = [None, *adapters, None]  # the base again, after adapters have been on it
    sampled = Sampling(max_new_tokens=6, n=2, temperature=1.0)
    mixed = {
        100 * k + number: Prompt(text, GREEDY, adapter)
        for k, adapter in enumerate(targets[:3])
        for number, text in PROMPTS.items()
    }
    return {
        "greedy": [generate(engine, PROMPTS, GREEDY, adapter) for adapter in targets],
        "together": dict(engine.run(mixed)),
        "scores": [
            dict(engine.run({number: Pair(*parts, adapter) for number, parts in ids.items()})) for adapter in targets
        ],
        "stopped": generate(engine, PROMPTS, Sampling(24, stop=(".", "\n"))),
        "long": generate(engine, {0: "word " * 200, 1: "word " * 88}, GREEDY),
        "sampled": [generate(engine, PROMPTS, sampled) for _ in range(2)],
        "nearly greedy": generate(engine, PROMPTS, Sampling(16, temperature=1.0, top_p=1e-6)),
        "sampled alone": generate(engine, {7: PROMPTS[7]}, sampled),
        "none": dict(engine.run({})),
        "about": engine.describe(),
    }


def test_greedy_texts_and_likelihoods_of_the_engines_are_equal(answers):
    assert answers["vllm"]["greedy"] == answers["transformers"]["greedy"]
    for mine, other in zip(answers["vllm"]["scores"], answers["transformers"]["scores"], strict=True):
        assert mine.keys() == other.keys() == PAIRS.keys()
        for number in PAIRS:
            assert mine[number].logprob == pytest.approx(other[number].logprob, abs=2e-3)
            assert (mine[number].tokens, mine[number].greedy) == (other[number].tokens, other[number].greedy)


@pytest.mark.parametrize("engine", ENGINES)
def test_adapters_in_one_batch_make_the_texts_that_each_makes_alone(answers, engine):
    alone = answers[engine]["greedy"][:3]
    assert answers[engine]["together"] == {100 * k + number: alone[k][number] for k in range(3) for number in PROMPTS}


@pytest.mark.parametrize("engine", ENGINES)
def test_each_adapter_changes_texts_and_likelihoods_and_leaves_the_base_as_it_was(answers, engine):
    base, first, second, again = answers[engine]["greedy"]
    texts = [tuple(outputs[0].text for outputs in target.values()) for target in (base, first, second)]
    assert len(set(texts)) == 3
    assert base == again
    base, first, _, again = answers[engine]["scores"]
    assert abs(base[3].logprob - first[3].logprob) > 0.01
    assert base[3].logprob == pytest.approx(again[3].logprob, abs=1e-3)


def test_stop_strings_end_a_text_and_are_not_in_it(answers):
    assert answers["vllm"]["stopped"] == answers["transformers"]["stopped"]
    for (output,) in answers["vllm"]["stopped"].values():
        assert "." not in output.text and "\n" not in output.text
        assert output.finish == "stop" or output.tokens == 24


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_that_fills_the_context_is_counted_not_fatal(answers, engine):
    (without_room,), (little_room,) = answers[engine]["long"][0], answers[engine]["long"][1]
    assert (without_room.finish, without_room.text, without_room.tokens) == ("too_long", "", 0)
    assert little_room.finish == "length" and 0 < little_room.tokens < GREEDY.max_new_tokens


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_are_reproducible_and_differ_and_the_smallest_top_p_is_greedy(answers, engine):
    first, second = answers[engine]["sampled"]
    assert first == second
    assert all(len(outputs) == 2 for outputs in first.values())
    assert any(one.text != other.text for one, other in first.values())
    assert answers[engine]["nearly greedy"] == answers[engine]["greedy"][0]


def test_vllm_samples_do_not_depend_on_the_other_prompts(answers):
    assert answers["vllm"]["sampled"][0][7] == answers["vllm"]["sampled alone"][7]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_says_what_it_is_and_needs_no_request(answers, engine):
    assert answers[engine]["none"] == {}
    about = answers[engine]["about"]
    assert about["name"] == engine and about["dtype"] == "float32" and about["context"] == CONTEXT and about["version"]


@pytest.fixture
def wrapper():
    """vLLM's own class, from a fresh copy of its module: the engine tests have changed the one in use."""
    pytest.importorskip("vllm")
    spec = importlib.util.find_spec("vllm.lora.punica_wrapper.punica_cpu")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PunicaWrapperCPU(64, 8, "cpu")


def test_the_cpu_lora_product_equals_vllms_own(wrapper):
    torch.manual_seed(0)
    tokens, rank, slices = 11, 4, (6, 3, 3)
    indices = torch.tensor([0] * 5 + [1] * 4 + [0] * 2)
    wrapper._token_lora_indices[:tokens] = indices
    wrapper._sampler_indices[:tokens] = indices
    wrapper.indices_len[:] = [tokens] * 4
    wrapper._update_prefill_metadata(indices)
    wrapper.is_prefill = True
    x, y = torch.randn(tokens, 10), torch.randn(tokens, sum(slices))
    a = tuple(torch.randn(2, 1, rank, 10) for _ in slices)
    b = tuple(torch.randn(2, 1, width, rank) for width in slices)
    theirs, ours = y.clone(), y.clone()
    wrapper.add_lora_linear(theirs, x, a, b, 0.5, slices)
    cpu_lora.add_lora_linear(wrapper, ours, x, a, b, 0.5, slices)
    torch.testing.assert_close(ours, theirs)
    theirs, ours = y.clone(), y.clone()
    head = torch.randn(2, 1, sum(slices), rank)
    wrapper.add_lora_logits(theirs, x, a[0], head, 0.5)
    cpu_lora.add_lora_logits(wrapper, ours, x, a[0], head, 0.5)
    torch.testing.assert_close(ours, theirs)


def test_the_cpu_lora_product_leaves_tokens_without_an_adapter_alone(wrapper):
    wrapper._update_prefill_metadata(torch.tensor([-1, -1, 0, 0]))
    x, y, a, b = torch.ones(4, 5), torch.zeros(4, 6), torch.ones(1, 1, 2, 5), torch.ones(1, 1, 6, 2)
    cpu_lora.add_lora_linear(wrapper, y, x, (a,), (b,), 1.0, (6,))
    assert (y[:2] == 0).all() and (y[2:] == 10).all()


@pytest.mark.parametrize(
    ("rank", "settings", "why"),
    [(4, {}, None), (4, {"use_dora": True}, "DoRA"), (513, {}, "rank 513, above vLLM's limit of 512")],
)
def test_adapters_that_cannot_be_served_are_told_apart_and_merged(tmp_path, rank, settings, why):
    base = tiny_llama(tmp_path / "base")
    adapter = read_adapter(save_adapter(base, tmp_path / "adapter", rank, seed=0, **settings))
    target = Target("a", base, adapter, tmp_path)
    assert adapter.unservable == why
    assert (target.served, target.merged) == ((None, adapter) if why else (adapter, None))
    (adapter.path / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"adapter/adapter_model\.safetensors: damaged, or a pointer of Git LFS"):
        read_adapter(adapter.path)


def test_a_base_is_known_by_its_weights_or_else_by_its_name(tmp_path):
    mine, other = tiny_llama(tmp_path / "a" / "merged"), tiny_llama(tmp_path / "b" / "merged", seed=1)
    path = save_adapter(mine, tmp_path / "adapter", 2, seed=0)
    shutil.copytree(mine, tmp_path / "copy")
    for base in (mine, tmp_path / "copy"):
        check_base(read_adapter(path), ModelConfig(name=str(base)), base)
    with pytest.raises(UserError, match=r"a/merged, not model.name .*b/merged"):
        check_base(read_adapter(path), ModelConfig(name=str(other)), other)
    stated = (path / "adapter_config.json").read_text()
    (path / "adapter_config.json").write_text(stated.replace(str(mine), "meta-llama/Merged"))
    check_base(read_adapter(path), ModelConfig(name=str(mine)), mine)
    with pytest.raises(UserError, match="base is meta-llama/Merged, not model.name smollm2"):
        check_base(read_adapter(path), ModelConfig(name="smollm2"), tmp_path / "copy")


def test_a_models_own_penalties_change_no_text(smollm2, tmp_path):
    folder = tiny_llama(tmp_path, tokenizer=smollm2)

    def texts():
        with open_engine(folder, EvalConfig(engine="transformers"), "float32", [], CONTEXT) as engine:
            return generate(engine, PROMPTS, GREEDY)

    plain = texts()
    GenerationConfig(eos_token_id=2, repetition_penalty=5.0, no_repeat_ngram_size=1).save_pretrained(folder)
    assert texts() == plain
    GenerationConfig(eos_token_id=list(range(49152))).save_pretrained(folder)
    assert all(output.finish == "stop" for (output,) in texts().values())


def test_a_stop_string_around_a_special_token_ends_a_text(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    engine = SimpleNamespace(tokenizer=tokenizer)
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=0))
    ids = tokenizer("one ##<|im_start|># two")["input_ids"]
    output = TransformersEngine._output(engine, ids, Sampling(8, stop=("###",)), model)
    assert output.text == "one " and output.finish == "stop" and output.tokens == len(ids) - 1


def test_an_engine_that_cannot_start_says_what_to_set(monkeypatch, tmp_path):
    vllm = pytest.importorskip("vllm")
    folder = tiny_llama(tmp_path)

    def start(*_, **__):
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    monkeypatch.setattr(vllm, "LLM", start)
    with pytest.raises(UserError, match="vllm can't start.*gpu_memory_utilization.*tensor_parallel_size") as raised:
        open_engine(folder, EvalConfig(), "float32", [], CONTEXT)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_each_prompt_has_a_seed_of_its_own():
    sampling = Sampling(8, n=3, temperature=1.0)
    assert len({sampling.seed_of(f"prompt {number}") for number in range(500)}) == 500
    assert sampling.seed_of("a") == Sampling(99, temperature=0.5).seed_of("a") != Sampling(8, seed=1).seed_of("a")


def test_the_key_of_a_request_is_what_decides_its_text():
    greedy = Prompt("a", Sampling(8))
    assert greedy.key == Prompt("a", Sampling(8, seed=7, top_p=0.5)).key
    sampled = Sampling(8, temperature=1.0)
    others = [Sampling(9), Sampling(8, stop=("b",)), sampled, replace(sampled, seed=7)]
    assert len({greedy.key, *(Prompt("a", sampling).key for sampling in others)}) == 5
    assert Pair((1,), (2,)).key != Pair((1, 2), ()).key


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(UserError, match="not a PEFT adapter"):
        read_adapter(tmp_path)
