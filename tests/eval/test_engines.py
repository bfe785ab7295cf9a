"""vLLM and transformers: the same greedy text in float32, bare and with adapters, and the same likelihoods."""

import importlib.util
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from eval.candidates import Target, check_base, read_adapter
from eval.engines import Pair, Prompt, Sampling, open_engine
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
    mixed = {(k, number): (adapter, number) for k, adapter in enumerate(targets[:3]) for number in PROMPTS}
    asked = dict(enumerate(mixed.values()))
    together = dict(engine.run({k: Prompt(PROMPTS[number], GREEDY, one) for k, (one, number) in asked.items()}))
    return {
        "greedy": [generate(engine, PROMPTS, GREEDY, adapter) for adapter in targets],
        "together": dict(zip(mixed, (together[k] for k in sorted(together)), strict=True)),
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


def test_greedy_texts_of_the_engines_are_equal(answers):
    assert answers["vllm"]["greedy"] == answers["transformers"]["greedy"]


@pytest.mark.parametrize("engine", ENGINES)
def test_adapters_in_one_batch_make_the_texts_that_each_makes_alone(answers, engine):
    alone = {(k, number): made[number] for k, made in enumerate(answers[engine]["greedy"][:3]) for number in PROMPTS}
    assert answers[engine]["together"] == alone


@pytest.mark.parametrize("engine", ENGINES)
def test_the_smallest_top_p_is_greedy(answers, engine):
    assert answers[engine]["nearly greedy"] == answers[engine]["greedy"][0]


@pytest.mark.parametrize("engine", ENGINES)
def test_each_adapter_changes_the_text_and_leaves_the_base_as_it_was(answers, engine):
    base, first, second, again = answers[engine]["greedy"]
    texts = [tuple(outputs[0].text for outputs in target.values()) for target in (base, first, second)]
    assert len(set(texts)) == 3
    assert base == again


def test_likelihoods_of_the_engines_are_equal(answers):
    for mine, other in zip(answers["vllm"]["scores"], answers["transformers"]["scores"], strict=True):
        assert mine.keys() == other.keys() == PAIRS.keys()
        for number in PAIRS:
            assert mine[number].logprob == pytest.approx(other[number].logprob, abs=2e-3)
            assert (mine[number].tokens, mine[number].greedy) == (other[number].tokens, other[number].greedy)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_changes_likelihoods(answers, engine):
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
def test_samples_are_reproducible_and_differ_from_each_other(answers, engine):
    first, second = answers[engine]["sampled"]
    assert first == second
    assert all(len(outputs) == 2 for outputs in first.values())
    assert any(one.text != other.text for one, other in first.values())
    assert answers[engine]["none"] == {}


def test_vllm_samples_do_not_depend_on_the_other_prompts(answers):
    assert answers["vllm"]["sampled"][0][7] == answers["vllm"]["sampled alone"][7]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_says_what_it_is(answers, engine):
    about = answers[engine]["about"]
    assert about["name"] == engine and about["dtype"] == "float32" and about["context"] == CONTEXT and about["version"]


def vllms_own_wrapper():
    """vLLM's class from a fresh copy of its module: the engine tests have changed the one in use."""
    pytest.importorskip("vllm")
    spec = importlib.util.find_spec("vllm.lora.punica_wrapper.punica_cpu")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PunicaWrapperCPU


def test_the_cpu_lora_product_equals_vllms_own():
    from eval.engines import cpu_lora

    PunicaWrapperCPU = vllms_own_wrapper()

    torch.manual_seed(0)
    wrapper = PunicaWrapperCPU(64, 8, "cpu")
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
    PunicaWrapperCPU.add_lora_linear(wrapper, theirs, x, a, b, 0.5, slices)
    cpu_lora.add_lora_linear(wrapper, ours, x, a, b, 0.5, slices)
    torch.testing.assert_close(ours, theirs)
    theirs, ours = y.clone(), y.clone()
    head = torch.randn(2, 1, sum(slices), rank)
    PunicaWrapperCPU.add_lora_logits(wrapper, theirs, x, a[0], head, 0.5)
    cpu_lora.add_lora_logits(wrapper, ours, x, a[0], head, 0.5)
    torch.testing.assert_close(ours, theirs)


def test_the_cpu_lora_product_leaves_tokens_without_an_adapter_alone():
    from eval.engines import cpu_lora

    PunicaWrapperCPU = vllms_own_wrapper()

    wrapper = PunicaWrapperCPU(64, 8, "cpu")
    indices = torch.tensor([-1, -1, 0, 0])
    wrapper._update_prefill_metadata(indices)
    y = torch.zeros(4, 6)
    cpu_lora.add_lora_linear(
        wrapper, y, torch.ones(4, 5), (torch.ones(1, 1, 2, 5),), (torch.ones(1, 1, 6, 2),), 1.0, (6,)
    )
    assert (y[:2] == 0).all() and (y[2:] == 10).all()


def test_adapters_that_cannot_be_served_are_told_apart_and_merged(smollm2, tmp_path):
    plain = save_adapter(smollm2, tmp_path / "plain", 4, seed=0)
    dora = save_adapter(smollm2, tmp_path / "dora", 4, seed=0, use_dora=True)
    assert read_adapter(plain).unservable is None
    assert read_adapter(dora).unservable == "DoRA"
    targets = [Target("a", smollm2, read_adapter(path), tmp_path) for path in (plain, dora)]
    assert [target.merged for target in targets] == [None, targets[1].adapter]


def test_an_adapter_of_too_high_a_rank_is_merged(tmp_path):
    base = tiny_llama(tmp_path / "base")
    high = read_adapter(save_adapter(base, tmp_path / "high", 513, seed=0))
    assert high.unservable == "rank 513, above vLLM's limit of 512"


def test_a_folder_of_the_same_name_is_no_base(tmp_path):
    mine, other = tiny_llama(tmp_path / "a" / "merged"), tiny_llama(tmp_path / "b" / "merged", seed=1)
    adapter = read_adapter(save_adapter(mine, tmp_path / "adapter", 2, seed=0))
    check_base(adapter, ModelConfig(name=str(mine)), mine)
    with pytest.raises(UserError, match=r"a/merged, not model.name .*b/merged"):
        check_base(adapter, ModelConfig(name=str(other)), other)
    shutil.copytree(mine, tmp_path / "copy")
    check_base(adapter, ModelConfig(name=str(tmp_path / "copy")), tmp_path / "copy")


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
    others = [
        Sampling(9),
        Sampling(8, stop=("b",)),
        Sampling(8, temperature=1.0),
        Sampling(8, temperature=1.0, seed=7),
    ]
    assert len({greedy.key, *(Prompt("a", sampling).key for sampling in others)}) == 5
    assert Pair((1,), (2,)).key != Pair((1, 2), ()).key


def test_an_adapter_of_another_base_is_named(smollm2, adapters, tmp_path):
    check_base(adapters[0], ModelConfig(name="smollm2"), smollm2)
    check_base(adapters[0], ModelConfig(name=str(smollm2)), smollm2)
    config = adapters[0].path / "adapter_config.json"
    (tmp_path / "adapter_model.safetensors").symlink_to(adapters[0].path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(config.read_text().replace(str(smollm2), "meta-llama/Llama-2-7b-hf"))
    with pytest.raises(UserError, match=r"base is meta-llama/Llama-2-7b-hf, not model.name smollm2"):
        check_base(read_adapter(tmp_path), ModelConfig(name="smollm2"), smollm2)


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(UserError, match="not a PEFT adapter"):
        read_adapter(tmp_path)
