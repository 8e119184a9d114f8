"""Follow a run from a program: the terms of its loss, and the table of accuracies as it fills."""

from collections.abc import Sequence

from cl_clipfit import CLIPStrategy, Progress, RunConfig, run


class Follower(Progress):
    """Keeps the terms of every fifth step, and prints the rows of the table."""

    def __init__(self) -> None:
        self.steps = 0
        self.terms: list[dict[str, float]] = []

    def step(self, strategy: CLIPStrategy) -> None:
        """Read the terms rarely: that waits for a GPU."""
        self.steps += 1
        if self.steps % 5 == 0:
            self.terms.append(strategy.read_terms())

    def row(self, task: int, row: Sequence[float | None]) -> None:
        """Print the accuracy on every task learned."""
        known = [f"{accuracy:.1f}" for accuracy in row if accuracy is not None]
        print(f"after task {task}: {' '.join(known)} %")


follower = Follower()
run(RunConfig(strategy=["clipfit"], tasks=2, epochs=5, limit=10, probe=[], fresh=True), follower)
for terms in follower.terms:
    print(", ".join(f"{name} {value:.3f}" for name, value in terms.items()))
