import numpy as np


def _classes(output):
    return np.argmax(output.detach().cpu().numpy(), axis=1)


def mean_iou(output, target):
    predicted, target = _classes(output), target.cpu().numpy()
    ious = []
    for label in range(output.shape[1]):
        union = np.logical_or(predicted == label, target == label).sum()
        if union:
            ious.append(np.logical_and(predicted == label, target == label).sum() / union)
    return np.mean(ious)


def pixel_accuracy(output, target):
    return (np.argmax(np.asarray(output), axis=1) == np.asarray(target)).mean()
