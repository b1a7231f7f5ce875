"""Bringing a folder to a repository of the Hugging Face Hub, whole and verified: what data sets and models share.

Every step can be repeated. Files that the repository already holds, by size and hash, are not sent again; the rest
goes up in commits of a few files, so that an upload that breaks off loses little. A tag is set last, on a commit whose
hashes were compared with the local files, and is never moved.
"""

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm

from ..build.engines import Unfinished
from ..files import file_sha256

TRIES = 5
PAUSE_S = 2.0  # before the second try; each further pause is twice as long
FILES_PER_COMMIT = 20  # of 80 MB each, for a shard of photos: what a broken upload may lose
PLACEHOLDERS = ("[More Information Needed]", "TAKEDOWN-CONTACT")
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write to this repository."
_PASSING = {408, 429, 500, 502, 503, 504}
# huggingface_hub 1 and 2 are built on different HTTP libraries, whose errors share this name.
_TransportError: type[Exception] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")

T = TypeVar("T")


@dataclass(frozen=True)
class LocalFile:
    """A file to be released, and its hashes as the Hub names them."""

    path: Path

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """What the Hub says of a file outside git (LFS, Xet)."""
        return file_sha256(self.path)

    @cached_property
    def blob_id(self) -> str:
        """What the Hub says of a file inside git."""
        return hashlib.sha1(b"blob %d\0" % self.size + self.path.read_bytes()).hexdigest()

    def is_same(self, remote: Any) -> bool:
        """Whether a `RepoFile` of the Hub has this content."""
        if remote.lfs is not None:
            return bool(remote.lfs.size == self.size and remote.lfs.sha256 == self.sha256)
        return bool(remote.size == self.size and remote.blob_id == self.blob_id)


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, there or not yet. The token is the one that huggingface_hub finds."""

    repo_id: str
    repo_type: str
    api: HfApi

    def info(self) -> Any | None:
        """What the Hub says of it (`sha`, `private`), or None if there is none that this token may see."""
        try:
            return reached(lambda: self.api.repo_info(self.repo_id, repo_type=self.repo_type))
        except RepositoryNotFoundError:
            return None

    def files(self, revision: str) -> dict[str, Any]:
        """The `RepoFile` of every path at a revision."""
        tree = reached(
            lambda: list(
                self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision, repo_type=self.repo_type)
            )
        )
        return {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}

    def tagged_files(self, tag: str) -> dict[str, Any] | None:
        """The files of a tag, or None if there is no such tag."""
        refs = reached(lambda: self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type))
        return self.files(tag) if tag in {ref.name for ref in refs.tags} else None

    def read(self, path: str, revision: str) -> str:
        """The text of a small file."""
        stored = reached(
            lambda: self.api.hf_hub_download(self.repo_id, path, revision=revision, repo_type=self.repo_type)
        )
        return Path(stored).read_text(encoding="utf-8")


def changed_files(files: Mapping[str, LocalFile], remote: Mapping[str, Any]) -> list[str]:
    """Paths that the repository lacks or holds with another content, in the order of `files`."""
    return [path for path, local in files.items() if path not in remote or not local.is_same(remote[path])]


def release(
    repository: Repository,
    files: Mapping[str, LocalFile],
    is_stale: Callable[[str], bool],
    private: bool = False,
    tag: str | None = None,
) -> str:
    """The id of a commit of the repository that holds these files, verified; made, and tagged, as far as needed.

    Args:
        repository: made if it does not exist.
        files: by path in the repository, in the order in which they are to arrive.
        is_stale: which further paths of the repository are to be removed.
        private: of a new repository.
        tag: name of a revision; refused if it exists with other files.
    """
    refuse_other_tag(repository, files, tag)
    reached(
        lambda: repository.api.create_repo(
            repository.repo_id, repo_type=repository.repo_type, private=private, exist_ok=True
        )
    )
    reached(lambda: _upload(repository, files, is_stale))
    info = repository.info()
    assert info is not None  # just made
    remote = repository.files(info.sha)
    if wrong := changed_files(files, remote):
        raise ValueError(
            f"{repository.repo_id}: {len(wrong)} files differ from the local ones after the upload, the first is "
            f"{wrong[0]}. Somebody else may write to the repository; run the same command again."
        )
    if tag is not None and repository.tagged_files(tag) is None:
        reached(
            lambda: repository.api.create_tag(
                repository.repo_id, tag=tag, revision=info.sha, repo_type=repository.repo_type
            )
        )
    return str(info.sha)


def refuse_other_tag(repository: Repository, files: Mapping[str, LocalFile], tag: str | None) -> None:
    """Raises if the tag exists and stands for other files: tags are cited, so they are never moved."""
    if tag is None or repository.info() is None:
        return
    tagged = repository.tagged_files(tag)
    if tagged is not None and (wrong := changed_files(files, tagged)):
        raise ValueError(
            f"{repository.repo_id} has a tag {tag} with other files ({wrong[0]} differs), and tags are not moved: "
            "choose another --revision-tag."
        )


def _upload(repository: Repository, files: Mapping[str, LocalFile], is_stale: Callable[[str], bool]) -> None:
    """Sends what the repository lacks, in commits of a few files, and removes what is stale with the last of them."""
    remote = repository.files("main")
    todo = changed_files(files, remote)
    stale = [path for path in remote if path not in files and is_stale(path)]
    total = sum(files[path].size for path in todo)
    with tqdm(total=total, desc="uploading", unit="B", unit_scale=True, disable=not todo) as progress:
        for paths in _batches(todo):
            is_last = paths[-1] == todo[-1]
            _commit(repository, files, paths, stale if is_last else [])
            progress.update(sum(files[path].size for path in paths))
    if stale and not todo:
        _commit(repository, files, [], stale)


def _batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), FILES_PER_COMMIT):
        yield paths[start : start + FILES_PER_COMMIT]


def _commit(
    repository: Repository, files: Mapping[str, LocalFile], paths: Sequence[str], stale: Collection[str]
) -> None:
    operations: list[Any] = [CommitOperationAdd(path, str(files[path].path)) for path in paths]
    operations += [CommitOperationDelete(path) for path in stale]
    named = f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else [*paths, *stale][0]
    repository.api.create_commit(
        repository.repo_id, operations, commit_message=f"Publish {named}", repo_type=repository.repo_type
    )


def reached(call: Callable[[], T]) -> T:
    """What a call to the Hub gives; trouble that may pass is waited for, the rest is said in a line.

    Raises:
        ValueError: The Hub refuses, or may not be asked.
        Unfinished: The Hub does not answer as it should; the same command goes on later.
        RepositoryNotFoundError, RevisionNotFoundError: There is no such thing.
    """
    trouble = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            return call()
        except Exception as error:
            # The client wraps what befell a large file.
            cause = (error.__cause__ or error) if type(error) is RuntimeError else error
            refusal = _refusal(cause)
            if refusal is not None:
                raise ValueError(refusal) from error
            trouble = _passing_trouble(cause)
            if not trouble:
                raise
    raise Unfinished(
        f"The Hub does not answer as it should ({trouble}), after {TRIES} tries. What was uploaded stays there: run "
        "the same command again later."
    )


def _passing_trouble(error: BaseException | None) -> str:
    """What is wrong for now, such as a server that is busy; empty if waiting does not help."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return f"HTTP {status}" if status in _PASSING else ""
    # A bare RuntimeError is how hf_xet says that a transfer failed.
    passing = (_TransportError, ConnectionError, TimeoutError, LocalEntryNotFoundError)
    if isinstance(error, passing) or type(error) is RuntimeError:
        return f"{type(error).__name__}: {_one_line(error)}"
    return ""


def _refusal(error: BaseException | None) -> str | None:
    """What to tell somebody whose request was understood and declined; None if it was not declined."""
    match error:
        case RepositoryNotFoundError() | RevisionNotFoundError():
            return None
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set: unset it to reach the Hub."
        case HFValidationError():
            return str(error)
        case LocalTokenNotFoundError():
            return f"There is no token. {_LOG_IN}"
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"The Hub refuses (HTTP {error.response.status_code}). {_LOG_IN}"
        case HfHubHTTPError() if error.response.status_code not in _PASSING:
            return f"The Hub refuses: {_one_line(error)}"
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def exit_code(publish: Callable[[], object]) -> int:
    """Publishes; 0 done, 2 it cannot be done as asked, 75 not finished and the same command goes on, 130 Ctrl-C."""
    try:
        publish()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Unfinished as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print("Stopped. What was uploaded stays there: the same command goes on.", file=sys.stderr)
        return 130
    return 0


def card_problems(text: str, kind: type[DatasetCard] | type[ModelCard] = DatasetCard) -> list[str]:
    """Why a card is not fit to be published; empty if it is."""
    problems = []
    header = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if header is None:
        problems.append("it has no YAML header between two lines of ---")
    elif trouble := _header_trouble(header[1], text, kind):
        problems.append(trouble)
    for number, line in enumerate(text.splitlines(), start=1):
        problems += [f"line {number} still says {word}" for word in PLACEHOLDERS if word in line]
    return problems


def _header_trouble(header: str, text: str, kind: type[DatasetCard] | type[ModelCard]) -> str:
    """How the header, read and written as the Hub's library does, would become another one; empty if it does not."""
    try:
        written = yaml.safe_load(header)
        card = kind(text)
        again = yaml.safe_load(card.data.to_yaml())
    except Exception as error:  # yaml's, and whatever the library makes of a value it does not expect
        return f"its YAML header cannot be read ({_one_line(error)})"
    if not isinstance(written, dict) or not written:
        return "its YAML header has no `key: value`"
    if again != written:
        names = [str(key) for key in {**written, **again} if written.get(key) != again.get(key)]
        return f"its YAML header does not come back as it was written: {', '.join(names)}"
    return ""
