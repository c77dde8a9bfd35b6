import torch
from check__plain import LAST, end, same, trained

from data_loader.data_loaders import SpeechDataset
from model.model import AudioCRNN

model, data = trained(AudioCRNN(12, 24, ["yes", "no", "stop"])), SpeechDataset("data/valid.txt")
with torch.no_grad():  # one by one, so without padding
    scores = [(model(x[None], torch.tensor([len(x)]))[0], y) for x, y in data]
assert len(scores) == 33
assert abs(LAST["valid/loss"] + sum(s[y].item() for s, y in scores) / 33) < 0.05  # padding is near
pairs = [(int(s.argmax()), y) for s, y in scores]
assert abs(LAST["valid/accuracy"] - sum(a == b for a, b in pairs) / 33) < 0.07
same("lr", 0.005)
end()
