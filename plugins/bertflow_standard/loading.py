"""Loading a checkpoint into a transformers module: what `model=pretrained` and `model=auto` share.

The module is built on torch's meta device, where it has names and shapes but no memory; then every tensor comes from
the checkpoint's safetensors, under the rule of `model.weights`.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bertflow.errors import CheckpointError, ConfigError
from bertflow.hookspecs import WeightsReport
from bertflow_standard.checkpoint import Checkpoint, resolve
from bertflow_standard.confidential import FIELDS
from bertflow_standard.manifest import digest, read_digests, verify
from bertflow_standard.preflight import check, check_finite
from bertflow_standard.transformers_model import TOKENIZER_FILES, Dtype, Head, TransformersModel, quiet

_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_HEADER_NAMES = {name: code for code, name in _TORCH_NAMES.items()}


HEAD_MODULES = frozenset(
    (
        *("classifier", "cls", "decoder", "discriminator_predictions", "generator_lm_head", "generator_predictions"),
        *("head", "lm_head", "lm_predictions", "logits_proj", "mask_predictions", "pooler", "pre_classifier"),
        *("predictions", "qa_outputs", "score", "sequence_summary", "sop_classifier", "vocab_layer_norm"),
        *("vocab_projector", "vocab_transform"),
    )
)
"""What transformers calls the parts of the heads that stand on encoders."""

_IGNORED_BUFFERS = (".position_ids", ".token_type_ids")
"""What old checkpoints hold although the model computes it; transformers ignores it too."""


class Policy(Enum):
    """Which tensors may be missing from the checkpoint; only what is asked for is ever drawn at random."""

    exact = "exact"
    new_head = "new_head"
    any = "any"


@dataclass
class Config:
    """Which checkpoint is loaded, and how."""

    checkpoint: str
    revision: str | None
    refresh: bool
    sha256: Any
    hub_timeout: float
    weights: Policy
    head: Head | None
    dtype: Dtype

    def __post_init__(self) -> None:
        """Refuse what names no checkpoint."""
        if not self.checkpoint.strip():
            raise ConfigError("no checkpoint", "model.checkpoint", "give a folder, a Hub id or pkg://package/folder")
        if self.hub_timeout <= 0:
            raise ConfigError(
                "wrong value", f"model.hub_timeout={self.hub_timeout}", "give a positive number of seconds"
            )
        self.sha256 = read_digests(self.sha256, self.checkpoint)


def preflight(config: Config, model_type: str | None = None) -> Checkpoint:
    """Find the checkpoint, and refuse one whose files contradict each other. Imports no torch.

    Args:
        config: which checkpoint.
        model_type: the only `model_type` that is taken; None takes all that transformers knows.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or is no model of that type.
    """
    checkpoint = resolve(config.checkpoint, config.revision, config.refresh, config.hub_timeout)
    found = checkpoint.config.get("model_type")
    if not isinstance(found, str):
        where = str(checkpoint.folder / "config.json")
        raise CheckpointError("config has no model_type", where, 'add it, such as "model_type": "bert"')
    if model_type not in (None, found):
        fix = f"use model=auto model.checkpoint={config.checkpoint}"
        raise CheckpointError(f"checkpoint is {found}, not {model_type}", str(checkpoint.folder), fix)
    check(checkpoint, whole=config.weights is not Policy.any)
    return checkpoint


def build(config: Config) -> TransformersModel:
    """Build the checkpoint's architecture on the meta device, without weights, while its files are verified.

    Raises:
        CheckpointError: no model can be built from the config, or a file is not the one that was saved.
    """
    checkpoint = resolve(config.checkpoint, config.revision, refresh=False, timeout=config.hub_timeout)
    verified = verifying(checkpoint, config.sha256)
    has_pooler = any("pooler." in name for name in checkpoint.tensors)

    import torch
    import transformers

    auto_class = getattr(transformers, config.head.value if config.head else "AutoModel")
    try:
        with quiet(), torch.device("meta"):
            model_config = transformers.AutoConfig.from_pretrained(
                str(checkpoint.folder), local_files_only=True, trust_remote_code=False
            )
            for name in FIELDS:  # The config is shown.
                vars(model_config).pop(name, None)
            # How outputs are wrapped and computed piecemeal is bertflow's business; these change no number.
            model_config.return_dict, model_config.chunk_size_feed_forward = True, 0
            module = auto_class.from_config(model_config, trust_remote_code=False)
            if not has_pooler and "add_pooling_layer" in inspect.signature(type(module).__init__).parameters:
                # transformers would draw the pooler at random, and its output with it.
                module = type(module)(model_config, add_pooling_layer=False)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        where = str(checkpoint.folder / "config.json")
        raise CheckpointError(f"no model can be built from the config ({reason})", where, "mend the config") from error
    return TransformersModel(module, checkpoint, verified.result())


def verifying(checkpoint: Checkpoint, digests: Mapping[str, str]) -> Future[Mapping[str, str]]:
    """Start to read the checkpoint through on a thread, while torch is imported here; `result` raises what it found."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(_verify, checkpoint, digests)
    pool.shutdown(wait=False)
    return future


def _verify(checkpoint: Checkpoint, digests: Mapping[str, str]) -> Mapping[str, str]:
    """Return file -> SHA-256 of what decides the model's numbers."""
    found = verify(checkpoint.folder, digests)
    deciding = ["config.json", *(path.name for path in checkpoint.weights), *TOKENIZER_FILES]
    for name in deciding:
        if name not in found and (checkpoint.folder / name).is_file():
            found[name] = digest(checkpoint.folder / name)
    check_finite(checkpoint)
    return {name: found[name] for name in deciding if name in found}


def load(config: Config, model: TransformersModel) -> tuple[TransformersModel, WeightsReport]:
    """Give the module the checkpoint's tensors, by transformers' own renaming rules.

    Raises:
        CheckpointError: a tensor is missing, surplus, damaged or of another shape, beyond what `weights` allows.
    """
    import torch

    checkpoint = model.checkpoint
    assert checkpoint is not None
    dtype = _dtype(config.dtype, model, checkpoint)
    _refuse(config.weights, checkpoint, model.module, _rehearse(model.module, checkpoint))
    # A base model that was built without its pooler is loaded without it too.
    options = {"add_pooling_layer": False} if getattr(model.module, "pooler", ...) is None else {}
    with quiet():
        module, info = type(model.module).from_pretrained(
            None,
            config=model.module.config,
            state_dict=_read_tensors(checkpoint),
            dtype=getattr(torch, dtype),
            ignore_mismatched_sizes=True,  # They are refused below, in one line.
            output_loading_info=True,
            **options,
        )
    _refuse(config.weights, checkpoint, module, info)  # The last word is with what was really loaded.
    tied = getattr(module, "all_tied_weights_keys", {})  # Other names of tensors that are counted already.
    missing, unused = sorted(info["missing_keys"] - tied.keys()), sorted(info["unexpected_keys"])
    buffers = [name for name in checkpoint.tensors if name not in unused and name.endswith(_IGNORED_BUFFERS)]
    used = [tensor for name, tensor in checkpoint.tensors.items() if name not in {*unused, *buffers}]
    casts = Counter(t.dtype for t in used if t.dtype in _TORCH_NAMES and _TORCH_NAMES[t.dtype] != dtype)
    report = WeightsReport(
        source=checkpoint.name,
        files=[str(path) for path in checkpoint.weights],
        loaded=len(used),
        random=missing,
        unused=[*unused, *buffers],
        cast={f"{code}->{_HEADER_NAMES[dtype]}": count for code, count in casts.items()},
        note=_note(missing, unused, buffers),
        digests=model.digests,
    )
    return TransformersModel(module, checkpoint, model.digests), report


def _dtype(asked: Dtype, model: TransformersModel, checkpoint: Checkpoint) -> str:
    """Return torch's name of the dtype: the one asked for, the config's, or the first float in the weights."""
    if asked is not Dtype.auto:
        return asked.name
    if model.module.config.dtype is not None:
        return str(model.module.config.dtype).removeprefix("torch.")
    return next((_TORCH_NAMES[t.dtype] for t in checkpoint.tensors.values() if t.dtype in _TORCH_NAMES), "float32")


def _read_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    tensors = {}
    for path in checkpoint.weights:
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
        except SafetensorError as error:
            raise CheckpointError(
                f"weights file is damaged ({error})", str(path), "download or save it again"
            ) from error
    return tensors


def _rehearse(module: Any, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Load the headers' names and shapes into the module on the meta device, by transformers' own renaming rules.

    So a tensor that does not fit is known before any is read. Returns transformers' loading info.
    """
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    stand_ins = {name: torch.empty(tensor.shape, device="meta") for name, tensor in checkpoint.tensors.items()}
    settings = LoadStateDictConfig(
        ignore_mismatched_sizes=True,
        device_map={"": "meta"},
        dtype=torch.float32,
        weight_mapping=get_model_conversion_mapping(module),
    )
    with quiet():
        info, _ = convert_and_load_state_dict_in_model(module, stand_ins, settings)
        module.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        module._adjust_missing_and_unexpected_keys(info)
    return {name: getattr(info, name) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}


def _refuse(policy: Policy, checkpoint: Checkpoint, module: Any, info: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the policy allows what did not match."""
    where = str(checkpoint.folder)
    for name, theirs, ours in sorted(info["mismatched_keys"]):
        shapes = f"{where}: {name} is {list(theirs)}, the config says {list(ours)}"
        raise CheckpointError("tensor has another shape", shapes, "mend config.json or the weights")
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype not in _TORCH_NAMES and not name.endswith(_IGNORED_BUFFERS):
            fix = "bertflow loads F64, F32, F16 and BF16: choose a checkpoint that is not quantized"
            raise CheckpointError("tensor is of another kind", f"{tensor.file}: {name} is {tensor.dtype}", fix)
    if policy is Policy.any:
        return
    body = {name for name, _ in module.base_model.named_children()}
    unexpected = [name for name in info["unexpected_keys"] if not name.endswith(_IGNORED_BUFFERS)]
    surplus = sorted(name for name in unexpected if _is_body(name, module, body) or not _is_head(name))
    if surplus:
        fix = "mend config.json, or take what fits with model.weights=any"
        raise CheckpointError("checkpoint holds tensors that the model has no place for", _some(where, surplus), fix)
    new = info["missing_keys"]
    if policy is Policy.new_head:
        new = [name for name in new if _is_body(name, module, body - {"pooler"})]
    if new:
        is_head = not any(_is_body(name, module, body - {"pooler"}) for name in new)
        fix = "to start with a random head add model.weights=new_head" if is_head else "choose a whole checkpoint"
        raise CheckpointError("checkpoint lacks tensors of the model", _some(where, sorted(new)), fix)


def _is_head(name: str) -> bool:
    """Whether a tensor without a place belongs to the head of another task."""
    return name.partition(".")[0] in HEAD_MODULES


def _is_body(name: str, module: Any, body: Collection[str]) -> bool:
    return name.removeprefix(f"{module.base_model_prefix}.").partition(".")[0] in body


def _some(where: str, names: Collection[str]) -> str:
    first, *rest = names
    return f"{where}: {first}" + (f" and {len(rest)} more" if rest else "")


def _note(missing: Collection[str], unused: Collection[str], buffers: Collection[str]) -> str:
    notes = []
    if missing:
        notes.append("random: " + ", ".join(missing))
    if unused:
        heads = sorted({name.partition(".")[0] for name in unused})
        notes.append(f"unused: {len(unused)} tensors of another head ({', '.join(heads)})")
    if buffers:
        notes.append(f"unused: {', '.join(buffers)}, which the model counts for itself")
    return "; ".join(notes)
