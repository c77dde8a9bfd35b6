import torch
import torch.nn.functional as F
from check__plain import STATE, end, held_out, same, trained

from data_loader.data_loaders import FaceDataLoader
from model.model import FaceNet

model = trained(FaceNet({"channels": [8, 16]}, ["age", "gender"]))
batches = held_out(FaceDataLoader(25, True, 0.2, 0))
whole = {key: torch.cat([b[key] for b in batches]) for key in ("image", "age", "gender")}
with torch.no_grad():
    found = model(whole["image"])
    a, g = STATE["model"]["log_vars"]
    terms = {
        "age": F.smooth_l1_loss(found["age"], whole["age"]) * torch.exp(-a),
        "gender": F.binary_cross_entropy_with_logits(found["gender"], whole["gender"])
        * torch.exp(-g),
        "uncertainty": a + g,
    }
for name, value in terms.items():
    same(f"valid/{name}", value)
same("valid/loss", sum(terms.values()))
same("valid/age_mae", (found["age"] - whole["age"]).abs().mean())
end()
