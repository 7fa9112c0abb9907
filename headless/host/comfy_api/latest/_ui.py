"""The namespace `ui`: pictures and text that a node shows. Saved pictures carry the prompt and the workflow."""

import json
import os
import random

import folder_paths
import torch
from _core import picture, write_picture
from comfy.cli_args import args
from PIL.PngImagePlugin import PngInfo

from ._node import ComfyNode, _UIOutput
from ._types import FolderType

__all__ = ["ImageSaveHelper", "PreviewImage", "PreviewMask", "PreviewText", "SavedImages", "SavedResult"]


class SavedResult(dict):
    """Where a file lies: {"filename", "subfolder", "type"}."""

    def __init__(self, filename: str, subfolder: str, type: FolderType):
        super().__init__(filename=filename, subfolder=subfolder, type=type.value)

    @property
    def filename(self):
        return self["filename"]

    @property
    def subfolder(self):
        return self["subfolder"]

    @property
    def type(self):
        return FolderType(self["type"])


class SavedImages(_UIOutput):
    def __init__(self, results: list[SavedResult], is_animated: bool = False):
        self.results = results
        self.is_animated = is_animated

    def as_dict(self):
        return {"images": self.results} | ({"animated": (True,)} if self.is_animated else {})


class ImageSaveHelper:
    """Writes IMAGE batches [B, H, W, C] in 0..1; the hidden values of the running node class `cls` become metadata."""

    @staticmethod
    def save_images(images, filename_prefix: str, folder_type: FolderType, cls: type[ComfyNode] | None,
                    compress_level=4) -> list[SavedResult]:
        """One PNG an image."""
        folder, name, counter, subfolder = _destination(filename_prefix, folder_type, images)
        metadata = _png_metadata(cls)
        results = []
        for index, image in enumerate(images):
            file = f"{name.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
            write_picture(picture(image), os.path.join(folder, file), pnginfo=metadata, compress_level=compress_level)
            results.append(SavedResult(file, subfolder, folder_type))
        return results

    @staticmethod
    def get_save_images_ui(images, filename_prefix: str, cls: type[ComfyNode] | None, compress_level=4) -> SavedImages:
        return SavedImages(ImageSaveHelper.save_images(images, filename_prefix, FolderType.output, cls, compress_level))

    @staticmethod
    def save_animated_webp(images, filename_prefix: str, folder_type: FolderType, cls: type[ComfyNode] | None,
                           fps: float, lossless: bool, quality: int, method: int) -> SavedResult:
        """The whole batch as one animated WebP."""
        folder, name, counter, subfolder = _destination(filename_prefix, folder_type, images)
        first, *rest = [picture(image) for image in images]
        file = f"{name}_{counter:05}_.webp"
        write_picture(
            first, os.path.join(folder, file), save_all=True, append_images=rest, duration=int(1000.0 / fps),
            exif=_exif(first, cls), lossless=lossless, quality=quality, method=method)
        return SavedResult(file, subfolder, folder_type)

    @staticmethod
    def get_save_animated_webp_ui(images, filename_prefix: str, cls: type[ComfyNode] | None, fps: float, lossless: bool,
                                  quality: int, method: int) -> SavedImages:
        saved = ImageSaveHelper.save_animated_webp(images, filename_prefix, FolderType.output, cls, fps, lossless,
                                                   quality, method)
        return SavedImages([saved], is_animated=len(images) > 1)


class PreviewImage(_UIOutput):
    """IMAGE batch [B, H, W, C] shown on the node, kept in the temp folder."""

    def __init__(self, image: torch.Tensor, animated: bool = False, cls: type[ComfyNode] = None, **kwargs):
        # Names only have to differ; `random` is not a generator that any result depends on.
        unique = "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=5))
        self.values = ImageSaveHelper.save_images(image, f"ComfyUI_temp_{unique}", FolderType.temp, cls, 1)
        self.animated = animated

    def as_dict(self):
        return {"images": self.values, "animated": (self.animated,)}


class PreviewMask(PreviewImage):
    """MASK batch [B, H, W] shown as grey pictures."""

    def __init__(self, mask: torch.Tensor, animated: bool = False, cls: type[ComfyNode] = None, **kwargs):
        grey = mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3)
        super().__init__(grey, animated, cls, **kwargs)


class PreviewText(_UIOutput):
    """Text below the node."""

    def __init__(self, value: str, **kwargs):
        self.value = value

    def as_dict(self):
        return dict(text=(self.value,))


def _destination(filename_prefix, folder_type, images):
    """(folder, name, first counter, subfolder) for a batch of images."""
    root = {FolderType.input: folder_paths.get_input_directory, FolderType.output: folder_paths.get_output_directory,
            FolderType.temp: folder_paths.get_temp_directory}[folder_type]()
    height, width = images[0].shape[:2]
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, root, width, height)
    return folder, name, counter, subfolder


def _hidden_metadata(cls):
    """{"prompt": API prompt, "workflow": UI graph, ...} of the running node."""
    if args.disable_metadata or cls is None or not cls.hidden:
        return {}
    prompt = {} if cls.hidden.prompt is None else {"prompt": cls.hidden.prompt}
    return prompt | (cls.hidden.extra_pnginfo or {})


def _png_metadata(cls):
    """Text chunks, one a key, values as JSON."""
    chunks = PngInfo()
    for key, value in _hidden_metadata(cls).items():
        chunks.add_text(key, json.dumps(value))
    return chunks


def _exif(picture, cls):
    """EXIF tags 0x0110 "prompt:JSON", and 0x010f downwards "key:JSON" for the others: where the editor looks."""
    exif = picture.getexif()
    metadata = _hidden_metadata(cls)
    if "prompt" in metadata:
        exif[0x0110] = f"prompt:{json.dumps(metadata.pop('prompt'))}"
    for offset, (key, value) in enumerate(metadata.items()):
        exif[0x010F - offset] = f"{key}:{json.dumps(value)}"
    return exif
