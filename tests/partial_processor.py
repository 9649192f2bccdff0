"""How is a processor used without a part that cannot exist here, such as the video half of an image processor?

Video processors and Phi-4-multimodal's images need torchvision. A processor class that takes such a part refuses None
by a type check alone and calls the part only for inputs of its kind, so that everything else is the real processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, ProcessorMixin

LOADERS = {
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


def load_without(
    processor_class: type[ProcessorMixin], directory: str | Path, *missing: str
) -> ProcessorMixin:
    """The processor of a checkpoint directory with None for the parts named in `missing`."""
    settings, _ = processor_class.get_processor_dict(directory)
    partial = without(processor_class, *missing)
    parts = [
        None if name in missing else LOADERS[name].from_pretrained(directory)
        for name in partial.get_attributes()
    ]
    found = partial.from_args_and_dict(parts, settings)
    if found.chat_template is None:
        found.chat_template = settings.get("chat_template")
    return found
