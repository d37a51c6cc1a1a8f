"""Thirteen further programs with random weights and inputs, which the pool was not made with, but for one rule that two asked for.

Each function builds a program and returns a function for one step, which is given the step's number and returns a tensor
that depends on what the step computed: the loss where there is one. Sizes are drawn anew in each step, by `random`. Results
are bound to no more names than a step needs, as a name keeps memory.
"""

import itertools
import random

import torch
import torch.nn.functional as F
from torch import nn

#: name: (function, steps, steps between waits for the device)
PROGRAMS = {}


def program(steps, wait_every=1):
    def add(function):
        PROGRAMS[function.__name__] = (function, steps, wait_every)
        return function

    return add


def as_workload(name):
    """A program in the form of a workload, whose steps count by themselves."""
    function, steps, wait_every = PROGRAMS[name]

    def build(scale):
        if scale != 1.0:
            raise ValueError(f"{name} has one size, and can't be scaled by {scale}")
        step, numbers = function(), itertools.count()
        return lambda: step(next(numbers))

    return build, steps, wait_every


@program(steps=180)
def resnet_train():
    """Pictures of any size, batches of any size, and an evaluation now and then."""
    import torchvision

    model = torchvision.models.resnet50(weights=None).cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(number):
        side = random.choice([160, 192, 224, 256, 288])
        batch = random.choice([32, 48, 64])
        images = torch.rand(batch, 3, side, side, device="cuda").contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(images), torch.randint(0, 1000, (batch,), device="cuda"))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number % 20 == 19:
            model.eval()
            with torch.no_grad():
                model(torch.rand(128, 3, 256, 256, device="cuda"))
            model.train()
        return loss.detach()

    return step


class Residual(nn.Module):
    """Two convolutions and a way past them."""

    def __init__(self, width, out):
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, padding=1)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.norm = nn.GroupNorm(8, out)
        self.past = nn.Conv2d(width, out, 1)

    def forward(self, x):
        return self.second(F.silu(self.norm(self.first(x)))) + self.past(x)


class UNet(nn.Module):
    """Down by halves, attention at the bottom, and up again with what was on the way down."""

    def __init__(self, widths=(64, 128, 256, 512)):
        super().__init__()
        self.enter = nn.Conv2d(4, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Residual(a, b) for a, b in zip(widths, widths[1:]))
        self.attention = nn.MultiheadAttention(widths[-1], 8, batch_first=True)
        self.up = nn.ModuleList(Residual(b + b, a) for a, b in zip(widths, widths[1:]))
        self.leave = nn.Conv2d(widths[0], 4, 3, padding=1)

    def forward(self, x):
        x = self.enter(x)
        skipped = []
        for block in self.down:
            x = block(x)
            skipped.append(x)
            x = F.avg_pool2d(x, 2)
        batch, width, high, wide = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        x = self.attention(tokens, tokens, tokens, need_weights=False)[0] + tokens
        x = x.transpose(1, 2).reshape(batch, width, high, wide)
        for block, skip in zip(reversed(self.up), reversed(skipped)):
            x = F.interpolate(x, size=skip.shape[2:])
            x = block(torch.cat([x, skip], 1))
        return self.leave(x)


@program(steps=140)
def unet_diffusion():
    """Diffusion: three steps of training, then one that draws a picture in some 5 to 25 steps of its own."""
    model = UNet().cuda()
    optimizer = torch.optim.AdamW(model.parameters())

    def step(number):
        batch, side = random.randint(1, 12), random.choice([48, 64, 80, 96, 112])
        if number % 4 == 3:
            with torch.inference_mode(), torch.autocast("cuda", dtype=torch.float16):
                x = torch.randn(2, 4, side, side, device="cuda")
                for _ in range(random.randint(5, 25)):
                    both = model(torch.cat([x, x]))
                    plain, guided = both.chunk(2)
                    x = x - 0.01 * (plain + 7.5 * (guided - plain))
                return x.double().mean()
        x = torch.randn(batch, 4, side, side, device="cuda")
        loss = F.mse_loss(model(x), x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


@program(steps=100)
def bert_varlen():
    """A language model on sentences of any length, padded to the longest, with gradients of three batches added up."""
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(num_hidden_layers=8)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(number):
        lengths = [max(8, min(512, int(random.lognormvariate(4.3, 0.8)))) for _ in range(16)]
        tokens = torch.randint(0, 30000, (16, max(lengths)), device="cuda")
        mask = torch.zeros_like(tokens)
        for row, length in enumerate(lengths):
            mask[row, :length] = 1
        loss = model(tokens, attention_mask=mask, labels=tokens).loss
        loss.backward()
        if number % 3 == 2:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


class RecurrentLM(nn.Module):
    """Words in, the next word out, by three layers of LSTM."""

    def __init__(self, words=30000, width=650):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, 3, dropout=0.3, batch_first=True)
        self.head = nn.Linear(width, words)

    def forward(self, x):
        return self.head(self.lstm(self.embedding(x))[0])


@program(steps=170)
def lstm_lm():
    """A recurrent language model: few and large blocks, batch and length of any size."""
    model = RecurrentLM().cuda()
    optimizer = torch.optim.Adam(model.parameters())

    def step(_):
        shape = (random.randint(4, 64), random.randint(10, 100))
        tokens = torch.randint(0, 30000, shape, device="cuda")
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _bags(rows, bags):
    """Where in so many rows each bag begins: anywhere, the first at 0."""
    starts = torch.sort(torch.randint(0, rows, (bags,), device="cuda"))[0]
    return starts.index_fill(0, torch.zeros(1, dtype=torch.long, device="cuda"), 0)


@program(steps=760)
def dlrm():
    """Recommendations: 26 tables, some large, with sparse gradients."""
    tables = nn.ModuleList(
        nn.EmbeddingBag(random.randint(1000, 400000), 64, sparse=True, mode="sum") for _ in range(26)
    ).cuda()
    top = nn.Sequential(nn.Linear(27 * 64, 512), nn.ReLU(), nn.Linear(512, 1)).cuda()
    bottom = nn.Linear(13, 64).cuda()
    sparse = torch.optim.SGD(tables.parameters(), lr=0.1)
    dense = torch.optim.Adagrad(list(top.parameters()) + list(bottom.parameters()))

    def step(_):
        batch = random.choice([512, 1024, 2048, 4096])
        features = [bottom(torch.rand(batch, 13, device="cuda"))]
        for table in tables:
            rows = random.randint(batch, batch * 6)
            features.append(
                table(torch.randint(0, table.num_embeddings, (rows,), device="cuda"), _bags(rows, batch))
            )
        loss = F.binary_cross_entropy_with_logits(
            top(torch.cat(features, 1)).squeeze(1), torch.rand(batch, device="cuda")
        )
        loss.backward()
        sparse.step()
        dense.step()
        sparse.zero_grad()
        dense.zero_grad()
        return loss.detach()

    return step


class Request:
    """What a server keeps of a request: keys and values of each layer, and how many tokens are to come."""

    def __init__(self, layers, heads, width):
        length = random.randint(10, 800)
        shape = (length, heads, width)
        self.caches = [
            (
                torch.rand(shape, device="cuda", dtype=torch.float16),
                torch.rand(shape, device="cuda", dtype=torch.float16),
            )
            for _ in range(layers)
        ]
        self.left = random.randint(5, 400)


@program(steps=980)
def kv_serving():
    """A server whose requests come and go: the caches of up to 24 of them grow by a token, 12 in each step."""
    heads, layers, width = 8, 12, 64
    inner = heads * width
    weights = [torch.rand(inner, 3 * inner, device="cuda", dtype=torch.float16) for _ in range(layers)]
    requests = []

    @torch.inference_mode()
    def step(number):
        while len(requests) < 48 and random.random() < 0.6:
            requests.append(Request(layers, heads, width))
        x = torch.rand(len(requests), inner, device="cuda", dtype=torch.float16)
        first = 0 if number % 2 else 12
        for layer in range(layers):
            queries, keys, values = (x @ weights[layer]).view(len(requests), 3, heads, width).unbind(1)
            scores = []
            for row, request in enumerate(requests[first : first + 12], first):
                past_keys, past_values = request.caches[layer]
                past_keys = torch.cat([past_keys, keys[row : row + 1]])
                past_values = torch.cat([past_values, values[row : row + 1]])
                request.caches[layer] = (past_keys, past_values)
                scores.append(torch.einsum("hd,nhd->hn", queries[row], past_keys).softmax(-1))
        for request in requests:
            request.left -= 1
        requests[:] = [request for request in requests if request.left > 0]
        return sum((score.double().max() for score in scores), x.double().mean())

    return step


@program(steps=80)
def checkpointed():
    """A transformer whose layers are computed once more on the way back."""
    from torch.utils.checkpoint import checkpoint

    layers = nn.ModuleList(
        nn.TransformerEncoderLayer(1024, 16, 4096, batch_first=True, dropout=0.1) for _ in range(8)
    ).cuda()
    embedding = nn.Embedding(32000, 1024).cuda()
    head = nn.Linear(1024, 32000).cuda()
    parameters = [*layers.parameters(), *embedding.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, foreach=True)

    def step(_):
        shape = (random.randint(1, 4), random.choice([256, 512, 1024, 1536]))
        tokens = torch.randint(0, 32000, shape, device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            x = embedding(tokens)
            for layer in layers:
                x = checkpoint(layer, x, use_reentrant=False)
            loss = F.cross_entropy(head(x).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


@program(steps=110)
def pipeline_streams():
    """Four stages, a stream of its own each, through which four batches go one after the other."""
    streams = [torch.cuda.Stream() for _ in range(4)]
    stages = [nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).cuda() for _ in streams]
    optimizers = [torch.optim.Adam(stage.parameters()) for stage in stages]

    def step(_):
        batches = [torch.rand(random.randint(16, 2048), 1024, device="cuda") for _ in range(4)]
        for batch in batches:
            x = batch
            for stream, stage in zip(streams, stages):
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    x.record_stream(stream)
                    y = stage(x)
                torch.cuda.current_stream().wait_stream(stream)
                x = y
            x.record_stream(torch.cuda.current_stream())
            loss = x.sum()
            loss.backward()
        for stream in streams:
            torch.cuda.current_stream().wait_stream(stream)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return step


@program(steps=4500, wait_every=50)
def two_workers():
    """Copies on one stream, up to six ahead of two workers that take them at random."""
    copier, one, other = (torch.cuda.Stream() for _ in range(3))
    weights = [torch.rand(1024, 1024, device="cuda") for _ in range(6)]
    host = [torch.rand(random.randint(32, 6000), 1024).pin_memory() for _ in range(24)]
    queue = []

    def step(number):
        with torch.cuda.stream(copier):
            x = random.choice(host).to("cuda", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(copier)
        queue.append((x, copied))
        if len(queue) <= random.randint(1, 6):
            return torch.zeros(())
        x, copied = queue.pop(0)
        worker = one if random.random() < 0.5 else other
        worker.wait_event(copied)
        with torch.cuda.stream(worker):
            x.record_stream(worker)
            y = x
            for weight in weights:
                y = F.gelu(y @ weight)
            spread = y.std()
            if number % 40 == 0:
                spread.item()
        return spread

    return step


@program(steps=320)
def ppo():
    """Reinforcement learning: 32 small steps in an environment, then four rounds of training on what they gave."""
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 9)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    seen = []

    def step(_):
        with torch.no_grad():
            observed = torch.rand(256, 64, device="cuda")
            output = model(observed)
            action = torch.distributions.Categorical(logits=output[:, :8]).sample()
            seen.append((observed, action, output[:, 8]))
        if len(seen) < 32:
            return output.mean()
        all_observed, actions, values = (torch.cat(parts) for parts in zip(*seen))
        seen.clear()
        advantages = torch.rand_like(values) - values
        for _ in range(4):
            for chosen in torch.randperm(len(all_observed), device="cuda").split(1024):
                output = model(all_observed[chosen])
                policy = torch.distributions.Categorical(logits=output[:, :8])
                loss = (
                    -(policy.log_prob(actions[chosen]) * advantages[chosen]).mean()
                    + F.mse_loss(output[:, 8], advantages[chosen])
                    - 0.01 * policy.entropy().mean()
                )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
        return loss.detach()

    return step


@program(steps=860)
def pointcloud():
    """Points of a scan, gathered by the cells they are in: sizes that depend on the data."""

    def step(_):
        points = torch.rand(random.randint(20_000, 600_000), 3, device="cuda") * 60
        cells = torch.div(points, random.choice([0.5, 1.0, 2.0]), rounding_mode="floor").long()
        keys = cells[:, 0] * 10000 + cells[:, 1] * 100 + cells[:, 2]
        unique, inverse, counts = torch.unique(keys, return_inverse=True, return_counts=True)
        means = torch.zeros(len(unique), 3, device="cuda").index_add_(0, inverse, points) / counts[:, None]
        crowded = means[counts > counts.float().mean()]
        distances = torch.cdist(crowded[:3000], means[:6000])
        nearest = distances.topk(8, largest=False).indices
        features = torch.rand(len(means), 64, device="cuda")
        most = features[nearest.flatten()].view(-1, 8, 64).max(1).values
        kept = torch.nonzero(most.sum(1) > 32).flatten()
        return most[kept].sort(0).values.double().mean()

    return step


@program(steps=3)
def beam():
    """A language model that looks for the likeliest answers: caches that grow and are put in another order."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).cuda().to(torch.bfloat16).eval()

    @torch.inference_mode()
    def step(_):
        shape = (random.randint(1, 6), random.randint(8, 900))
        tokens = torch.randint(0, 16000, shape, device="cuda")
        new, beams = random.randint(4, 64), random.choice([2, 4, 5])
        return model.generate(tokens, max_new_tokens=new, num_beams=beams, pad_token_id=0).double().mean()

    return step


@program(steps=300)
def video3d():
    """Films of any size through convolutions in space and time, with a Fourier transform in the loss."""
    layers = []
    for width, out in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv3d(width, out, 3, padding=1), nn.BatchNorm3d(out), nn.ReLU(), nn.MaxPool3d(2)]
    model = nn.Sequential(*layers).cuda()
    head = nn.Linear(64, 10).cuda()
    optimizer = torch.optim.RMSprop([*model.parameters(), *head.parameters()])

    def step(_):
        count, frames = random.randint(1, 6), random.choice([8, 16, 24])
        high, wide = random.choice([64, 96, 112, 128]), random.choice([64, 96, 112])
        films = torch.rand(count, 3, frames, high, wide, device="cuda")
        found = model(films)
        spectrum = torch.fft.rfftn(films.mean(1), dim=(-3, -2, -1)).abs().mean()
        loss = head(found.mean((2, 3, 4))).logsumexp(1).mean() + spectrum
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
