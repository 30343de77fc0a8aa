"""The files of a SentenceTransformer folder that stand beside its encoder: pooling, projections, prompts."""

import json
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download

from .checkpoint import find

MODULES = "modules.json"
OWN_FILES = (MODULES, "config_sentence_transformers.json", "sentence_*_config.json")
"""What stands in the folder itself, beside the encoder and its tokenizer; further modules have subfolders."""


def sentence_transformer_files(source: str) -> dict[str, Path]:
    """These files by their path in the folder; none where the source, a folder or a name on the Hub, is another kind.

    Raises:
        ValueError: the list of modules cannot be read, or names a place outside the folder.
    """
    listed = find(source, MODULES)
    if listed is None:
        return {}
    try:
        folders = [PurePosixPath(module["path"]) for module in json.loads(Path(listed).read_text())]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{listed} is not a list of modules with their paths: save the model again.") from None
    if outside := [str(path) for path in folders if path.is_absolute() or ".." in path.parts]:
        raise ValueError(f"{listed} names {outside[0]!r}, which is not inside the folder: correct it.")
    folders = [path for path in folders if path.parts]
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(source, allow_patterns=[*OWN_FILES, *(f"{path}/**" for path in folders)]))
    paths = [path for pattern in OWN_FILES for path in folder.glob(pattern)]
    paths += [path for name in folders for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in paths}
