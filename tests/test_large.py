"""A checkpoint of a billion weights, explored with the memory of one tensor."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

LAYERS, WIDE, LONG = 24, 2048, 8192  # 24 blocks of 50 M weights: 1.2 billion

READ = """
import json, resource, sys, time
import torch
from randprune_lab import Explorer, ExploreState, open_source
start = time.perf_counter()
explorer = Explorer(open_source(sys.argv[1]))
state = explorer.start(ExploreState(model=sys.argv[1], candidates=2))
quick = explorer.quick(state)
first = time.perf_counter() - start
rows = list(explorer.rows(state))
masks = [table["done"] for table in explorer.candidates(state)]
print(json.dumps({
    "first picture, s": first,
    "table, s": time.perf_counter() - start,
    "rows": len(rows), "weights": sum(row.n for row in rows), "problems": sum(row.problem is not None for row in rows),
    "masks": masks,
    "memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "shown": quick["microscope"]["title"],
}))
"""


@pytest.mark.slow
def test_a_billion_weights(tmp_path, record_property):
    shapes = {"attention.q": (WIDE, WIDE), "attention.k": (WIDE, WIDE), "attention.v": (WIDE, WIDE)}
    shapes |= {"attention.o": (WIDE, WIDE), "up": (LONG, WIDE), "down": (WIDE, LONG)}
    index = {}
    for layer in range(LAYERS):
        name = f"model-{layer:05d}.safetensors"
        generator = torch.Generator().manual_seed(layer)
        tensors = {
            f"layers.{layer}.{part}.weight": torch.randn(shape, generator=generator).bfloat16()
            for part, shape in shapes.items()
        }
        save_file(tensors, tmp_path / name)
        index |= dict.fromkeys(tensors, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    said = subprocess.check_output([sys.executable, "-c", READ, str(tmp_path)], text=True)
    record_property("measured", said)
    found = json.loads(said)
    assert (found["rows"], found["problems"], found["masks"]) == (6 * LAYERS, 0, [1, 2])
    assert found["weights"] > 1e9
    assert found["memory, GB"] < 3
