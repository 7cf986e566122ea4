"""Where a run begins: at its newest whole checkpoint, at another run's weights, or at nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from inpaint import checkpoints, storage
from inpaint.checkpoints import CheckpointInfo
from inpaint.checkpoints.layout import find
from inpaint.checkpoints.loading import read_networks
from inpaint.config import RunConfig
from inpaint.errors import CheckpointError, ConfigError
from inpaint.methods import Method
from inpaint.training import Trainer
from ray_jobs.session import Session

log = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass
class Position:
    """What a run carries beside the trainer's own state.

    Attributes:
        skipped: global batches passed over after rollbacks; the stream is that far ahead of the steps.
        rollbacks: how often the run went back because of a loss that was not finite.
        data: what the stream said of itself, so that a run does not go on with other data.
    """

    skipped: int = 0
    rollbacks: int = 0
    data: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


ROLLBACK = "rollback.json"


def remember_rollback(run: RunConfig, step: int, position: Position, reason: str) -> None:
    """Write down where the run went back to and what it passes over, for a start before the next checkpoint."""
    record = {"step": step, "skipped": position.skipped, "rollbacks": position.rollbacks, "reason": reason}
    storage.write_bytes(storage.join(run.url, ROLLBACK), json.dumps(record, indent=1).encode())


def _recall_rollback(run: RunConfig, step: int, position: Position) -> Position:
    """`position` of the checkpoint at `step`, with the rollback to it that came after it was written, if any."""
    place = storage.join(run.url, ROLLBACK)
    if not storage.exists(place):
        return position
    record = json.loads(storage.read_bytes(place))
    skipped = record["skipped"] if record["step"] == step else position.skipped
    return replace(
        position, skipped=max(skipped, position.skipped), rollbacks=max(record["rollbacks"], position.rollbacks)
    )


def resume(run: RunConfig, trainer: Trainer, session: Session) -> tuple[Position, frozenset[str]] | None:
    """Put the trainer where the run's newest usable checkpoint was; None when there is none.

    A checkpoint that a rank cannot read is passed over, on all of them, for the one before it, with a warning.

    Returns:
        What the run carries beside the trainer's state, and the URLs of the checkpoints that were passed over.

    Raises:
        CheckpointError: there are checkpoints, and none can be used.
    """
    listed = checkpoints.list_checkpoints(run.url) if session.rank == 0 else []
    found = _of_rank_0(listed, session)
    for info in reversed(found):
        position = _restored(info, trainer)
        if _everywhere(position is not None, session):
            if session.rank == 0:
                log.info("going on from %s", info.url)
                position = _recall_rollback(run, info.step, position)
            passed_over = frozenset(later.url for later in found if later.step > info.step)
            return _of_rank_0(position, session), passed_over
    if found:
        raise CheckpointError(f"{run.url}: no checkpoint can be read; delete {run.url}/checkpoints to start anew")
    return None


def warm_start(run: RunConfig, method: Method, session: Session) -> dict[str, str]:
    """Load the networks of each stage that has a `from` from that run's newest checkpoint, the same on all ranks.

    Returns:
        Network → URL of the checkpoint it came from.

    Raises:
        ConfigError: an earlier stage of this run trains the same network, so its work would begin from elsewhere.
        CheckpointError: no checkpoint there, or a network that does not fit.
    """
    sources = _of_rank_0(_sources(run) if session.rank == 0 else {}, session)
    loaded: dict[str, str] = {}
    trained: dict[str, str] = {}
    for stage in method.stages():
        start = run.stages[stage.name].start_from
        if start is not None:
            for network in stage.trained():
                if network in trained:
                    raise ConfigError(
                        f"stages.{stage.name}.from: {network} is trained by stage {trained[network]} before; "
                        f"put `from` there, or set stages.{trained[network]}.steps to 0"
                    )
            _load_networks(sources[start], method, stage.trained())
            loaded |= dict.fromkeys(stage.trained(), sources[start].url)
        if stage.steps:
            trained |= dict.fromkeys(stage.trained(), stage.name)
    return loaded


def _sources(run: RunConfig) -> dict[str, CheckpointInfo]:
    """The newest checkpoint of each run that a stage starts from; it may be training, and have another one soon."""
    starts = {stage.start_from for stage in run.stages.values() if stage.start_from is not None}
    return {start: find(checkpoints.run_url(start, root=run.root)) for start in starts}


def _load_networks(source: CheckpointInfo, method: Method, networks: tuple[str, ...]) -> None:
    for network, weights in read_networks(source, networks).items():
        try:
            method.networks()[network].load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{source.url}: {network} does not fit this run's settings ({error})") from error


def _restored(info: CheckpointInfo, trainer: Trainer) -> Position | None:
    """The trainer with a checkpoint's state; None, with a warning, when the checkpoint cannot be read."""

    def enter(state: dict[str, Any]) -> Position:
        position = Position(**state.pop("position"))
        trainer.load_state_dict(state)
        return position

    try:
        return checkpoints.restore(info, enter)
    except CheckpointError as error:
        log.warning("%s", error)
        return None


def _everywhere(held: bool, session: Session) -> bool:
    """Whether something holds on every rank."""
    if session.world_size == 1:
        return held
    ranks = torch.tensor(int(held), device=session.device)
    dist.all_reduce(ranks)
    return int(ranks) == session.world_size


def _of_rank_0(value: Value, session: Session) -> Value:
    """Rank 0's value, on every rank."""
    if session.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=session.device)
    return box[0]
