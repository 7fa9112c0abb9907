"""Animations."""

import json
import os

import _core
import folder_paths
from comfy.cli_args import args


class SaveAnimatedWEBP:
    """The whole batch as one animated WebP whose EXIF data holds the prompt and the workflow."""

    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    CATEGORY = "image/animation"

    methods = {"default": 4, "fastest": 0, "slowest": 6}

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI"}),
                "fps": ("FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "lossless": ("BOOLEAN", {"default": True}),
                "quality": ("INT", {"default": 80, "min": 0, "max": 100}),
                "method": (list(cls.methods),),
            },
            "hidden": _core.SAVE_METADATA,
        }

    def save_images(self, images, fps, filename_prefix, lossless, quality, method, prompt=None, extra_pnginfo=None):
        height, width = images[0].shape[:2]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height)
        first, *rest = [_core.picture(image) for image in images]
        file = f"{name}_{counter:05}_.webp"
        _core.write_picture(
            first, os.path.join(folder, file), save_all=True, append_images=rest, duration=int(1000.0 / fps),
            exif=self._exif(first, prompt, extra_pnginfo), lossless=lossless, quality=quality,
            method=self.methods[method])
        saved = [{"filename": file, "subfolder": subfolder, "type": "output"}]
        return {"ui": {"images": saved, "animated": (len(images) != 1,)}}

    @staticmethod
    def _exif(picture, prompt, extra_pnginfo):
        """Tag 0x0110 is "prompt:JSON"; tags 0x010f downwards are "key:JSON", one each."""
        exif = picture.getexif()
        if args.disable_metadata:
            return exif
        if prompt is not None:
            exif[0x0110] = f"prompt:{json.dumps(prompt)}"
        for offset, (key, value) in enumerate((extra_pnginfo or {}).items()):
            exif[0x010F - offset] = f"{key}:{json.dumps(value)}"
        return exif


NODE_CLASS_MAPPINGS = {"SaveAnimatedWEBP": SaveAnimatedWEBP}
