"""Your own Avalanche benchmark, plug-ins, loggers and metrics, with a strategy of cl_clipfit.

Any strategy serves in the place of CLIPFit. Labels index `class_names`.
"""

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import CSVLogger, InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset

from cl_clipfit import Recipe, create_classifier
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class Digits(Dataset[tuple[Tensor, int]]):
    """Every eighth handwritten digit of scikit-learn, as uint8 images (3, 8, 8)."""

    def __init__(self, start: int) -> None:
        data = load_digits()
        images = torch.from_numpy(data.images[start::8] * 15).to(torch.uint8)
        self.images = images[:, None].expand(-1, 3, -1, -1)
        self.targets = data.target[start::8].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


benchmark = nc_benchmark(Digits(0), Digits(1), n_experiences=2, task_labels=False, seed=0)
strategy = ClipFit(
    model=create_classifier("mini"),
    class_names=NAMES,
    templates=["a photo of the number {}."],
    recipe=Recipe(epochs=1, lr=5e-4),
    options=ClipFitOptions(ce_scope="seen"),  # replay mixes classes of earlier tasks in
    plugins=[ReplayPlugin(mem_size=50), EWCPlugin(ewc_lambda=10.0)],
    evaluator=EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(experience=True),
        loss_metrics(epoch=True, experience=True),
        loggers=[InteractiveLogger(), CSVLogger("logs")],
    ),
)
for experience in benchmark.train_stream:
    strategy.train(experience, eval_streams=[])
    measured = strategy.eval(benchmark.test_stream)
print(f"accuracy: {100 * measured['Top1_Acc_Stream/eval_phase/test_stream/Task000']:.1f} %")
