"""What each task changed: which layers moved, weights between two tasks, and a merged model."""

import torch

from cl_clipfit import RunConfig, merging, open_run, run

(result,) = run(RunConfig(strategy=["clipfit"], tasks=2, epochs=1, limit=10, probe=[]))
finished = open_run(result.path)  # its stream, its strategy and the bank of its deltas
model, bank = finished.strategy.model, finished.bank

for task in range(1, len(bank) + 1):
    change = bank.delta(task).difference(model.pretrained_values)
    layer = max(change, key=lambda name: change[name].square().mean().item())
    print(f"after task {task}, {len(change)} tensors differ; {layer} moved most")

first, last = bank.load(1), bank.load(2)
halfway = merging.interpolate(first, last, 0.5)
images = finished.scenario.test.images[:4]
with torch.no_grad(), model.weights(halfway):  # restores the weights at its end
    print("halfway:", [model.class_names[at] for at in model(images).argmax(1).tolist()])
