"""Parameters that all passes that train have. Imports no torch, so that recipes are checked without it."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from optimizer.passes import PassParameters

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
# Softmax does not see what is added to all logits of a sample, and labels say nothing of how large they are: a network that learned what
# was asked may be any distance from its teacher. Its validation loss and the accuracy on devices tell how good it is.
ANY_DRIFT = math.inf


class TrainingParameters(PassParameters):
    """How a pass trains.

    Attributes:
        epochs: passes over the training samples; 0 = none.
        batch: samples per step.
        learning_rate: at its highest.
        temperature: of the softened distributions that student and teacher are compared by.
        hard: share of the labels in the loss, where `data.train` has labels; 0 = only the teacher's word counts, 1 = only theirs.
        l1, l2: regularisation: weights of the absolute and of the squared weights in the loss.
        mix: share of each batch whose samples are blended with others of it, by random weights; the teacher says what a blend is, so few
            samples become many (mixup, Zhang et al., ICLR 2018; with a teacher Beyer et al., CVPR 2022). Inputs have to be floats.
        patience: epochs without a better validation loss after which training ends; 0 = never.
    """

    epochs: Annotated[float, Field(ge=0, le=1000)] = 3.0
    batch: Annotated[int, Field(ge=1, le=65536)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    temperature: Annotated[float, Field(gt=0, le=100)] = 4.0
    hard: Share = 0.3
    l1: Weight = 0.0
    l2: Weight = 0.0
    mix: Share = 0.0
    patience: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _taught(self) -> TrainingParameters:
        if self.mix and self.hard == 1:
            raise ValueError("mix needs the teacher, who is not asked with hard: 1")
        return self

    @property
    def needs_training(self) -> bool:
        """Without samples nothing is learnt."""
        return True
