"""What prepares images and sounds for a model? Its own processor, or as much of it as can exist here.

Video processors and Phi-4-multimodal's images need torchvision. A processor class that takes such a part refuses None
by a type check alone and calls the part only for inputs of its kind, so that everything else is the real processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from interp.errors import CheckpointError, UserError
from interp.files import load_json

OPTIONAL = ("video_processor", "image_processor")
LOADERS: dict[str, Any] = {
    "tokenizer": AutoTokenizer,
    "image_processor": AutoImageProcessor,
    "feature_extractor": AutoFeatureExtractor,
    "audio_processor": AutoFeatureExtractor,
}


def without(processor_class: type[ProcessorMixin], *missing: str) -> type[ProcessorMixin]:
    """The class with None accepted for the parts named in `missing`, such as `video_processor`, and saved without them."""

    class Partial(processor_class):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name in missing and argument is None:
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

        def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> list[str]:
            directory = Path(save_directory)
            self.tokenizer.save_pretrained(directory)
            if self.chat_template is not None:
                (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
            self.to_json_file(directory / "processor_config.json")
            return [str(directory / "processor_config.json")]

    # the name goes into processor_config.json, and this signature says which parts there are
    Partial.__name__ = Partial.__qualname__ = processor_class.__name__
    return Partial


def load_processor(name: str, model_type: str, revision: str | None = None) -> ProcessorMixin:
    """The processor of a checkpoint, without its video or image part where only that cannot exist here.

    Raises CheckpointError with the reason where there is none.
    """
    try:
        return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        known = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(model_type) or _saved_class(name), None)
        for part in OPTIONAL:
            if known is not None and part in known.get_attributes():
                try:
                    return load_without(known, name, part, revision=revision)
                except (OSError, ValueError, ImportError, TypeError, KeyError):
                    continue
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the processor of {name} cannot be made here: {reason}") from error


def _saved_class(name: str) -> str:
    """The class that a checkpoint directory says its processor is of; nothing where it says none."""
    try:
        return str(load_json(Path(name) / "processor_config.json").get("processor_class", ""))
    except UserError:
        return ""


def load_without(
    processor_class: type[ProcessorMixin], directory: str | Path, *missing: str, revision: str | None = None
) -> ProcessorMixin:
    """The processor of a checkpoint directory with None for the parts named in `missing`."""
    settings, _ = processor_class.get_processor_dict(directory, revision=revision)
    partial = without(processor_class, *missing)
    parts = [
        None
        if name in missing
        else LOADERS[name].from_pretrained(directory, revision=revision, trust_remote_code=False)
        for name in partial.get_attributes()
    ]
    found = partial.from_args_and_dict(parts, settings)
    if found.chat_template is None:
        found.chat_template = settings.get("chat_template")
    return found
