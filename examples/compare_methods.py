"""Three methods over three seeds: a table for LaTeX, paired differences, and the figure.

A few images per class and few epochs make it quick; leave `shots`, `epochs` and `limit` out for
real numbers.
"""

from statistics import fmean

from cl_clipfit import RunConfig, load_results, run

METHODS = ["zero-shot", "clipfit", "lda"]

config = RunConfig(strategy=METHODS, seed=[0, 1, 2], tasks=2, shots=8, epochs=5, limit=20, probe=[])
results = run(config)  # complete runs are not repeated: start it again, and it only reads them
print(results.to_latex())

last = {
    (result.label, result.seed): accuracy
    for result in load_results("runs")
    if (accuracy := result.metrics["last_accuracy"]) is not None
}
for method in METHODS[1:]:
    differences = [last[method, seed] - last["zero-shot", seed] for seed in config.seed]
    print(f"{method}: {fmean(differences):+.1f} points over zero-shot")

results.plot().savefig("methods.svg")
