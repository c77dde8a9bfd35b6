import torch
from check__plain import STATE, end, same

same("lr/G", 0.002)
pools = [STATE[f"pool.{name}"]["images"] for name in "AB"]
assert [len(pool) for pool in pools] == [20, 20]
assert pools[0][0].shape == (1, 1, 32)
assert not any(torch.equal(pools[0][0], image) for image in pools[0][1:])
# The discriminators' optimizer has never moved the generators, nor the other way round.
for name, part in (("G", "G_"), ("D", "D_")):
    names = [
        each
        for group in STATE[f"optimizer.{name}"]["param_groups"]
        for each in group["param_names"]
    ]
    assert names
    assert all(each.startswith(part) for each in names)
end()
