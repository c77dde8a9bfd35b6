import os
import wave

import numpy as np

WORDS = {"yes": (300, 900), "no": (700, 250), "stop": (500, 500)}  # a glide from, to, in Hz
rng = np.random.RandomState(5)
for part, n in (("train", 96), ("valid", 33)):
    lines = []
    for i in range(n):
        word = sorted(WORDS)[i % 3]
        lo, hi = WORDS[word]
        length = rng.randint(1600, 3200)
        t = np.linspace(0, 1, length)
        pitch = (lo + (hi - lo) * t) * rng.uniform(0.9, 1.1)
        signal = np.sin(2 * np.pi * np.cumsum(pitch) / 4000) * 0.5 + 0.1 * rng.randn(length)
        path = os.path.join("data", part, word, "%03d.wav" % i)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with wave.open(path, "wb") as w:
            w.setnchannels(1), w.setsampwidth(2), w.setframerate(4000)
            w.writeframes((np.clip(signal, -1, 1) * 32767).astype("<i2").tobytes())
        lines.append(path + "\t" + word)
    with open(os.path.join("data", part + ".txt"), "w") as f:
        f.write("\n".join(lines))
