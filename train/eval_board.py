"""What TensorBoard shows of an evaluation during training beside its metrics: AP of each class, and pictures."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from train.ava_classes import DEFAULT_CUTOFFS
from train.eval_files import draw
from train.evaluators import Result
from train.keyframe_pictures import KeyframePictures
from train.tasks import Task


class EvalBoard:
    """Turns results of the first rank into scalars and pictures, each with its tag.

    TensorBoard shows tags with the same beginning, up to the first slash, under one heading.

    Args:
        keyframes: of each localisation task, how many are drawn.
    """

    def __init__(self, tasks: Sequence[Task], keyframes: int) -> None:
        self.tasks = {task.name: task for task in tasks}
        self.keyframes = {
            task.name: KeyframePictures(task.val, keyframes)
            for task in tasks
            if task.val is not None and task.recipe.kind == "localisation"
        }

    def scalars(self, results: Mapping[str, Result]) -> dict[str, float]:
        """`{task}_AP/{class}` of each class of a localisation task that has ground truth."""
        return {
            f"{name}_AP/{class_name}": ap
            for name in self.keyframes
            for class_name, ap in results[name].per_class.items()
            if ap is not None
        }

    def pictures(self, results: Mapping[str, Result]) -> Callable[[], dict[str, np.ndarray]]:
        """What draws, in some seconds, `{task}/confusion` of a classification task; of a localisation task
        `{task}/ap_by_frequency`, and `{task}_keyframes/{video}, {second} s`: uint8 [H, W, 3], RGB.

        All that is read and imported is so before it returns: the loader's workers are forked, and a thread that draws
        meanwhile must hold nothing that they want.
        """
        from train import confusion_picture, figures, frequency_picture  # noqa: F401 - takes a second

        for keyframes in self.keyframes.values():
            keyframes.read()
        return lambda: self._draw(results)

    def _draw(self, results: Mapping[str, Result]) -> dict[str, np.ndarray]:
        from train.figures import pixels

        pictures = {}
        for name, result in results.items():
            for title, figure in draw(self.tasks[name], result, DEFAULT_CUTOFFS).items():
                pictures[f"{name}/{title}"] = pixels(figure)
            if result.boxes is not None:
                drawn = self.keyframes[name].draw(result.boxes)
                pictures |= {f"{name}_keyframes/{title}": picture for title, picture in drawn.items()}
        return pictures
