"""What the columns of a report mean, with the formulas of `metrics.functional`."""

from collections.abc import Mapping, Sequence

# By metric: name, formula, meaning. R_t,j is the accuracy on task j after task t, n_j its images.
_DEFINITIONS: Mapping[str, tuple[str, str, str]] = {
    "average_accuracy": (
        "average accuracy", "(1/T) · Σ_t A_t, with A_t = Σ_{j≤t} n_j R_t,j / Σ_{j≤t} n_j",
        "mean over tasks of the accuracy on all classes seen (iCaRL: average incremental accuracy)",
    ),
    "last_accuracy": ("last accuracy", "A_T", "accuracy on all classes after the last task"),
    "learning_accuracy": (
        "learning accuracy", "(1/T) · Σ_t R_t,t", "accuracy on each task, just after learning it",
    ),
    "forgetting_all_classes": (
        "forgetting (all classes)", "(1/(T-1)) · Σ_{j<T} (max_{j≤s<T} R_s,j - R_T,j)",
        "best accuracy on a task since it was learned, minus the last one (Chaudhry et al. 2018);"
        " among all classes of the stream, so that it does not grow with their number",
    ),
    "retention": (
        "retention", "mean over probes p of P_T,p - P_0,p",
        "accuracy on data sets that are never trained on, after the last task minus that of"
        " zero-shot CLIP",
    ),
    "probe_accuracy": (
        "mean over probes", "mean over probes p of P_T,p", "the same, nothing subtracted",
    ),
    "joint_accuracy": (
        "joint accuracy", "A_T among the classes seen and the names of all probes",
        "accuracy where the classes of the stream compete with those of the probes",
    ),
    "joint_retention": (
        "joint retention", "mean over probes p of J_T,p - Z_T,p",
        "accuracy J on the probes where both compete, minus that of zero-shot CLIP, Z, likewise",
    ),
    "transfer": (
        "Transfer", "mean over j≥2 of the mean over t<j of R_t,j, among the task's own classes",
        "zero-shot accuracy kept on tasks not yet learned (MTIL)",
    ),
    "mtil_average": (
        "Average", "mean over t and j of R_t,j, among the task's own classes", "the whole matrix",
    ),
    "mtil_last": (
        "Last", "mean over j of R_T,j, among the task's own classes", "its last row",
    ),
    "x_tail_transfer": (
        "Transfer", "as MTIL's, among all classes", "zero-shot accuracy kept on tasks to come",
    ),
    "x_tail_average": ("Average", "as MTIL's, among all classes", "the whole matrix"),
    "x_tail_last": ("Last", "as MTIL's, among all classes", "its last row"),
    "base": ("base", "R_1,1 among the base classes", "accuracy on the classes that were trained"),
    "novel": ("novel", "R_1,2 among the novel classes", "accuracy on classes that were not"),
    "harmonic_mean": ("harmonic mean", "2 b n / (b + n)", "of base and novel"),
}  # fmt: skip


def definitions(shown: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return name, formula and meaning of the metrics of a table's columns.

    Example:
        >>> definitions(["last_accuracy", "probe: letters"])
        [('last accuracy', 'A_T', 'accuracy on all classes after the last task')]
    """
    return [_DEFINITIONS[key] for key in shown if key in _DEFINITIONS]
