"""AdcSR: four times larger in one call of a small network, in a node of its own and in the host's."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..models import adcsr as models
from ..models import checkpoints
from ..restoration import colour_fix
from ..restoration.tiling import TilePlan
from ._files import files, read
from ._restore import color_fix_input, dtype_input, dtype_of, each_frame, enlarged, in_tiles, loaded, patcher_of
from ._schema import kw, schema
from ._types import ADCSR

CATEGORY = "trajectory/restoration"
FOLDER = "adcsr"
OWN_FIX = "adcsr"
MEMORY = 5500
"""Numbers that the network holds at once for each pixel of a tile (measured: see benchmarks/adcsr.py)."""
SMALLEST_TILE = 128


def weights_of(name, file, rename):
    """{key of our network: tensor} of a choice of the input `name`. Raises ValueError naming it, the file and the fix.

    rename: of models.adcsr, for the keys of this kind of file.
    """
    checkpoint = read(FOLDER, file, name)
    try:
        return rename(checkpoints.state_dict(checkpoint))
    except ValueError as error:
        raise ValueError(f"{name} is {file!r}, but {error}; choose the other file, or fetch this one again") from error


class Upscaler:
    """AdcSR as the UPSCALE_MODEL of 'Upscale Image (using Model)' and of tilers in other packs, which bring the tiles.

    Its colours are fixed by wavelets, which see 31 pixels of the result: statistics of a tile would be a patchwork.
    """

    scale, input_channels, output_channels = models.SCALE, 3, 3

    def __init__(self, patcher):
        self.patcher = patcher

    @property
    def model(self):
        return self.patcher.model

    def to(self, device):
        """Load the network if it computes there. Moving it away is left to the host, which knows when it must."""
        if torch.device(device).type == self.patcher.load_device.type:
            loaded(self.patcher)
        return self

    def __call__(self, picture):
        """[B, 3, H, W] in 0..1 -> [B, 3, 4H, 4W] in 0..1, of any size. An alpha channel is left out."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        picture = picture[:, :3]
        plan = TilePlan(*picture.shape[-2:], tile=0, overlap=0, align=models.ALIGN, scale=models.SCALE)
        made = plan.run(self.model, plan.pad(picture))
        return colour_fix.fix("wavelet", made, enlarged(picture.float(), models.SCALE))


class AdcSRLoader(io.ComfyNode):
    """ADCSR and UPSCALE_MODEL of the authors' two files."""

    @classmethod
    def define_schema(cls):
        found = files(FOLDER)
        return schema(
            node_id="TrajectoryAdcSRLoader",
            display_name="AdcSR Loader",
            category=CATEGORY,
            description=(
                "Loads AdcSR, which makes pictures four times larger in one call of a small network: no text, no "
                "other model."
            ),
            search_aliases=["super resolution", "upscale", "one step", "compression", "restore"],
            inputs=[
                io.Combo.Input("net", options=found, tooltip=(
                    "net_params_200.pkl, or what you converted it to, in models/adcsr.")),
                io.Combo.Input("decoder", options=found, tooltip=(
                    "halfDecoder.ckpt, or what you converted it to, in models/adcsr.")),
                dtype_input(),
            ],
            outputs=[
                ADCSR.Output(display_name="adcsr", tooltip="For AdcSR Upscale."),
                io.UpscaleModel.Output(display_name="upscale_model", tooltip=(
                    "The same network for Upscale Image (using Model) and other nodes that take an upscale model.")),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, net, decoder, dtype):
        dtype = dtype_of(dtype)
        parts = weights_of("net", net, models.net_weights), weights_of("decoder", decoder, models.decoder_weights)
        try:
            patcher = patcher_of(models.network(*parts, dtype))
        except ValueError as error:
            raise ValueError(f"net {net!r} and decoder {decoder!r} give no AdcSR: {error}. Choose the two files of one "
                             "model, or fetch them again") from error
        return io.NodeOutput(patcher, Upscaler(patcher))


class AdcSRUpscale(io.ComfyNode):
    """IMAGE four times larger."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryAdcSRUpscale",
            display_name="AdcSR Upscale",
            category=CATEGORY,
            description=(
                "Makes pictures and frames four times larger with AdcSR, and removes noise, blur and compression. Any "
                "size, in tiles; the colours are those of the whole picture."
            ),
            search_aliases=["super resolution", "upscale", "one step", "compression", "restore", "4x"],
            inputs=[
                ADCSR.Input("adcsr", tooltip="From AdcSR Loader."),
                io.Image.Input("image", tooltip="Pictures or frames of any size. Alpha is enlarged and kept."),
                io.Int.Input("tile", default=512, min=0, max=4096, step=16, tooltip=(
                    "Longest side of a tile, in pixels of the image. 0: the whole picture at once. Smaller needs less "
                    "memory and sees less of the picture; out of memory it is halved by itself.")),
                kw(io.Int.Input, "overlap", default=32, min=0, max=512, step=16, advanced=True, tooltip=(
                    "Pixels of the image that two tiles share; they are blended there. Below 32 seams may show.")),
                color_fix_input(OWN_FIX, {
                    OWN_FIX: "mean and contrast of the small picture in each channel, as the authors do."}),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="Four times as wide and as high.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, adcsr, image, tile, overlap, color_fix):
        def network(crop, _progress):
            return adcsr.model(crop.to(adcsr.load_device))

        def restore(picture, progress):
            height, width = TilePlan(*picture.shape[-2:], tile, overlap, models.ALIGN).boxes[0][2:]
            loaded(adcsr, memory=MEMORY * height * width * adcsr.model.dtype.itemsize)
            return in_tiles(network, picture, tile=tile, overlap=overlap, align=models.ALIGN, scale=models.SCALE,
                            progress=progress, least=SMALLEST_TILE)  # fmt: skip

        return io.NodeOutput(each_frame(image, models.SCALE, restore, color_fix, {OWN_FIX: colour_fix.adcsr}))


NODES = [AdcSRLoader, AdcSRUpscale]
