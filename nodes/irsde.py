"""IR-SDE and Refusion: a MODEL that restores pictures, and the noise levels it was trained at as SIGMAS."""

import comfy.sd
import torch
from comfy_api.latest import io

from ..models import checkpoints, conditional_unet, nafnet
from ..samplers.ir_sde import IRSDE, MAX_SIGMA, SPACINGS, ir_sde_schedule
from . import _files
from ._residual import residual_model
from ._restore import dtype_input, dtype_of
from ._schema import kw, schema

CATEGORY = "trajectory/restoration"
FOLDER = "irsde"
CUSTOM = "custom"
REFUSION = "Refusion"
NETWORKS = {"init_conv.weight": conditional_unet.read, "intro.weight": nafnet.read}
"""Key that a file of the class alone has -> its reader. The first layer reads a state and a degraded picture."""
CHANNELS = 3
MEMORY = 0.2  # 8 kB a pixel; ConditionalUNet takes 6.5, most of it for the attention at full size


class IRSDELoader(io.ComfyNode):
    """MODEL of a published file, with what it needs around it."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryIRSDELoader",
            display_name="IR-SDE Loader",
            category=CATEGORY,
            description=(
                "Loads a network of IR-SDE or Refusion as a MODEL that removes rain, blur, shadows or holes, or "
                "sharpens: for KSampler and every sampler, on pictures of any size."
            ),
            search_aliases=["ir-sde", "refusion", "mean reverting", "derain", "deblur", "deshadow", "inpaint",
                            "super resolution", "restore", "nafnet"],
            inputs=[
                io.Combo.Input("file", options=_files.files(FOLDER), tooltip=(
                    "A file in models/irsde: .pth as its authors publish it, or safetensors. Its network is told from "
                    "its weights.")),
                io.Combo.Input("task", options=[*MAX_SIGMA, CUSTOM], default="derain", tooltip=(
                    "What the file was trained for, which says its max_sigma: derain and deblur 10, deshadow, "
                    "inpainting and super-resolution 30, Refusion (any task) 50. custom: the input max_sigma.")),
                kw(io.Float.Input, "max_sigma", default=10.0, min=0.1, max=1000.0, step=0.1, advanced=True, tooltip=(
                    "Noise on the degraded picture at the start, in levels of 0 to 255, for task custom alone. It is "
                    "max_sigma in the options that the network was trained with; another value leaves noise in the "
                    "result.")),
                kw(io.Int.Input, "T", default=100, min=2, max=10000, advanced=True, tooltip=(
                    "Noise levels the network was trained at.")),
                kw(io.Float.Input, "eps", default=0.005, min=0.0001, max=0.5, step=0.0001, round=0.00001,
                    advanced=True, tooltip="Share of the clean picture that is left at the largest noise level."),
                dtype_input(("auto", "fp16", "fp32", "bf16")),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip=(
                    "Restores the latent it is given: connect the degraded picture, encoded by vae, as latent_image.")),
                io.Conditioning.Output(display_name="conditioning", tooltip=(
                    "Empty, for the inputs positive and negative of a sampler: the model reads no text.")),
                io.Vae.Output(display_name="vae", tooltip=(
                    "Pictures as latents and back without loss: the model works on pixels.")),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, file, task, max_sigma, T, eps, dtype):
        if task not in (*MAX_SIGMA, CUSTOM):
            raise ValueError(f"task is {task!r}; choose one of {', '.join((*MAX_SIGMA, CUSTOM))}")
        dtype = dtype_of(dtype)
        checkpoint = _files.read(FOLDER, file, "file")
        try:
            network = load_network(checkpoints.state_dict(checkpoint), dtype)
        except ValueError as error:
            raise ValueError(f"file is {file!r}: {error}") from error
        check_task(network, task)
        process = IRSDE(MAX_SIGMA.get(task, max_sigma), T, eps)
        model = residual_model(network, process, CHANNELS, memory=MEMORY)
        model.model.latent_format.latent_rgb_factors = torch.eye(CHANNELS).tolist()  # for previews
        vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)  # a half would round pixels
        return io.NodeOutput(model, [[torch.zeros(1, 1, 1), {}]], vae)


def load_network(weights, dtype):
    """The network of {key: tensor}. Raises ValueError where this node has none that could be it."""
    for key, read in NETWORKS.items():
        if key in weights:
            shape = weights[key].shape
            if shape[1:2] != (2 * CHANNELS,):
                raise ValueError(f"its first layer has the shape {list(shape)}, and one that reads a state and its "
                                 f"degraded picture has {2 * CHANNELS} channels in. Networks for denoising (3) and for "
                                 "latents (16) are not run here; choose one that restores pictures")
            return read(weights, dtype)
    raise ValueError("it holds neither a ConditionalUNet nor a ConditionalNAFNet; choose a file of IR-SDE or Refusion")


def check_task(network, task):
    """Raise ValueError for a task whose published files are of the other class, so that max_sigma would be wrong."""
    found = isinstance(network, nafnet.ConditionalNAFNet)
    if task != CUSTOM and found != (task == REFUSION):
        kind, fix = ("Refusion's", REFUSION) if found else ("IR-SDE's", "the task the file is for")
        raise ValueError(f"task is {task!r}, whose max_sigma is {MAX_SIGMA[task]:g}, and the file's network is {kind}; "
                         f"choose {fix}, or custom with the max_sigma it was trained with")


class IRSDEScheduler(io.ComfyNode):
    """SIGMAS of IR-SDE."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryIRSDEScheduler",
            display_name="IR-SDE Scheduler",
            category=CATEGORY,
            description=(
                "SIGMAS for a model of IR-SDE or Refusion: so many of the noise levels it was trained at, or levels "
                "even in log-SNR between the same ends."
            ),
            search_aliases=["ir-sde", "refusion", "mean reverting", "sigmas", "scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="Of IR-SDE Loader, whose levels these are; others are refused."),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip=(
                    "Number of intervals. As many as the model has levels (100) is the authors' run; MR Sampler does "
                    "with 5 to 20.")),
                io.Combo.Input("spacing", options=list(SPACINGS), default="index", tooltip=(
                    "index: levels of the model's own table, evenly taken; the better choice. logSNR: even in the "
                    "logarithm of sigma, with more steps at low noise; any number of them.")),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels, falling to 0.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, steps, spacing):
        process = getattr(model.get_model_object("model_sampling"), "process", None)
        if not isinstance(process, IRSDE):
            raise ValueError("model has not the noise levels of IR-SDE; connect the model of IR-SDE Loader")
        return io.NodeOutput(torch.tensor(ir_sde_schedule(process.sigmas, steps, spacing)))


NODES = [IRSDELoader, IRSDEScheduler]
