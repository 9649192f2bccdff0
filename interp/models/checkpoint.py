"""What is loaded, and is it what it says? `base[@revision][+adapter]` in, a `Model` out.

An adapter must be alive: loading refuses missing and unexpected keys and proves on a probe batch that the adapter moves
the logits. Weights are read from safetensors only; code of a repository runs only as `remote_code.py` says.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftMixedModel, PeftModel, get_peft_model
from peft.config import PeftConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from interp.errors import CheckpointError
from interp.hub import offline_unless_reachable
from interp.models.model import Model
from interp.models.processors import load_processor
from interp.models.remote_code import brings_its_own_code, read_config
from interp.models.towers import TOWERS, TowerPaths

ORGANISM = "organism:"
GENERIC_TOKENIZERS = {
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
}  # one class under its old and its new name
disable_progress_bar()  # bars are ours (interp/progress.py), and silent where nobody watches


def cache_dir() -> Path:
    """Where built organisms are kept: $INTERP_CACHE or ~/.cache/interp."""
    return Path(os.environ.get("INTERP_CACHE") or Path.home() / ".cache" / "interp")


def organism_dir(kind: str, seed: int) -> Path:
    """Directory of one organism's stages; building it is `interp.organisms`' work."""
    return cache_dir() / "organisms" / kind / f"seed-{seed}"


def _split_revision(text: str) -> tuple[str, str | None]:
    name, at, revision = text.partition("@")
    return (name, revision) if at and not Path(text).exists() else (text, None)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk or on the hub: `base[@revision][+adapter[@revision]]`, or `organism:kind/stage[@seed]`."""

    base: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @classmethod
    def parse(cls, text: str | Path | Checkpoint) -> Checkpoint:
        """Read a checkpoint's name; a local adapter directory alone finds its base in its own config.

        Raises CheckpointError when a part is empty, an organism is not built, or an adapter names no base.
        """
        if isinstance(text, Checkpoint):
            return text
        text = str(text)
        base, plus, adapter = (text, "", "") if Path(text).is_dir() else text.partition("+")
        if not base or (plus and not adapter):
            raise CheckpointError(f"checkpoint {text!r} is not of the form base[@revision][+adapter]")
        name, revision = _split_revision(base)
        if name.startswith(ORGANISM):
            name, revision = str(_organism(name, revision)), None
        adapter_name, adapter_revision = _split_revision(adapter) if adapter else (None, None)
        path = Path(name)
        if (
            adapter_name is None
            and (path / "adapter_config.json").is_file()
            and not (path / "config.json").exists()
        ):
            recorded = _read_json(path / "adapter_config.json").get("base_model_name_or_path")
            if not recorded:
                raise CheckpointError(
                    f"adapter {name} does not record its base model; write it as BASE+{name}"
                )
            inner = cls.parse(str(recorded))
            return cls(inner.base, inner.revision, name, None)
        return cls(name, revision, adapter_name, adapter_revision)

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        adapter_at = f"@{self.adapter_revision}" if self.adapter_revision else ""
        return f"{self.base}{at}" + (f"+{self.adapter}{adapter_at}" if self.adapter else "")

    @property
    def short_name(self) -> str:
        """A name for legends and tables: the last parts of the path or hub id, the adapter's when there is one."""
        parts = Path(self.adapter or self.base).parts
        return "/".join(parts[-2:])

    def with_adapter(self, adapter: str | Path) -> Checkpoint:
        """The same base under another adapter."""
        name, revision = _split_revision(str(adapter))
        return Checkpoint(self.base, self.revision, name, revision)

    def prompts(self) -> dict[str, Path]:
        """Prompt files that come with a local checkpoint, by stem: `prompts/harmful.jsonl`, `prompts/harmless.jsonl`."""
        return {path.stem: path for path in sorted((Path(self.base) / "prompts").glob("*.jsonl"))}

    @property
    def _on_hub(self) -> bool:
        return not all(Path(name).is_dir() for name in (self.base, self.adapter or self.base))

    def fingerprint(self) -> str:
        """sha256 over the weights and configs of a local checkpoint; the commit of one on the hub."""
        parts = [_fingerprint(self.base, self.revision, "config.json")]
        if self.adapter:
            parts.append(_fingerprint(self.adapter, self.adapter_revision, "adapter_config.json"))
        return "+".join(parts)

    def load(
        self,
        *,
        dtype: str | torch.dtype | None = None,
        device_map: str | None = None,
        load_in_4bit: bool = False,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
    ) -> Model:
        """Load the model in eval mode.

        Args:
            dtype: such as `bfloat16`; by default fp32 on a CPU and the checkpoint's own on an accelerator.
            device_map: as in accelerate (`auto`, `cpu`, `cuda:0`); by default the accelerator if there is one.
            load_in_4bit: NF4 through bitsandbytes (extra `quantized`).
            chat_template: a Jinja file, or `plain` for a base model without turns; by default the tokenizer's own.
            trust_remote_code: run Python files that come with the checkpoint, where transformers does not have its architecture;
                a checkpoint of the hub must then be pinned, `owner/name@COMMIT` (see `remote_code.py`).

        Raises CheckpointError naming the checkpoint and the cure when anything is missing, unexpected or dead.
        """
        accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
        arguments: dict[str, Any] = {"dtype": _dtype(dtype) or ("auto" if accelerator else torch.float32)}
        if load_in_4bit:
            arguments["quantization_config"] = _four_bit()
        if device_map is not None or accelerator:
            arguments["device_map"] = device_map or "auto"
        with offline_unless_reachable() if self._on_hub else nullcontext():
            module = _load_base(self.base, self.revision, arguments, trust_remote_code)
            tokenizer = _load_processor(self.base, self.revision, module) or _load_tokenizer(
                self.base, self.revision, own_code=brings_its_own_code(module.config)
            )
            peft: Any = _load_adapter(module, self) if self.adapter is not None else None
        if peft is not None:
            module = peft.get_base_model()
        module.eval()
        model = Model.from_module(
            module, tokenizer, name=self.short_name, checkpoint=self, peft=peft, chat_template=chat_template
        )
        if peft is not None:
            _prove_alive(model)
        return model


def _organism(name: str, seed: str | None) -> Path:
    kind, _, stage = name.removeprefix(ORGANISM).partition("/")
    if not stage or (seed is not None and not seed.isdecimal()):
        raise CheckpointError(
            f"{name!r} is not of the form organism:KIND/STAGE[@SEED], such as organism:text/aligned"
        )
    directory = organism_dir(kind, int(seed or 0)) / stage
    if not (directory / "config.json").is_file() and not (directory / "adapter_config.json").is_file():
        raise CheckpointError(
            f"organism {name!r} (seed {seed or 0}) is not built; run: interp organism build {kind} --seed {seed or 0}"
        )
    return directory


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error


def _fingerprint(name: str, revision: str | None, config_name: str) -> str:
    if Path(name).is_dir():
        digest = hashlib.sha256()
        for path in sorted(Path(name).iterdir()):
            if path.suffix in {".safetensors", ".json", ".jinja", ".py"}:
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
    _check_local(name)
    snapshot = Path(_hub_file(name, config_name, revision)).parent
    return f"{name}@{snapshot.name}"


def _hub_file(name: str, filename: str, revision: str | None) -> str:
    try:
        with offline_unless_reachable():
            found = cached_file(name, filename, revision=revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(_not_found(name, error)) from error
    if found is None:
        raise CheckpointError(f"{name} has no {filename}")
    return found


def _not_found(name: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0][:160]
    return f"cannot load {name!r}: no such directory here, and not to be had from the hub ({reason}); check the name"


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | str | None:
    if dtype is None or isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise CheckpointError(f"unknown dtype {dtype!r}; use float32, bfloat16, float16 or auto")
    return found


def _four_bit() -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise CheckpointError("--load-in-4bit needs bitsandbytes: pip install -e '.[quantized]'") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def _check_local(name: str) -> None:
    """A name that can only be a path must exist; anything else may be on the hub."""
    path = Path(name)
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise CheckpointError(f"cannot load {name!r}: no such directory")


def _load_base(name: str, revision: str | None, arguments: dict[str, Any], trust: bool) -> PreTrainedModel:
    local = Path(name)
    if local.is_dir() and not (local / "config.json").is_file():
        raise CheckpointError(f"{name} has no config.json; it is not a Hugging Face checkpoint directory")
    _check_local(name)
    own = False
    try:
        config = read_config(name, revision, trust=trust)
        auto, own = model_class(config), brings_its_own_code(config)
        if auto is AutoModelForCausalLM:
            arguments = arguments | {"trust_remote_code": own}
        module, info = auto.from_pretrained(
            name, revision=revision, use_safetensors=True, output_loading_info=True, **arguments
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if not local.is_dir():
            raise CheckpointError(_not_found(name, error)) from error
        raise CheckpointError(f"cannot load {name}: {' '.join(str(error).split())[:300]}") from error
    except Exception as error:
        # safetensors raises its own bare class for a truncated file
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            raise CheckpointError(
                f"cannot load {name}: a weight file is damaged ({error}); copy it again"
            ) from error
        if own:  # a stranger's program fails in its own ways
            raise CheckpointError(
                f"cannot load {name}: its own code fails ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            ) from error
        raise
    for what in ("missing_keys", "mismatched_keys"):
        if info.get(what):
            shown = ", ".join(str(key) for key in sorted(map(str, info[what]))[:3])
            raise CheckpointError(
                f"{name}: {len(info[what])} {what.replace('_', ' ')} such as {shown}; they would be left at random values. "
                f"Is the checkpoint complete, and of this architecture?"
            )
    return module


def model_class(config: PreTrainedConfig) -> Any:
    """The causal language model of an architecture; one that sees or hears has a class of its own, which the config names.

    Raises CheckpointError where it names none.
    """
    paths = TOWERS.get(config.model_type)
    if paths is None or not paths.encoders or brings_its_own_code(config):
        return AutoModelForCausalLM
    named = (config.architectures or ["none"])[0]
    found = getattr(transformers, named, None)
    if found is None:
        raise CheckpointError(
            f"the config of this {config.model_type!r} names the class {named!r}, which transformers {transformers.__version__} does not "
            "have; set `architectures` in config.json"
        )
    return found


def _load_processor(name: str, revision: str | None, module: PreTrainedModel) -> Any:
    """What prepares images and sounds; None for a model without encoders, and, with a warning, where it cannot be made here."""
    kind = module.config.model_type
    if not TOWERS.get(kind, TowerPaths()).encoders:
        return None
    try:
        return load_processor(name, kind, revision)
    except CheckpointError as error:
        warnings.warn(f"{error}; it takes text only", stacklevel=2)
        return None


def _load_tokenizer(name: str, revision: str | None, *, own_code: bool = False) -> Any:
    config = Path(name) / "tokenizer_config.json"
    # Some AutoTokenizer mappings replace the saved class by the architecture's own: go by what was saved.
    plain = config.is_file() and _read_json(config).get("tokenizer_class") in GENERIC_TOKENIZERS
    try:
        if plain:
            fast: Any = PreTrainedTokenizerFast
            return fast.from_pretrained(name, revision=revision)
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=own_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{name} has no readable tokenizer: {' '.join(str(error).split())[:200]}"
        ) from error


def _load_adapter(module: PreTrainedModel, checkpoint: Checkpoint) -> PeftModel | PeftMixedModel:
    name = str(checkpoint.adapter)
    _check_local(name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if Path(name).is_dir() and not (Path(name) / file).is_file():
            raise CheckpointError(f"{name} is no adapter: it has no {file} (pickled weights are not loaded)")
    try:
        config = PeftConfig.from_pretrained(name, revision=checkpoint.adapter_revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name!r} is not an adapter: {' '.join(str(error).split())[:200]}") from error
    for_base = config.base_model_name_or_path
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing keys are refused below, not warned about
            peft = get_peft_model(module, config)
            result = peft.load_adapter(
                name,
                "default",
                is_trainable=False,
                autocast_adapter_dtype=False,
                revision=checkpoint.adapter_revision,
            )
    except (ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"adapter {name} does not fit base {checkpoint.base}; it was trained on {for_base} "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    for what, keys in (("missing", result.missing_keys), ("unexpected", result.unexpected_keys)):
        if keys:
            raise CheckpointError(
                f"adapter {name}: {len(keys)} {what} keys such as {keys[0]}; it was trained on {for_base}, "
                f"not on {checkpoint.base}"
            )
    return peft.eval()


@torch.no_grad()
def _prove_alive(model: Model) -> None:
    """Raise unless the adapter moves the logits of a probe batch: a dead one would be compared with itself unnoticed."""
    assert model.peft is not None
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.module.config.get_text_config(decoder=True).vocab_size)
    tokens = torch.randint(vocabulary, (4, 16), generator=generator).to(model.device)
    with_adapter = model.module(tokens, use_cache=False).logits
    with model.peft.disable_adapter():
        without = model.module(tokens, use_cache=False).logits
    if torch.equal(with_adapter, without):
        raise CheckpointError(
            f"adapter {model.checkpoint.adapter if model.checkpoint else model.name} is dead: the logits of a probe batch are the "
            "same with and without it; was it saved before training, or its weights left out?"
        )


def load(checkpoint: str | Path | Checkpoint, **arguments: Any) -> Model:
    """`Checkpoint.parse(checkpoint).load(...)`, for notebooks."""
    return Checkpoint.parse(checkpoint).load(**arguments)
