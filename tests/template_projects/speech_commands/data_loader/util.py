import wave

import numpy as np


def load_audio(path):
    with wave.open(path, "rb") as w:
        sr = w.getframerate()
        sig = np.frombuffer(w.readframes(w.getnframes()), dtype="<i2")
    return sig.astype(np.float32) / 32768.0, sr


def log_bands(sig, n_mels, n_fft=256, hop=128):
    """(time,) -> (frames, n_mels): not quite mel, evenly wide bands"""
    frames = np.stack([sig[i : i + n_fft] for i in range(0, len(sig) - n_fft + 1, hop)])
    spec = np.abs(np.fft.rfft(frames * np.hanning(n_fft)))[:, : n_mels * 8]
    return np.log(1e-3 + spec.reshape(len(spec), n_mels, 8).mean(-1))
