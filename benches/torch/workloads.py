"""Six real programs with random weights and inputs: the models of the recordings in `benches/traces`.

Each function takes a scale of the batch and returns a function for one step, which returns a tensor that depends on all
that the step computed: the loss where there is one.
"""

import random

import torch

from deterministic import patch_torchvision

#: name: (function, steps, steps between waits for the device)
WORKLOADS = {}


def workload(steps, wait_every=1):
    def add(function):
        WORKLOADS[function.__name__] = (function, steps, wait_every)
        return function

    return add


def _gpt2(layers=12):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=layers, n_embd=768, n_head=12, resid_pdrop=0.1, use_cache=False)
    return GPT2LMHeadModel(config).cuda()


def _gpt2_step(model, optimizer, batch, length):
    tokens = torch.randint(0, 50000, (batch, length), device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


@workload(steps=40)
def gpt2_train(scale=1.0):
    """A language model, batches of one shape."""
    model = _gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = max(1, round(8 * scale))
    return lambda: _gpt2_step(model, optimizer, batch, 512)


@workload(steps=40)
def gpt2_lengths(scale=1.0):
    """A language model, batches of any length."""
    model = _gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = max(1, round(8 * scale))
    return lambda: _gpt2_step(model, optimizer, batch, random.randint(64, 1024))


@workload(steps=24)
def maskrcnn_train(scale=1.0):
    """Detection: images and boxes of any size."""
    import torchvision

    # Without this it is one operation that makes the losses differ from run to run.
    patch_torchvision()
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=10)
    model = model.cuda().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    most = max(1, round(4 * scale))

    def step():
        images, targets = [], []
        for _ in range(random.randint(1, most)):
            height, width, boxes = random.randint(400, 900), random.randint(400, 900), random.randint(1, 15)
            images.append(torch.rand(3, height, width, device="cuda"))
            corner = torch.rand(boxes, 2, device="cuda") * torch.tensor([width * 0.5, height * 0.5], device="cuda")
            extent = torch.rand(boxes, 2, device="cuda") * torch.tensor([width * 0.4, height * 0.4], device="cuda") + 4
            targets.append(
                {
                    "boxes": torch.cat([corner, corner + extent], 1),
                    "labels": torch.randint(1, 10, (boxes,), device="cuda"),
                    "masks": torch.zeros(boxes, height, width, dtype=torch.uint8, device="cuda"),
                }
            )
        loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


@workload(steps=24)
def moe_train(scale=1.0):
    """A mixture of experts: how many tokens each gets changes from step to step."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=16000,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=8,
    )
    model = MixtralForCausalLM(config).cuda().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    most = max(1, round(8 * scale))

    def step():
        shape = (random.randint(1, most), random.randint(64, 1024))
        tokens = torch.randint(0, 16000, shape, device="cuda")
        loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


@workload(steps=160)
def gnn_sampled(scale=1.0):
    """A graph network on samples of any size."""
    from torch_geometric.nn import GATConv, SAGEConv

    nodes = 200_000
    features = torch.rand(nodes, 128, device="cuda")
    edges = torch.randint(0, nodes, (2, 3_000_000), device="cuda")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = SAGEConv(128, 256)
            self.attention = GATConv(256, 64, heads=4)
            self.last = SAGEConv(256, 40)

        def forward(self, x, e):
            return self.last(self.attention(self.first(x, e).relu(), e).relu(), e)

    model = Net().cuda()
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        count = min(nodes, max(1, round(random.randint(2_000, 60_000) * scale)))
        chosen = torch.randperm(nodes, device="cuda")[:count]
        mask = torch.zeros(nodes, dtype=torch.bool, device="cuda")
        mask[chosen] = True
        inner = edges[:, mask[edges[0]] & mask[edges[1]]]
        renamed = torch.full((nodes,), -1, device="cuda")
        renamed[chosen] = torch.arange(count, device="cuda")
        loss = model(features[chosen], renamed[inner]).logsumexp(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


@workload(steps=5)
def llama_generate(scale=1.0):
    """A language model that answers requests of any size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=8192,
    )
    model = LlamaForCausalLM(config).cuda().to(torch.bfloat16).eval()
    most = max(1, round(16 * scale))

    @torch.inference_mode()
    def step():
        requests, length = random.randint(1, most), random.randint(16, 1500)
        tokens = torch.randint(0, 32000, (requests, length), device="cuda")
        new = random.randint(8, 48)
        answer = model.generate(tokens, max_new_tokens=new, do_sample=True, pad_token_id=0)
        return answer.double().mean()

    return step


@workload(steps=3001, wait_every=50)
def prefetch_streams(scale=1.0):
    """Copies on one stream, work on two others, results handed across with record_stream."""
    streams = [torch.cuda.Stream() for _ in range(3)]
    weights = [torch.rand(2048, 2048, device="cuda") / 2048 for _ in range(4)]
    rows = [max(1, round(random.randint(64, 4096) * scale)) for _ in range(16)]
    host = [torch.rand(count, 2048).pin_memory() for count in rows]
    torch.cuda.synchronize()
    turn = 0

    def step():
        nonlocal turn
        turn += 1
        with torch.cuda.stream(streams[0]):
            x = random.choice(host).to("cuda", non_blocking=True)
        worker = streams[1 + turn % 2]
        worker.wait_stream(streams[0])
        with torch.cuda.stream(worker):
            x.record_stream(worker)
            y = x
            for weight in weights:
                y = torch.relu(y @ weight)
            z = y.sum(1)
        torch.cuda.current_stream().wait_stream(worker)
        z.record_stream(torch.cuda.current_stream())
        return z.double().mean()

    return step
