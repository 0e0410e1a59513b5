"""Uploads what a save writes to the Hugging Face hub, in one commit that keeps the model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypedDict

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of Python 3.11

CARD = "README.md"
# Files of an earlier upload that would not fit this one. Those that are uploaded again stay.
OF_A_MODEL = ["model*.safetensors", "model*.safetensors.index.json", "exit_table.safetensors", "exit_config.json"]


class PushOptions(TypedDict, total=False):
    """How something is uploaded.

    Attributes:
        commit_message: by default "Upload model".
        commit_description: of the commit.
        private: whether a new repository is private; by default as the account has it.
        token: of the hub; by default the one that is stored on this machine.
        revision: branch, which is created if there is none; by default the main branch.
        create_pr: whether to open a pull request instead.
        tags: further tags for the card's metadata.
    """

    commit_message: str | None
    commit_description: str | None
    private: bool | None
    token: bool | str | None
    revision: str | None
    create_pr: bool
    tags: str | Sequence[str] | None


def push(save: Callable[[Path], None], repo_id: str, **options: Unpack[PushOptions]) -> CommitInfo:
    """Create a repository of the hub if there is none, and upload what `save` writes, in one commit.

    The card (README.md) that the repository has is saved over as one in a folder is: `geep_triton.model_card` replaces its own
    part of it only. Weights and tables of an earlier upload that this one does not have are removed.

    Args:
        save: writes the files into a folder.
        repo_id: "name" or "organization/name".
        **options: see `PushOptions`.

    Returns:
        The commit, which is also its URL as a string.

    Raises:
        TypeError: there is no such option.
        OSError: the hub refuses or cannot be reached (`HfHubHTTPError` and others of `huggingface_hub`).
    """
    for name in options:
        if name not in PushOptions.__annotations__:
            raise TypeError(f"unknown option {name!r}; known: {', '.join(PushOptions.__annotations__)}")
    token, revision, create_pr = options.get("token"), options.get("revision"), options.get("create_pr", False)
    tags = options.get("tags")
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=options.get("private"), token=token, exist_ok=True).repo_id
    with TemporaryDirectory() as directory:
        folder = Path(directory)
        card = _card_of(api, repo_id, revision, token)
        if card is not None:
            (folder / CARD).write_bytes(card)
        save(folder)
        _add_tags(folder / CARD, [tags] if isinstance(tags, str) else list(tags or ()))
        if revision is not None and not revision.startswith("refs/pr"):
            _create_branch(api, repo_id, revision, token, create_pr)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=options.get("commit_message") or "Upload model",
            commit_description=options.get("commit_description"),
            token=token,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=OF_A_MODEL,
        )


def _card_of(api: HfApi, repo_id: str, revision: str | None, token: bool | str | None) -> bytes | None:
    """The repository's README.md. None: it has none."""
    try:
        return Path(api.hf_hub_download(repo_id, CARD, revision=revision, token=token)).read_bytes()
    except LocalEntryNotFoundError:  # the hub cannot be reached, which does not mean that there is none
        raise
    except (EntryNotFoundError, RevisionNotFoundError):
        return None


def _add_tags(path: Path, tags: Sequence[str]) -> None:
    """Add tags to a card's metadata."""
    if not tags or not path.is_file():
        return
    card = ModelCard.load(path)
    before = card.data.tags or []
    card.data.tags = [*before, *(tag for tag in tags if tag not in before)]
    card.save(path)


def _create_branch(api: HfApi, repo_id: str, revision: str, token: bool | str | None, create_pr: bool) -> None:
    """Create a branch. Who may only open a pull request may create none, and then it must be there."""
    try:
        api.create_branch(repo_id=repo_id, branch=revision, token=token, exist_ok=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 403 or not create_pr:
            raise
