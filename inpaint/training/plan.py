"""What a method's stages must keep to, checked before a step is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

from inpaint.config.base import suggest
from inpaint.errors import TrainingError
from inpaint.methods.base import Method, Stage, Update


class PlanError(TrainingError, ValueError):
    """A method's stages contradict themselves: names the stage, the update and the network or term."""


def check_plan(method: Method) -> tuple[Stage, ...]:
    """The method's stages of at least one step, after refusing those that contradict themselves.

    Raises:
        PlanError: an unknown or frozen network, a network in two updates, an update that trains or weighs nothing,
            or a name used twice.
    """
    stages = tuple(stage for stage in method.stages() if stage.steps > 0)
    if not stages:
        raise PlanError(f"{_name(method)}: every stage has 0 steps; nothing would be trained")
    _refuse_doubles(f"{_name(method)}: stage", (stage.name for stage in stages))
    for stage in stages:
        place = f"stage {stage.name}"
        if not stage.updates:
            raise PlanError(f"{place} has no update; give it one or 0 steps")
        _refuse_doubles(f"{place}: update", (update.name for update in stage.updates))
        for update in stage.updates:
            _check_update(method, update, f"{place}, update {update.name}")
        _check_owners(method, stage)
    return stages


def check_terms(stage: Stage, update: Update, terms: Iterable[str]) -> None:
    """Refuse terms without a weight, and weights without a term.

    Raises:
        PlanError: names stage, update and term.
    """
    found, active = set(terms), update.active()
    place = f"stage {stage.name}, update {update.name}"
    for term in sorted(found - set(update.weights)):
        raise PlanError(f"{place}: term {term} has no weight{suggest(term, update.weights)}; give it one, or drop it")
    for term in sorted(active - found):
        raise PlanError(f"{place}: weight {term} has no term{suggest(term, found)}; the loss gave {_listed(found)}")
    for term in sorted(found - active):
        raise PlanError(f"{place}: term {term} has weight 0 and was computed; leave out terms that are not active")


def logged_names(stages: Iterable[Stage], *, clipped: bool) -> set[str]:
    """Everything that steps of these stages log, and that looks at their networks (`health`) do.

    Args:
        clipped: gradients are clipped, so that their norms are known.
    """
    names: set[str] = set()
    for stage in stages:
        names |= {f"health/gradient_norm/{network}" for network in stage.trained()}
        for update in stage.updates:
            active, ramped = update.active(), {term for term, weight in update.weights.items() if callable(weight)}
            values = {*active, "loss", "learning_rate", *(f"{term}_weight" for term in ramped)}
            values |= {"gradient_norm"} if clipped else set()
            names |= {f"{update.name}/{value}" for value in values}
            if update.judges():
                names |= {f"health/score/{network}/{side}" for network in update.trains for side in ("real", "filled")}
            else:
                names |= {f"health/share/{update.name}/{term}" for term in active}
    return names


def trained_parameters(method: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """The parameters of the named networks, each once, in order."""
    found = {id(p): p for name in names for p in getattr(method, name).parameters()}
    return list(found.values())


def select_gradients(method: Method, trains: Iterable[str]) -> None:
    """Let gradients flow into the named networks and into no other parameter of the method."""
    wanted = {id(p) for p in trained_parameters(method, trains)}
    for parameter in method.parameters():
        flag = id(parameter) in wanted
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


def select_modes(method: Method, stage: Stage) -> None:
    """Training mode for the networks the stage moves, inference mode for all others."""
    moved = set(stage.trained())
    for name, child in method.named_children():
        if child.training != (name in moved):
            child.train(name in moved)
    method.training = True


def _check_update(method: Method, update: Update, place: str) -> None:
    networks = method.networks()
    if not update.trains:
        raise PlanError(f"{place} trains no network; name at least one of {_listed(networks)}")
    for name in update.trains:
        if name in method.frozen:
            raise PlanError(f"{place}: network {name} is frozen in this method and cannot be trained")
        if name not in networks:
            raise PlanError(f"{place}: {name} is not a network of {_name(method)}{suggest(name, networks)}")
    if not trained_parameters(method, update.trains):
        raise PlanError(f"{place}: {_listed(update.trains)} holds no parameters; there is nothing to train")
    if not update.active():
        raise PlanError(f"{place}: every weight is 0 ({_listed(update.weights)}); nothing would be learned from")


def _check_owners(method: Method, stage: Stage) -> None:
    """Refuse a network, or a parameter under two names, that two updates of one stage would move."""
    owners: dict[str, str] = {}
    holders: dict[int, tuple[str, str]] = {}
    for update in stage.updates:
        for name in update.trains:
            if name in owners:
                raise PlanError(
                    f"stage {stage.name}, update {update.name}: network {name} is already trained by update "
                    f"{owners[name]}; a network has one optimizer in a stage"
                )
            owners[name] = update.name
            for parameter in getattr(method, name).parameters():
                update_name, network = holders.setdefault(id(parameter), (update.name, name))
                if update_name != update.name:
                    raise PlanError(
                        f"stage {stage.name}, update {update.name}: network {name} shares parameters with {network}, "
                        f"which update {update_name} trains; a parameter has one optimizer in a stage"
                    )


def _refuse_doubles(place: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise PlanError(f"{place} {name} stands {count} times; names must differ")


def _name(method: Method) -> str:
    return str(getattr(method.config, "name", type(method).__name__))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
