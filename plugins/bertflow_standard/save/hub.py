"""`save=hub`: the checkpoint as one commit to a repository on the Hub, which so holds the old or the new one whole."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError, NetworkError
from bertflow.flow import Flow
from bertflow.hookspecs import Result
from bertflow_standard.deadline import deadline
from bertflow_standard.hub import reason
from bertflow_standard.manifest import CARD, write_manifest
from bertflow_standard.shards import SavedDtype, check_shard_size
from bertflow_standard.transformers_model import TOKENIZER_FILES

WEIGHTS = re.compile(r"(model|pytorch_model|tf_model|flax_model)[^/]*\.(safetensors|bin|h5|msgpack)(\.index\.json)?")


@dataclass
class Config:
    """Where the checkpoint goes. The token comes from `HF_TOKEN` or `hf auth login`; no key takes it."""

    repo_id: str
    private: bool
    revision: str | None
    max_shard_size: str
    dtype: SavedDtype | None
    hub_timeout: float

    def __post_init__(self) -> None:
        """Refuse what nobody can upload."""
        check_shard_size(self.max_shard_size)
        if self.hub_timeout <= 0:
            fix = "give a positive number of seconds"
            raise ConfigError("wrong value", f"save.hub_timeout={self.hub_timeout}", fix)


@hookimpl
def check_run(flow: Flow) -> None:
    """Refuse a name, a token or a repository that cannot be written to, before anything is computed."""
    from huggingface_hub import constants, get_token

    config: Config = flow.settings["save"]
    where = f"save.repo_id={config.repo_id}"
    if not _is_repo_id(config.repo_id):
        raise ConfigError("not a repository's name", where, "write namespace/name, such as my-name/my-bert")
    if constants.is_offline_mode():
        raise NetworkError("offline mode is on (HF_HUB_OFFLINE)", where, "unset it, or use save=checkpoint")
    with _hub(config, "check the token's permissions, or use save=checkpoint"):
        if get_token() is None:
            fix = f"set HF_TOKEN to a token that may write, from {constants.ENDPOINT}/settings/tokens"
            raise ConfigError("no token for the Hub", where, fix)
        _check_access(config)


def _is_repo_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


@contextlib.contextmanager
def _hub(config: Config, fix: str) -> Iterator[None]:
    """Talk to the Hub, and say in one line where that fails."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        with deadline(config.hub_timeout):
            yield
    except (HTTPError, ConnectionError, RuntimeError, ValueError) as error:
        # huggingface_hub wraps what stops the upload of a file in a RuntimeError.
        said = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
        where = f"save.repo_id={config.repo_id} at {constants.ENDPOINT}"
        raise NetworkError(f"cannot write to the Hub ({reason(said)})", where, fix) from error


def _check_access(config: Config) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    user = api.whoami()
    names = [user["name"], *(org["name"] for org in user.get("orgs", ()))]
    if config.repo_id.partition("/")[0] not in names:
        fix = f"the token of {user['name']} writes to {', '.join(names)}"
        raise ConfigError("namespace is not yours", f"save.repo_id={config.repo_id}", fix)
    with contextlib.suppress(RepositoryNotFoundError):
        _refuse_public(config, api.model_info(config.repo_id))
        api.auth_check(config.repo_id, write=True)


def _refuse_public(config: Config, info: Any) -> None:
    if config.private and info.private is False:
        where = f"save.repo_id={config.repo_id} with save.private=true"
        raise ConfigError("repository is public", where, "add save.private=false, or choose another one")


@hookimpl(wrapper=True)
def run_task() -> Generator[None, Result, Result]:
    """Say so where the task has nothing to save: what was asked for is never silently left out."""
    result = yield
    if result.saved is None:
        raise ConfigError("task saves no model", f"task={result.task} with save=hub", "use save=none")
    return result


@hookimpl
def save_checkpoint(flow: Flow, config: Config, model: Any) -> dict[str, Any]:
    """Write the checkpoint to a folder that is removed again, and commit it."""
    with tempfile.TemporaryDirectory(prefix="bertflow-") as work:
        folder = Path(work)
        dtype = config.dtype.value if config.dtype else None
        arguments = {"folder": folder, "max_shard_size": config.max_shard_size, "dtype": dtype}
        files = flow.call("save_model", model=model, **arguments)
        with _hub(config, "the Hub has all of it or nothing: run it again, or use save=checkpoint"):
            return _commit(config, folder, files)


def _commit(config: Config, folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Upload the files and commit them, in the place of the weights and tokenizer of an older checkpoint."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    api.create_repo(config.repo_id, private=config.private, exist_ok=True)
    if config.revision:
        api.create_branch(config.repo_id, branch=config.revision, exist_ok=True)
    before = api.model_info(config.repo_id, revision=config.revision)
    _refuse_public(config, before)
    there = {item.rfilename for item in before.siblings or ()}
    new = [file for file in files if file.name != CARD or CARD not in there]  # People write the card of a repository.
    new.append(write_manifest(folder, new))
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in new}
    additions = [CommitOperationAdd(name, str(folder / name)) for name in sizes]
    for addition in additions:  # One by one in this thread, so that Ctrl-C stops them at once.
        api.preupload_lfs_files(config.repo_id, [addition], revision=config.revision)
    # transformers would load an older checkpoint's weights or tokenizer beside or instead of the new.
    older = {name for name in there if WEIGHTS.fullmatch(name) or name in TOKENIZER_FILES} - sizes.keys()
    commit = api.create_commit(
        config.repo_id,
        [*(CommitOperationDelete(name) for name in sorted(older)), *additions],
        commit_message="Save a checkpoint with bertflow",
        revision=config.revision,
        parent_commit=before.sha,  # What somebody else commits meanwhile is not mixed with this.
    )
    return {"path": f"{config.repo_id}@{commit.oid}", "files": sizes}
