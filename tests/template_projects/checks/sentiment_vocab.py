import torch
from check__plain import STATE, end, held_out, mean, same, trained
from sklearn.metrics import f1_score

from data_loader.data_loaders import ReviewDataLoader
from model.model import TextCNN

loader = ReviewDataLoader("data/reviews.tsv", 20, True, 0.2, 0)
vocab = loader.dataset.vocab
model = trained(TextCNN(vocab, 2, 16, [2, 3], 0.2))
with torch.no_grad():
    guesses = [(model(x).argmax(1), y) for x, y in held_out(loader)]
same("valid/accuracy", torch.cat([g == y for g, y in guesses]).float().mean())
same("valid/macro_f1", mean((f1_score(y, g, average="macro"), len(y)) for g, y in guesses))

# The groups of the optimizer that before/train.py builds.
lr, no_decay, params = 0.02, ["bias", "norm"], dict(model.named_parameters())
wanted = {
    name: (lr * 0.1, 0.01)
    if "embed" in name
    else (lr, 0.0 if any(nd in name for nd in no_decay) else 0.01)
    for name in params
}
groups = STATE["optimizer.main"]["param_groups"]
found = {
    name: (group["initial_lr"], group["weight_decay"])
    for group in groups
    for name in group["param_names"]
}
assert {k: (round(a, 9), b) for k, (a, b) in found.items()} == {
    k: (round(a, 9), b) for k, (a, b) in wanted.items()
}
rates = sorted(group["lr"] / group["initial_lr"] for group in groups)
assert max(rates) - min(rates) < 1e-9
end()
