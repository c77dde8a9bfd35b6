import random

import torch


class ImagePool:
    """Earlier fakes, half of the time shown to the discriminator in place of the newest"""

    def __init__(self, pool_size):
        self.pool_size = pool_size
        self.images = []

    def query(self, images):
        return_images = []
        for image in images:
            image = torch.unsqueeze(image.data, 0)
            if len(self.images) < self.pool_size:
                self.images.append(image)
                return_images.append(image)
            elif random.uniform(0, 1) > 0.5:
                random_id = random.randint(0, self.pool_size - 1)
                return_images.append(self.images[random_id].clone())
                self.images[random_id] = image
            else:
                return_images.append(image)
        return torch.cat(return_images, 0)

    def state_dict(self):
        return {"images": list(self.images)}

    def load_state_dict(self, state):
        self.images = list(state["images"])
