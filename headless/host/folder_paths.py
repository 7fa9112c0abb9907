"""Where inputs, outputs and models lie: below the working directory, unless the caller of the embedded host sets it."""

import mimetypes
import os
import time

from comfy.cli_args import args

supported_pt_extensions = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}
base_path = os.path.abspath(args.base_directory or os.getcwd())
models_dir = os.path.join(base_path, "models")
input_directory, output_directory, temp_directory, user_directory = (
    os.path.join(base_path, folder) for folder in ("input", "output", "temp", "user"))

_MODEL_FOLDERS = {
    "checkpoints": ["checkpoints"],
    "clip_vision": ["clip_vision"],
    "controlnet": ["controlnet", "t2i_adapter"],
    "diffusion_models": ["unet", "diffusion_models"],
    "embeddings": ["embeddings"],
    "loras": ["loras"],
    "text_encoders": ["text_encoders", "clip"],
    "upscale_models": ["upscale_models"],
    "vae": ["vae"],
    "vae_approx": ["vae_approx"],
}
folder_names_and_paths = {
    name: ([os.path.join(models_dir, folder) for folder in folders], supported_pt_extensions)
    for name, folders in _MODEL_FOLDERS.items()}
folder_names_and_paths["custom_nodes"] = ([os.path.join(base_path, "custom_nodes")], set())

extension_mimetypes_cache = {"webp": "image", "fbx": "model"}


def map_legacy(folder_name):
    return {"unet": "diffusion_models", "clip": "text_encoders"}.get(folder_name, folder_name)


# --- the four directories --------------------------------------------------------------------------------------------


def set_output_directory(output_dir):
    global output_directory
    output_directory = output_dir


def set_temp_directory(temp_dir):
    global temp_directory
    temp_directory = temp_dir


def set_input_directory(input_dir):
    global input_directory
    input_directory = input_dir


def set_user_directory(user_dir):
    global user_directory
    user_directory = user_dir


def get_output_directory():
    return output_directory


def get_temp_directory():
    return temp_directory


def get_input_directory():
    return input_directory


def get_user_directory():
    return user_directory


def get_directory_by_type(type_name):
    """Directory of the types "output", "temp" and "input", which a client may read; None for any other."""
    getters = {"output": get_output_directory, "temp": get_temp_directory, "input": get_input_directory}
    return getters[type_name]() if type_name in getters else None


# --- files that a workflow names -------------------------------------------------------------------------------------


def _is_within(directory, target):
    """Whether the target, symbolic links followed, lies in the directory."""
    try:
        directory = os.path.realpath(directory)
        return os.path.commonpath((directory, os.path.realpath(target))) == directory
    except ValueError:  # another drive, or a null byte in the name
        return False


def annotated_filepath(name):
    """("a.png [temp]") -> ("a.png", temp directory); without an annotation the directory is None."""
    for type_name in ("output", "input", "temp"):
        annotation = f"[{type_name}]"
        if name.endswith(annotation):
            return name[:-len(annotation) - 1], get_directory_by_type(type_name)
    return name, None


def get_annotated_filepath(name, default_dir=None):
    """Path of a file in the annotated, given or input directory. Raises ValueError when the name leads out of it."""
    name, directory = annotated_filepath(name)
    directory = directory or default_dir or get_input_directory()
    path = os.path.abspath(os.path.join(directory, name))
    if not _is_within(directory, path):
        raise ValueError(f"Invalid file path: {name!r}")
    return path


def exists_annotated_filepath(name):
    try:
        return os.path.exists(get_annotated_filepath(name))
    except ValueError:
        return False


def filter_files_content_types(files, content_types):
    """The files whose extension means one of "image", "video", "audio", "model" (3D), in their order."""
    return [file for file in files if _content_type(file) in content_types]


def _content_type(file):
    """What comes before the slash of the file's MIME type, or None where that is unknown."""
    _, _, extension = file.rpartition(".")
    known = extension_mimetypes_cache.get(extension)
    if known is None:
        guessed = mimetypes.guess_type(file, strict=False)[0]
        if guessed:
            known = extension_mimetypes_cache[extension] = guessed.partition("/")[0]
    return known


# --- model folders ---------------------------------------------------------------------------------------------------


def add_model_folder_path(folder_name, full_folder_path, is_default=False):
    """Add a folder to a kind of models, first if it is the default; a new kind accepts all extensions."""
    paths, _ = folder_names_and_paths.setdefault(map_legacy(folder_name), ([], set()))
    if full_folder_path in paths and is_default:
        paths.remove(full_folder_path)
    if full_folder_path not in paths:
        paths.insert(0 if is_default else len(paths), full_folder_path)


def get_folder_paths(folder_name):
    return list(folder_names_and_paths[map_legacy(folder_name)][0])


def recursive_search(directory, excluded_dir_names=None):
    """(files relative to the directory, {folder: modification time})."""
    files, folders = [], {}
    for path, subfolders, names in os.walk(directory, followlinks=True):
        subfolders[:] = [name for name in subfolders if name not in (excluded_dir_names or ())]
        folders[path] = os.path.getmtime(path)
        files += [os.path.relpath(os.path.join(path, name), directory) for name in names]
    return files, folders


def filter_files_extensions(files, extensions):
    return sorted(file for file in files if not extensions or os.path.splitext(file)[1].lower() in extensions)


def get_filename_list(folder_name):
    """All model files of a kind, relative to their folders, sorted."""
    paths, extensions = folder_names_and_paths[map_legacy(folder_name)]
    found = {file for path in paths for file in recursive_search(path, [".git"])[0]}
    return filter_files_extensions(found, extensions)


def get_full_path(folder_name, filename):
    """Path of the first existing model file of that name, or None; the name cannot lead out of the folders."""
    inside = os.path.relpath(os.path.join("/", filename), "/")
    for path in folder_names_and_paths.get(map_legacy(folder_name), ([], set()))[0]:
        full_path = os.path.join(path, inside)
        if os.path.isfile(full_path):
            return full_path
    return None


def get_full_path_or_raise(folder_name, filename):
    found = get_full_path(folder_name, filename)
    if found is None:
        raise FileNotFoundError(f"There is no file '{filename}' in the folders for {folder_name}.")
    return found


# --- names of results ------------------------------------------------------------------------------------------------


def _fill_in(prefix, image_width, image_height):
    now = time.localtime()
    values = {
        "width": image_width, "height": image_height,
        "year": now.tm_year, "month": f"{now.tm_mon:02}", "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}", "minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}"}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", str(value))
    return prefix


def _next_counter(folder, filename):
    """One more than the largest number of the files filename_<number>_..., 1 for none."""
    start = os.path.normcase(filename) + "_"
    counters = [0]
    for name in os.listdir(folder):
        if os.path.normcase(name).startswith(start):
            digits = name[len(start):].split(".")[0].split("_")[0]
            counters.append(int(digits) if digits.isdigit() else 0)
    return max(counters) + 1


def get_save_image_path(filename_prefix, output_dir, image_width=0, image_height=0):
    """(folder, file name, next counter, subfolder, filled-in prefix) for results; makes the folder.

    `%width%`, `%height%`, `%year%`, `%month%`, `%day%`, `%hour%`, `%minute%` and `%second%` in the prefix are filled
    in, and a prefix with slashes names a subfolder. Raises Exception when that would lie outside `output_dir`.
    """
    filename_prefix = _fill_in(filename_prefix, image_width, image_height)
    subfolder, filename = os.path.split(os.path.normpath(filename_prefix))
    folder = os.path.join(output_dir, subfolder)
    if not _is_within(output_dir, folder):
        raise Exception(
            f"Saving outside the output folder is not allowed: {os.path.abspath(folder)} is not in {output_dir}.")
    os.makedirs(folder, exist_ok=True)
    return folder, filename, _next_counter(folder, filename), subfolder, filename_prefix
