"""Parameters that all passes that train have. Imports no torch, so that recipes are checked without it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from optimizer.passes import PassParameters

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class TrainingParameters(PassParameters):
    """How a pass trains.

    Attributes:
        epochs: passes over the training samples; 0 = none.
        batch: samples per step.
        learning_rate: at its highest.
        temperature: of the softened distributions that student and teacher are compared by.
        hard: share of the labels in the loss, where `data.train` has labels; 0 = only the teacher's word counts, 1 = only theirs.
        l1, l2: regularisation: weights of the absolute and of the squared weights in the loss.
        patience: epochs without a better validation loss after which training ends; 0 = never.
    """

    epochs: Annotated[float, Field(ge=0, le=1000)] = 3.0
    batch: Annotated[int, Field(ge=1, le=65536)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    temperature: Annotated[float, Field(gt=0, le=100)] = 4.0
    hard: Share = 0.3
    l1: Weight = 0.0
    l2: Weight = 0.0
    patience: Annotated[int, Field(ge=0)] = 0

    @property
    def needs_training(self) -> bool:
        """Without samples nothing is learnt."""
        return True
