"""Weights that a person puts into the host's model folders: listed for a node's choices, read as data."""

import os

import folder_paths

from ..models import checkpoints


def files(folder):
    """Names of the weight files in models/`folder` and what extra_model_paths adds to it, for a Combo."""
    folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
    paths, extensions = folder_paths.folder_names_and_paths[folder]
    if not extensions:  # else the host would list every file
        folder_paths.folder_names_and_paths[folder] = (paths, folder_paths.supported_pt_extensions)
    return folder_paths.get_filename_list(folder)


def path_of(folder, file, name):
    """Full path of a choice of the input `name`. Raises ValueError naming input, value and fix."""
    if file not in files(folder):
        raise ValueError(f"{name} is {file!r}, which is no file in models/{folder}; put the weights there and choose "
                         "them from the list")
    return folder_paths.get_full_path_or_raise(folder, file)


def read(folder, file, name):
    """Contents of a choice of the input `name`: nested dicts and lists of tensors and plain values, never code.

    Raises ValueError naming input, value and fix.
    """
    path = path_of(folder, file, name)
    try:
        return checkpoints.read(path)
    except ValueError as error:
        raise ValueError(f"{name}: {error}. Fetch it again from where its authors publish it, or choose another "
                         "file") from error
