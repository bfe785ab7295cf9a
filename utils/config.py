"""The configuration: one YAML file, checked in full before anything heavy is imported.

`load_config` reads a file, applies its `extends:` parent and the command line's dotted overrides, and returns a
validated `Config`. Every mistake is a `UserError` that names the key, what it was given and what is allowed.
"""

import itertools
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from utils.errors import UserError, first_line

Subspace = Literal["tail", "nullspace", "principal", "middle", "random"]
CHOOSERS = ("astra", "lora_matched")  # the methods that read a subspace of a calibration: to others it means nothing
ARM, STEP, RATE = "arm", "train.relative_step", "train.learning_rate"
LADDERS = (STEP, RATE)
# A list whose names were not quoted on the command line would be a character class.
Pattern = Annotated[str, Field(pattern=r"^[^\[]")]
Place = Annotated[str, AfterValidator(os.path.expanduser)]  # a path, perhaps under ~; or the name of something
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes
LLAMA_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    name: Place = Field("meta-llama/Llama-2-7b-hf", description="hub id, local folder, or `smollm2` (needs no hub)")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="data type of the base weights")
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = Field(None, description="attention backend")
    quantization: Literal["nf4"] | None = Field(None, description="quantise the frozen base (bitsandbytes)")
    device_map: Literal["auto"] | None = Field(None, description="calibrate over devices, main memory, disk")
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = Field("CAUSAL_LM", description="SEQ_CLS: a classification head")


class DataConfig(Section):
    train: Place = Field("metamath", description="a named task, or the path of a .json or .jsonl file")
    dir: Place | None = Field(None, description="local mirror of the upstream files, for machines without a hub")
    fields: dict[str, str] = Field(
        {"instruction": "instruction", "output": "output"},
        description="which key of your own records holds what: instruction, output and perhaps input; or messages",
    )
    template: Literal["alpaca", "chat"] = Field("alpaca", description="prompt template; chat: the tokenizer's own")
    limit: int | None = Field(None, ge=1, description="use the first N records")
    max_length: int = Field(512, ge=8, description="longest training example in tokens")
    truncate: bool = Field(True, description="cut an answer that is longer; false: leave its record out")
    validation: float = Field(0.0, ge=0, lt=1, description="fraction held out of training for validation")
    reporting: float = Field(0.0, ge=0, lt=1, description="held out too, to report a loss that has selected nothing")
    general_text: Place = Field("wikitext-2", description="for forgetting: wikitext-2, python-manual, or a .txt file")
    decontaminate: Literal[False, True, "13-gram"] = Field(
        False, description="drop training records that contain a test question, or share 13 words in a row with one"
    )
    seed: Seed = Field(42, description="seed of the split and of generated data")


class CalibrationConfig(Section):
    samples: int = Field(256, ge=1, description="training examples the second moments are estimated on")
    max_length: int = Field(512, ge=8, description="tokens kept of each; what is longer is cut")
    batch_size: int = Field(8, ge=1, description="samples in a forward pass; changes speed, not the result")
    seed: Seed = Field(42, description="which samples, and the basis of nullspace and random")
    max_rank: int | None = Field(None, ge=1, description="vectors kept per layer; default: what the runs need")
    subspaces: list[Subspace] | None = Field(None, description="subspaces kept; default: what the runs need")
    spectrum: Literal["full", "ends"] = Field("full", description="all eigenvalues, or only the ends (large layers)")


class MethodConfig(Section):
    name: str = Field("astra", pattern=r"^\w+$", description="how the adapter starts: a name of training/methods.py")
    subspace: Subspace = Field("tail", description="which eigenvectors Astra takes")
    split: Literal["orthonormal", "balanced", "rotated"] = Field(
        "orthonormal", description="the product's norm: all in A, or halved; rotated: Q turned within its span"
    )
    freeze_b: bool = Field(False, description="train A alone: the change then stays in the span of B's start")
    rank: int = Field(128, ge=1, description="rank r of the adapter")
    alpha: float | None = Field(None, gt=0, description="scaling is alpha / rank; default: the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: list[str] | Pattern = Field(
        LLAMA_PROJECTIONS, min_length=1, description="adapted layers: names, one regular expression, or all-linear"
    )
    exclude_modules: list[str] | Pattern | None = Field(None, description="left out: names or a regular expression")
    rank_allocation: Literal["uniform", "effective_rank"] = Field(
        "uniform", description="share the same total rank over layers evenly or by effective rank"
    )
    seed: Seed = Field(42, description="seed of random initialisations")

    @property
    def scaled_alpha(self) -> float:
        """Alpha with its default, the rank, filled in."""
        return float(self.rank) if self.alpha is None else self.alpha


class TrainConfig(Section):
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    relative_step: float | None = Field(
        None, gt=0, description="sets the rate instead: |dW| over |W| of the first step, one scale for all methods"
    )
    global_batch_size: int = Field(128, ge=1, description="examples in an optimizer step, over all processes")
    micro_batch_size: int = Field(4, ge=1, description="examples in a forward pass of one process, at most")
    epochs: float = Field(1.0, gt=0, description="passes over the data")
    max_steps: int | None = Field(None, ge=1, description="stop after N optimizer steps")
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field("cosine", description="decay")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="fraction of the steps that warm up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    seed: Seed = Field(42, description="order of the data, dropout")
    logging_steps: int = Field(1, ge=1, description="steps between lines of metrics.jsonl")
    save_steps: int | None = Field(None, ge=1, description="steps between checkpoints; default: a tenth of the run")
    early_stopping: int | None = Field(None, ge=1, description="stop after N validations without progress")
    deepspeed: Place | None = Field(None, description="path of a DeepSpeed JSON; one process uses it only to offload")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third slower")
    packing: bool = Field(False, description="padding-free packing, for models that keep packed examples apart")
    compile: bool = Field(False, description="torch.compile")
    liger_kernel: bool = Field(False, description="Liger's fused layers (package liger-kernel, GPUs only)")
    forgetting: bool = Field(True, description="measure the loss on general text before and after")
    eval_tasks: list[str] = Field([], description="scored on the validation records at every validation and the end")
    report_to: list[str] = Field([], description="the Trainer's integrations: tensorboard, wandb, ...")


class EvalConfig(Section):
    tasks: list[str] = Field(["gsm8k", "math"], description="what to score; lm_eval/NAME: any task of lm-eval")
    split: Literal["test", "validation"] = Field("test", description="validation: what data.validation holds out")
    limit: int | None = Field(None, ge=1, description="the first N problems of each task")
    base: bool = Field(False, description="score the base model too, with the same engine")
    engine: Literal["vllm", "transformers"] = Field("vllm", description="what generates")
    engines: int | None = Field(None, ge=1, description="engines at work at once; default: one per GPU")
    tensor_parallel_size: int | None = Field(None, ge=1, description="GPUs of one engine; default: as few as hold it")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of the GPU that vLLM takes")
    dtype: Literal["bfloat16", "float16", "float32"] | None = Field(None, description="default: model.dtype")
    batch_size: int = Field(16, ge=1, description="prompts in a batch (transformers engine)")
    max_model_len: int | None = Field(None, ge=16, description="context in tokens; default: what prompts need")
    max_new_tokens: PositiveInt | dict[str, PositiveInt] | None = Field(
        None, description="a number, or one per task; default: the task's own"
    )
    stop: list[str] | dict[str, list[str]] | None = Field(
        None, description="strings that end a text, or a list per task; default: the task's own"
    )
    response_prefix: str = Field("", description='appended to the prompt, e.g. " Let\'s think step by step."')
    chat_template_kwargs: dict[str, Any] = Field({}, description="for the template chat: {enable_thinking: false}")
    n_samples: int = Field(1, ge=1, description="texts per problem, for pass@k and maj@k")
    temperature: float = Field(0.0, ge=0, description="0: greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability that is sampled from")
    seed: Seed = Field(42, description="seed of sampling")
    grader: Literal["exact", "metamath", "published"] = Field("exact", description="whose verdict is the headline")
    num_fewshot: int | None = Field(None, ge=0, description="examples in prompts of lm_eval tasks; default: their own")
    task_dir: Place | None = Field(None, description="folder of your own lm-eval task definitions (YAML)")
    unsafe_code: bool = Field(False, description="run generated code without a sandbox")

    @model_validator(mode="before")
    @classmethod
    def _one_task(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("tasks"), str):
            words = values["tasks"].strip("[] ").split(",")  # a list with a slash in it comes as a text
            values["tasks"] = [word.strip() for word in words if word.strip()]
        return values


class CompareConfig(Section):
    start: float = Field(1e-3, gt=0, description="the first three rungs of every ladder are around it")
    select: Literal["validation_loss", "accuracy"] = Field(
        "validation_loss", description="what chooses an arm's rung; accuracy: that of train.eval_tasks"
    )
    test: Literal["chosen", "all", "none"] = Field("chosen", description="which runs generate the test sets")
    max_runs: int = Field(100, ge=1, description="of all arms together")


class Config(Section):
    """A whole experiment; see `configs/` for commented examples."""

    output_dir: Place = Field("outputs/experiment", min_length=1, description="folder of the runs and calibrations")
    run: str | None = Field(
        None, pattern=r"^[^./][^/]*$", description="folder of this run in output_dir; default: from the swept keys"
    )
    arm: str | None = Field(None, description="the arm of a comparison that a run belongs to; empty: one without name")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    compare: CompareConfig = CompareConfig()
    sweep: dict[str, list[Any] | dict[str, dict[str, Any]] | Literal["ladder"]] = Field(
        {}, description="dotted key -> values; the grid is run. arm: named sets of overrides"
    )

    @field_validator("run")
    @classmethod
    def _not_taken(cls, run: str | None) -> str | None:
        if run in ("adapters", "base", "calibration", "plan", "stages", "tokens"):
            raise ValueError(f"{run} is a folder of the experiment's own; take another name")
        return run


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a YAML file, apply its parent and the dotted overrides, and validate the result.

    Its `extends:` key may name a parent, relative to the file, that extends nothing itself.
    """
    values = _read_yaml(Path(path))
    parent = values.pop("extends", None)
    if parent is not None:
        if not isinstance(parent, str):
            raise UserError(f"{path}: extends: names a file, not {parent!r}")
        base = _read_yaml(Path(path).parent / parent)
        if "extends" in base:
            raise UserError(f"{parent}: extends: a parent may not extend another file")
        values = _merge(base, values)
    config = validate(_set(values, overrides or {}), source=str(path))
    if RATE in (overrides or {}) and by_step(config):
        raise UserError(f"{RATE}: {STEP} is set, and sets the rate; give one of the two")
    return config


def validate(values: dict[str, Any], source: str = "config") -> Config:
    """Return the `Config` of nested `values`, with every point of its sweep checked too."""
    config = _validate(values, source)
    shared = {"data.template", "data.dir"} | ({"data.train"} if config.model.task_type == "SEQ_CLS" else set())
    for key, values_ in config.sweep.items():
        if isinstance(values_, dict) != (key == ARM):
            raise UserError(f"sweep.{key}: {'arm' if key == ARM else 'only arm'} takes names of sets of overrides")
        if not values_:
            raise UserError(f"sweep.{key}: names no value, so that there would be no run")
        if values_ == "ladder" and (key not in LADDERS or ladder_key(config) != key):
            raise UserError(f"sweep.{key}: one of {' and '.join(LADDERS)} can be a ladder")
        swept = [dotted for arm in values_.values() for dotted in arm] if isinstance(values_, dict) else [key]
        for dotted in swept:  # models and tests are what the runs of an experiment have in common
            if dotted.split(".")[0] not in ("data", "calibration", "method", "train") or dotted in shared:
                raise UserError(f"sweep.{dotted}: all runs of an experiment share it; start one for each value")
    if ladder_key(config) and not config.data.validation:
        raise UserError("data.validation: 0 holds nothing out, and a ladder chooses its rung on what is held out")
    if ladder_key(config) and config.model.task_type == "SEQ_CLS":
        raise UserError(f"sweep.{ladder_key(config)}: a classifier has no loss per record to climb by; list its rates")
    if config.compare.select == "accuracy" and not config.train.eval_tasks:
        raise UserError("compare.select: accuracy is that of train.eval_tasks on what is held out; name one there")
    for point in grid(config):
        given = _overrides(config, point)
        run = _validate(_set(config.model_dump(), given), source)
        if by_step(run) and (RATE in given or ladder_key(config) == RATE):
            raise UserError(f"sweep.{RATE}: {STEP} is set, and sets the rate; give one of the two")
    return config


def by_step(config: Config) -> bool:
    """Whether the relative step sets the learning rate."""
    return config.train.relative_step is not None or ladder_key(config) == STEP


def ladder_key(config: Config) -> str | None:
    """Return the key that a comparison has a ladder of, or None for a plain sweep."""
    return next((key for key, values in config.sweep.items() if values == "ladder"), None)


def expand_sweep(config: Config) -> list[Config]:
    """Return one config for each point of the sweep's grid, in order, each with its own `run` name.

    A ladder has no grid: it is left at the configuration's own rate; `utils.comparison` knows its runs.
    """
    return [point_config(config, point) for point in grid(config)]


def point_config(config: Config, point: dict[str, Any]) -> Config:
    """Return the config of one run: swept keys set, the arm's overrides among them, and named after them."""
    name = run_name(config, point) if point or not config.run else ""
    run = "-".join(filter(None, (config.run, name)))
    changed = {**_overrides(config, point), "sweep": {}, "run": run}
    return _validate(_set(config.model_dump(), changed), "sweep")


def run_name(config: Config, point: dict[str, Any]) -> str:
    """Return the default folder of a run: its swept keys and values, or its method and rank."""
    if not point:
        method = config.method
        subspace = f"-{method.subspace}" if method.name in CHOOSERS else ""
        return f"{method.name}{subspace}-r{method.rank}"
    parts = (f"{key.rsplit('.', 1)[-1]}={value}" for key, value in point.items())
    return ",".join(parts).replace("/", "_").replace(" ", "")


def describe_keys() -> str:
    """Return one line for every key: its dotted name, type, default and meaning."""
    keys: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        keys.update({f"{name}.{key}": found for key, found in section.items()} if section else {name: field})
    return "\n".join(_describe(key, field) for key, field in keys.items())


def _describe(key: str, field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "7 Llama projections" if default == LLAMA_PROJECTIONS else default
    options = [field.annotation, *get_args(field.annotation)]
    names = [str(value) for option in options for value in get_args(option) if isinstance(value, str)]
    return f"  --{key}={shown}\n      {field.description}" + (f" ({' | '.join(names)})" if names else "")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # not UTF-8, or what YAML can't hold
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or first_line(error)})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold `key: value` lines")
    return values


class _Loader(yaml.SafeLoader):
    """YAML in which `2e-5` is a number (see below) and a repeated key is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
        if repeated := sorted(key for key in keys if keys.count(key) > 1):
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict) and key != "sweep"
        merged[key] = _merge(base[key], value) if nested else value
    return merged


def _set(values: dict[str, Any], dotted: dict[str, Any]) -> dict[str, Any]:
    """Set dotted keys in place and return the values; below `sweep.` the rest of the name is one key."""
    for key, value in dotted.items():
        head, _, rest = key.partition(".")
        if not rest:
            values[head] = value
            continue
        section = values.setdefault(head, {})
        if not isinstance(section, dict):
            raise UserError(f"{key}: {head} holds a value, not a section")
        if head == "sweep":
            section[rest] = value if isinstance(value, list | tuple | dict) or value == "ladder" else [value]
        else:
            _set(section, {rest: value})
    return values


def grid(config: Config) -> list[dict[str, Any]]:
    """Return every point of the sweep, ladders apart: swept key -> value, and `arm` -> its name."""
    swept = {key: list(values) for key, values in config.sweep.items() if values != "ladder"}
    return [dict(zip(swept, point, strict=True)) for point in itertools.product(*swept.values())]


def _overrides(config: Config, point: dict[str, Any]) -> dict[str, Any]:
    """A point's dotted keys, with what its arm stands for; a key that is swept too overrides the arm's."""
    arms = config.sweep.get(ARM, {})
    return {**(arms[point[ARM]] if isinstance(arms, dict) and ARM in point else {}), **point}


def _validate(values: dict[str, Any], source: str) -> Config:
    _check_texts(values, source)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        of_one = [other for other in errors if other["loc"][:2] == errors[0]["loc"][:2]]  # of the kinds it may be of
        if errors[0]["loc"][:1] == ("sweep",) and ARM not in errors[0]["loc"][:2]:  # it alone may be of names
            of_one = of_one[:1]
        told = max(of_one, key=lambda other: len(other["loc"]))  # the kind that it fits best
        raise UserError(f"{source}: {_explain(told)}") from error


def _check_texts(value: Any, place: str) -> None:
    """Refuse texts that can be no file's name and in no file; YAML's escapes can write them."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_texts(str(key), place)
            _check_texts(entry, f"{place}: {key}")
    elif isinstance(value, list | tuple):
        for entry in value:
            _check_texts(entry, place)
    elif isinstance(value, str) and ("\0" in value or re.search("[\ud800-\udfff]", value)):
        raise UserError(f"{place}: {value!r} holds a character that no file can")


def _explain(error: ErrorDetails) -> str:
    """Return one line for a pydantic error: the dotted key, the value and what is allowed."""
    kinds = ("list[", "dict[", "[", "literal[", "constrained-")  # of the several that a value may be of
    location = [part for part in error["loc"] if isinstance(part, str) and not part.startswith(kinds)]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        section: Any = Config if len(location) == 1 else Config.model_fields[location[0]].annotation
        return f"unknown key {key}; allowed here: {', '.join(section.model_fields)}"
    if error["type"] == "model_type":
        return f"{key}: must be a section of keys, not {error['input']!r}"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {message}, not {error['input']!r}"
