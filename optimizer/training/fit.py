"""The training loop: a student towards its teacher and its labels, with checkpoints, a validation part and the time that is left."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optimizer.training.losses import Loss
from optimizer.training.network import Network
from optimizer.training.samples import Samples, blend

_VALIDATION = 0.1  # of the samples, never trained on
_MOST_VALIDATION = 1000
_WARM_UP = 0.05  # of the steps
_CHECKPOINT = "training.pt"
_CHECKPOINT_EVERY_S = 30.0
_NORM_LIMIT = 5.0  # of the gradient: the first steps after pruning are rough


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        epochs: passes over the training part.
        batch: samples per step.
        learning_rate: at its highest; it rises for a twentieth of the steps and then falls to 0 along a cosine.
        l1, l2: weights of the absolute and the squared values of weights in the loss (biases and normalisations left out).
        patience: epochs without a better validation loss after which training ends; 0 = never.
        mix: share of each batch that is blended with others of it.
    """

    epochs: float
    batch: int = 64
    learning_rate: float = 1e-3
    l1: float = 0.0
    l2: float = 0.0
    patience: int = 0
    seed: int = 0
    mix: float = 0.0


@dataclass
class Fitted:
    """How training went. `losses`: of the validation part after each epoch; the network holds the weights of the best one."""

    losses: list[float] = field(default_factory=list)
    steps: int = 0
    stopped: bool = False

    @property
    def best(self) -> int:
        """The epoch whose weights were kept, from 0."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    def __str__(self) -> str:
        early = ", then it no longer fell" if self.stopped else ""
        return f"trained {self.steps} steps, validation loss {self.losses[self.best]:.3g} after epoch {self.best + 1}{early}"


class Fit:
    """Trains a network in place.

    Args:
        student: is trained; its outputs are the loss's heads.
        teacher: gives the heads' values for the samples of some indices.
        ask: gives them for inputs that are no samples; without it nothing is blended.
        checkpoints: a folder; what is found there is gone on with.
        tell: takes lines of progress.
    """

    def __init__(
        self,
        student: Network,
        teacher: Callable[[Sequence[int]], Sequence[Any]],
        samples: Samples,
        loss: Loss,
        settings: Settings,
        checkpoints: Path | None = None,
        tell: Callable[[str], None] = lambda line: None,
        ask: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
    ) -> None:
        self._student, self._teacher, self._samples, self._loss = student, teacher, samples, loss
        self._settings, self._tell = settings, tell
        self._ask = ask if samples.blendable else None
        student.to(memory_format=torch.channels_last)
        self._file = None if checkpoints is None else checkpoints / _CHECKPOINT
        order = np.random.default_rng(settings.seed).permutation(samples.n)
        held = min(max(round(_VALIDATION * samples.n), 1), _MOST_VALIDATION) if samples.n > 1 else 0
        self._validation, self._training = order[:held], order[held:]
        self._per_epoch = max(1, math.ceil(len(self._training) / settings.batch))
        self._total = max(1, round(settings.epochs * self._per_epoch))
        weights = [p for p in student.parameters() if p.requires_grad and p.dim() > 1]
        others = [p for p in student.parameters() if p.requires_grad and p.dim() <= 1]
        self._weights = weights
        self._taught = replace(loss, labels={})
        groups = [{"params": weights, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.0}]
        self._optimiser = torch.optim.Adam(groups, lr=settings.learning_rate)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._rate)
        self._fitted = Fitted()
        self._kept: dict[str, Any] = {}
        self._step = 0
        self._order: Any = None

    def run(self) -> Fitted:
        """Trains to the end, or until the validation loss no longer falls."""
        self._resume()
        begun, done_before, saved = time.monotonic(), self._step, time.monotonic()
        while self._step < self._total and not self._fitted.stopped:
            self._train_step()
            self._step += 1
            if self._step % self._per_epoch == 0 or self._step == self._total:
                self._end_epoch()
                self._save()
                saved = time.monotonic()
            elif time.monotonic() - saved > _CHECKPOINT_EVERY_S:
                self._save()
                saved = time.monotonic()
            left = (time.monotonic() - begun) / (self._step - done_before) * (self._total - self._step)
            known = f", validation loss {self._fitted.losses[-1]:.4g}" if self._fitted.losses else ""
            self._tell(f"step {self._step} of {self._total}{known}, {left:.0f} s left")
        if self._kept:
            self._student.load_state_dict(self._kept)
        self._student.eval()
        self._fitted.steps = self._step
        return self._fitted

    def _rate(self, step: int) -> float:
        warm = max(1, round(_WARM_UP * self._total))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self._total - warm)))

    def _train_step(self) -> None:
        epoch, place = divmod(self._step, self._per_epoch)
        if place == 0 or self._order is None:
            self._order = np.random.default_rng([self._settings.seed, epoch]).permutation(self._training)
        chosen = self._order[place * self._settings.batch : (place + 1) * self._settings.batch].tolist()
        self._student.train(self._samples.batched)  # one sample alone has no statistics to normalise by
        self._optimiser.zero_grad()
        blended = round(self._settings.mix * len(chosen)) if self._ask is not None else 0
        for group in self._samples.groups(chosen[blended:]) if blended < len(chosen) else ():
            loss = self._loss_of(group) * (len(group) / len(chosen))
            loss.backward()
        if blended:
            (self._loss_of_blends(chosen, blended, epoch, place) * (blended / len(chosen))).backward()
        penalty = self._penalty()
        if penalty is not None:
            penalty.backward()
        torch.nn.utils.clip_grad_norm_(self._student.parameters(), _NORM_LIMIT)
        self._optimiser.step()
        self._schedule.step()

    def _loss_of(self, indices: Sequence[int]) -> Any:
        given = self._student(*self._samples.inputs(indices))
        return self._loss(given, self._teacher(indices), self._samples.targets(indices))

    def _loss_of_blends(self, chosen: Sequence[int], count: int, epoch: int, place: int) -> Any:
        """The first `count` of a batch, each blended with another of it; labels say nothing of a blend."""
        assert self._ask is not None
        chance = np.random.default_rng([self._settings.seed, epoch, place])
        others = chance.permutation(np.asarray(chosen))[:count].tolist()
        shares = torch.from_numpy(chance.uniform(0.0, 1.0, count).astype(np.float32))
        inputs = [blend(one, other, shares) for one, other in zip(self._samples.inputs(chosen[:count]), self._samples.inputs(others))]
        return self._taught(self._student(*inputs), self._ask(inputs), {})

    def _penalty(self) -> Any:
        s = self._settings
        if not s.l1 and not s.l2:
            return None
        return sum(s.l1 * w.abs().sum() + s.l2 * w.square().sum() for w in self._weights)

    def _end_epoch(self) -> None:
        losses = self._fitted.losses
        losses.append(self._validate())
        if self._fitted.best == len(losses) - 1:
            self._kept = {name: value.clone() for name, value in self._student.state_dict().items()}
        patience = self._settings.patience
        self._fitted.stopped = bool(patience) and len(losses) - 1 - self._fitted.best >= patience

    def _validate(self) -> float:
        """Mean loss of the validation part; where there is none, of the training part's first batch."""
        self._student.eval()
        part = self._validation if len(self._validation) else self._training[: self._settings.batch]
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(part), self._settings.batch):
                for group in self._samples.groups(part[start : start + self._settings.batch].tolist()):
                    total += float(self._loss_of(group)) * len(group)
        mean = total / len(part)
        return mean if math.isfinite(mean) else math.inf

    def _save(self) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self._step,
            "student": self._student.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "losses": self._fitted.losses,
            "stopped": self._fitted.stopped,
            "kept": self._kept,
        }
        aside = self._file.with_suffix(f".{os.getpid()}")
        torch.save(state, aside)
        os.replace(aside, self._file)

    def _resume(self) -> None:
        """Goes on where a checkpoint of the same training is; one that can't be read, or fits another network, is passed over."""
        if self._file is None or not self._file.is_file():
            return
        try:
            state = torch.load(self._file, weights_only=True)
            shapes = {name: value.shape for name, value in state["student"].items()}
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError):
            return
        if shapes != {name: value.shape for name, value in self._student.state_dict().items()}:
            return
        self._student.load_state_dict(state["student"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._step, self._kept = state["step"], state["kept"]
        self._fitted = Fitted(list(state["losses"]), 0, state["stopped"])
