from collections import Counter


class Vocab:
    """What torchtext's Field.build_vocab used to make"""

    def __init__(self, sentences, specials=("<pad>", "<sos>", "<eos>", "<unk>")):
        counter = Counter(tok for s in sentences for tok in s)
        self.itos = list(specials) + [tok for tok, _ in sorted(counter.items())]
        self.stoi = {tok: i for i, tok in enumerate(self.itos)}

    def __len__(self):
        return len(self.itos)

    def numericalize(self, tokens):
        return [self.stoi.get(t, self.stoi["<unk>"]) for t in tokens]
