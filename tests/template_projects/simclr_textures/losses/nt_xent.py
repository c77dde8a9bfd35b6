import torch
import numpy as np


class NTXentLoss(torch.nn.Module):
    def __init__(self, temperature, use_cosine_similarity):
        super(NTXentLoss, self).__init__()
        self.temperature = temperature
        self.softmax = torch.nn.Softmax(dim=-1)
        self.similarity_function = self._get_similarity_function(use_cosine_similarity)
        self.criterion = torch.nn.CrossEntropyLoss(reduction="sum")

    def _get_similarity_function(self, use_cosine_similarity):
        if use_cosine_similarity:
            self._cosine_similarity = torch.nn.CosineSimilarity(dim=-1)
            return self._cosine_simililarity
        else:
            return self._dot_simililarity

    def _get_correlated_mask(self, n):
        diag = np.eye(2 * n)
        l1 = np.eye((2 * n), 2 * n, k=-n)
        l2 = np.eye((2 * n), 2 * n, k=n)
        mask = torch.from_numpy((diag + l1 + l2))
        return (1 - mask).type(torch.bool)

    @staticmethod
    def _dot_simililarity(x, y):
        return torch.tensordot(x.unsqueeze(1), y.T.unsqueeze(0), dims=2)

    def _cosine_simililarity(self, x, y):
        return self._cosine_similarity(x.unsqueeze(1), y.unsqueeze(0))

    def forward(self, zis, zjs):
        n = zis.shape[0]
        representations = torch.cat([zjs, zis], dim=0)
        similarity_matrix = self.similarity_function(representations, representations)
        l_pos = torch.diag(similarity_matrix, n)
        r_pos = torch.diag(similarity_matrix, -n)
        positives = torch.cat([l_pos, r_pos]).view(2 * n, 1)
        negatives = similarity_matrix[self._get_correlated_mask(n).to(zis.device)].view(2 * n, -1)
        logits = torch.cat((positives, negatives), dim=1)
        logits /= self.temperature
        labels = torch.zeros(2 * n).to(zis.device).long()
        loss = self.criterion(logits, labels)
        return loss / (2 * n)
