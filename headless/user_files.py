"""Files that the editor keeps for its user (saved workflows, templates), below one folder."""

import os
import tempfile
import uuid
from pathlib import Path


def confined(root: Path, *parts: str) -> Path | None:
    """``root`` joined with ``parts``, or None where that would lie outside ``root`` (links followed)."""
    try:
        path = root.joinpath(*parts).resolve()
    except (ValueError, OSError):  # a null byte, a name that is too long
        return None
    return path if path.is_relative_to(root.resolve()) else None


def takes_a_file(path: Path) -> bool:
    """Whether a file may be written there: no folder has the name, and no file stands where a folder is needed."""
    return not path.is_dir() and next(folder for folder in path.parents if folder.exists()).is_dir()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class UserFiles:
    """The user's folder; a folder that goes with the process where none is given."""

    def __init__(self, folder: Path | None = None):
        self._lent = None if folder else tempfile.TemporaryDirectory(prefix="trajectory-user-")
        self.folder = folder or Path(self._lent.name)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path | None:
        """Path of a file of the user, None for a name that leads out of the folder (or is the folder)."""
        path = confined(self.folder, name)
        return None if path == self.folder.resolve() else path

    def describe(self, path: Path, relative_to: Path | None = None) -> dict:
        """{"path", "size", "modified", "created"}; times in milliseconds since 1970."""
        found = path.stat()
        return {
            "path": path.relative_to((relative_to or self.folder).resolve()).as_posix(),
            "size": found.st_size,
            "modified": int(found.st_mtime * 1000),
            "created": int(found.st_ctime * 1000),
        }

    def listing(self, name: str, recurse: bool) -> list[Path] | None:
        """Files in a folder of the user, sorted; None where it does not exist."""
        folder = self.path(name)
        if folder is None or not folder.is_dir():
            return None
        return sorted(p for p in (folder.rglob("*") if recurse else folder.glob("*")) if p.is_file())

    def move(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)

    def close(self) -> None:
        """Delete a folder that was made for this process."""
        if self._lent is not None:
            self._lent.cleanup()
