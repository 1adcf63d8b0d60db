"""How a Keras model is trained: towards what it said before, and towards labels where there are some; resumed where it was killed.

Everything random comes from the seed and the epoch, so that a lesson that is resumed learns what one learns that never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgefarm.digest import atomic_write

if TYPE_CHECKING:
    from optimizer.dataset import Dataset
    from optimizer.passes import Context
    from optimizer.passes.tfmot import TfmotParameters

_TEACH_BATCH = 256


def settle(seed: int) -> None:
    """One thread, and the same random numbers each time. To be called before TensorFlow does anything."""
    import tensorflow as tf
    import tf_keras

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf_keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


class Lesson:
    """Training samples, what the original says of them, and how long and fast to learn.

    Args:
        model: the original, a `tf_keras.Model`; it is asked, never changed.
        order: the samples' names in the order of the model's inputs.
    """

    def __init__(self, model: Any, context: Context, parameters: TfmotParameters, order: Sequence[str]) -> None:
        import tensorflow as tf

        assert context.train is not None
        self._context, self._parameters = context, parameters
        self._inputs = [_rows(context.train.inputs[name]) for name in order]
        self._teacher = [np.asarray(v) for v in tf.nest.flatten(model.predict(self._joined(self._inputs), _TEACH_BATCH, verbose=0))]
        labels = _labels(context.train, self._teacher)
        self._labelled = labels is not None
        self._wanted = self._teacher  # per output what the teacher says, and the label behind that where there are labels
        if labels is not None:
            self._wanted = [np.concatenate([self._teacher[0], labels[:, None].astype(np.float32)], axis=1)]
        self._batches = math.ceil(context.train.n / parameters.batch)
        self.steps = max(1, round(parameters.epochs * self._batches))

    def train(self, model: Any, name: str, callbacks: Sequence[Any]) -> str:
        """Trains for `steps`, and says how it went. `name` tells apart what is trained one after the other."""
        import tf_keras

        rate = tf_keras.optimizers.schedules.CosineDecay(self._parameters.learning_rate, self.steps, alpha=0.02)
        optimizer = tf_keras.optimizers.Adam(rate)
        model.compile(optimizer=optimizer, loss=[self._loss(index) for index in range(len(self._teacher))])
        optimizer.build(model.trainable_variables)  # so that its state is there to be restored
        saved = _Saved(self._context.checkpoints, name, model, optimizer)
        epochs, began = math.ceil(self.steps / self._batches), time.monotonic()
        first, loss = saved.restore()
        for epoch in range(first, epochs):
            steps = min(self._batches, self.steps - epoch * self._batches)
            self._reseed(model, epoch)
            history = model.fit(
                self._epoch(epoch, steps), epochs=epoch + 1, initial_epoch=epoch, steps_per_epoch=steps, callbacks=list(callbacks),
                verbose=0, shuffle=False,
            )  # fmt: skip
            loss = float(history.history["loss"][-1])
            saved.keep(epoch + 1, loss)
            left = (time.monotonic() - began) / (epoch + 1 - first) * (epochs - epoch - 1)
            self._context.tell(f"{name}: epoch {epoch + 1} of {epochs}, loss {loss:.4g}, {left:.0f} s left")
        return f"{self.steps} steps, loss {loss:.4g}"

    def _reseed(self, model: Any, epoch: int) -> None:
        """Dropouts draw what they draw in this epoch, however many went before: random operations count in the traced function."""
        import tf_keras

        if any(isinstance(each, tf_keras.__internal__.layers.BaseRandomLayer) for each in model.submodules):
            tf_keras.utils.set_random_seed(self._context.seed + epoch)
            model.make_train_function(force=True)

    def _epoch(self, epoch: int, steps: int) -> Any:
        """Batches of one epoch, in an order of its own."""
        import tensorflow as tf

        order = np.random.default_rng((self._context.seed, epoch)).permutation(len(self._inputs[0]))
        size = self._parameters.batch
        data = tf.data.Dataset.from_tensor_slices(np.arange(steps)).map(
            lambda step: tf.numpy_function(lambda i: order[i * size : (i + 1) * size].astype(np.int64), [step], tf.int64)
        )
        arrays, count = (*self._inputs, *self._wanted), len(self._inputs)

        def pick(indices: Any) -> Any:
            values = tf.numpy_function(lambda chosen: [a[chosen] for a in arrays], [indices], [a.dtype for a in arrays])
            for value, array in zip(values, arrays):
                value.set_shape((None, *array.shape[1:]))
            return self._joined(values[:count]), self._joined(values[count:])

        return data.map(pick)

    def _loss(self, index: int) -> Any:
        """A loss of (wanted, output): cross-entropy for probabilities, else squared distance in units of the teacher's own variance."""
        import tensorflow as tf

        said, hard, labelled = self._teacher[index], self._parameters.hard, self._labelled
        probable = _is_distribution(said)
        scale = max(float(said.var()), 1e-12)

        def loss(wanted: Any, output: Any) -> Any:
            theirs = wanted[:, :-1] if labelled else wanted
            if probable:
                soft = -tf.reduce_sum(theirs * tf.math.log(tf.clip_by_value(output, 1e-7, 1.0)), axis=-1)
            else:
                soft = tf.reduce_mean(tf.square(output - theirs), axis=list(range(1, len(said.shape)))) / scale
            if not labelled:
                return soft
            label = tf.cast(wanted[:, -1], tf.int32)
            logits = tf.math.log(tf.clip_by_value(output, 1e-7, 1.0)) if probable else output
            return (1 - hard) * soft + hard * tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)

        return loss

    @staticmethod
    def _joined(values: Sequence[Any]) -> Any:
        return values[0] if len(values) == 1 else tuple(values)


class _Saved:
    """The state of one training in a folder, replaced after each epoch."""

    def __init__(self, folder: Path | None, name: str, model: Any, optimizer: Any) -> None:
        import tensorflow as tf

        self._folder = folder / name if folder is not None else None
        self._checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)

    def restore(self) -> tuple[int, float]:
        """Epochs that are done already, and the loss in the last one."""
        if self._folder is None:
            return 0, math.nan
        try:
            said = json.loads((self._folder / "done.json").read_bytes())
            self._checkpoint.read(str(self._folder / said["file"]))
        except (OSError, ValueError, KeyError):
            return 0, math.nan
        return int(said["epochs"]), float(said["loss"])

    def keep(self, epochs: int, loss: float) -> None:
        """Writes the state, then the note that names it, then takes away the one before."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = f"epoch-{epochs}"
        self._checkpoint.write(str(self._folder / file))
        atomic_write(self._folder / "done.json", json.dumps({"epochs": epochs, "file": file, "loss": loss}).encode())
        for old in self._folder.glob(f"epoch-{epochs - 1}.*"):
            old.unlink()


def _rows(array: Any) -> Any:
    """Samples whose first axis is the batch of one as rows."""
    return array.reshape(-1, *array.shape[2:]) if array.ndim > 1 and array.shape[1] == 1 else array


def _is_distribution(values: Any) -> bool:
    return values.ndim == 2 and values.shape[1] > 1 and values.min() >= 0 and bool(np.all(np.abs(values.sum(1) - 1) < 1e-3))


def _labels(train: Dataset, teacher: Sequence[Any]) -> Any:
    """Class numbers of the only output, one per sample; None where there are no such labels."""
    if len(teacher) != 1 or teacher[0].ndim != 2:
        return None
    for target in train.targets.values():
        flat = target.reshape(len(target), -1)
        if target.dtype.kind in "iu" and flat.shape[1] == 1 and flat.min() >= 0 and flat.max() < teacher[0].shape[1]:
            return flat[:, 0]
    return None
