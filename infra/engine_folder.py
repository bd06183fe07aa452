"""Engine folders: a TensorRT-LLM engine, its tokenizer, and a manifest that says what it was made from.

A folder without its manifest is half written, as the manifest is written last; one whose files differ from it was
changed or cut short. Neither is loaded.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from schemas.engine import FileMark, Manifest
from schemas.problems import ENGINE_FOLDER, Problem, first_error

MANIFEST = "nightcourt-engine.json"
REPORT = "nightcourt-verified.json"
"""The report of a verification that passed: it names the build that it is about."""


def read_manifest(folder: Path) -> Manifest:
    """Read what an engine folder is.

    Raises:
        Problem: it is none, or is half written; the detail says what to do.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        if not folder.is_dir():
            raise Problem(
                ENGINE_FOLDER, f"{folder} is no folder. Make one with `nightcourt engine build CHECKPOINT {folder}`."
            ) from None
        raise Problem(
            ENGINE_FOLDER,
            f"{folder} has no {MANIFEST}, so it is no engine folder, or one whose build was cut short. Build it with "
            "`nightcourt engine build`, into a folder that is not there yet.",
        ) from None
    except OSError as error:
        raise Problem(ENGINE_FOLDER, f"{path}: {error.strerror}.") from None
    except ValidationError as error:
        where, message = first_error(error)
        raise Problem(
            ENGINE_FOLDER, f"{path} cannot be understood ({where or 'the file'}: {message}). Build the engine anew."
        ) from None


def build_of(manifest: Manifest) -> str:
    """Twelve characters that no other build shares."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()[:12]


def check_files(folder: Path, manifest: Manifest, *, contents: bool) -> None:
    """See that an engine folder holds what its manifest lists.

    Args:
        folder: the engine folder.
        manifest: what it says of itself.
        contents: whether to read every byte, which takes a minute or so, or to compare sizes alone.

    Raises:
        Problem: a file is missing or is another one.
    """
    for name, mark in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            same = size == mark.size and (not contents or hash_file(path) == mark.sha256)
        except OSError as error:
            raise Problem(
                ENGINE_FOLDER, f"{path} cannot be read ({error.strerror}). Copy the folder again, whole."
            ) from None
        if not same:
            raise Problem(
                ENGINE_FOLDER,
                f"{path} is not the file that was built ({size} bytes, {mark.size} were built): the folder was changed "
                "or copied in part. Copy it again, or build it anew.",
            )


def mark_files(folder: Path) -> dict[str, FileMark]:
    """Take down every file of a folder that is to become an engine folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in {MANIFEST, REPORT})
    return {
        path.relative_to(folder).as_posix(): FileMark(size=path.stat().st_size, sha256=hash_file(path))
        for path in files
    }


def hash_file(path: Path) -> str:
    """Hash a file's bytes: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Iterable[Path]) -> str:
    """Hash files with their names, in the order of these: 'sha256:...'."""
    lines = "".join(f"{path.name} {hash_file(path)}\n" for path in sorted(paths, key=lambda path: path.name))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def is_verified(folder: Path, manifest: Manifest) -> bool:
    """Whether `nightcourt engine verify` passed this very build."""
    try:
        return f'"build":"{build_of(manifest)}"' in (folder / REPORT).read_text().replace(" ", "")
    except OSError:
        return False


def describe(folder: Path) -> str:
    """Say in words what an engine folder holds, without reading the weights.

    Raises:
        Problem: it cannot be used.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest, contents=False)
    verified = "verified" if is_verified(folder, manifest) else "not verified yet: run `nightcourt engine verify`"
    return (
        f"{folder} ({manifest.model}, {manifest.quantisation}, for GPUs of architecture {manifest.gpu_architecture}, "
        f"TensorRT-LLM {manifest.tensorrt_llm}, {verified})"
    )
