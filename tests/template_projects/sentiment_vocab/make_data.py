import os
import random

rnd = random.Random(11)
good, bad = (
    "great superb moving funny warm clever".split(),
    "dull awful slow flat noisy weak".split(),
)
filler = "the film was a plot with actor and scene of story".split()
os.makedirs("data", exist_ok=True)
with open("data/reviews.tsv", "w") as f:
    for i in range(200):
        label = rnd.randint(0, 1)
        words = rnd.choices(filler, k=rnd.randint(4, 12)) + rnd.choices(good if label else bad, k=2)
        rnd.shuffle(words)
        f.write("%s\t%s\n" % (["neg", "pos"][label], " ".join(words)))
