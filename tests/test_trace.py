"""What a graph read off a module computes: the module's own outputs, at other inputs and weights, or a refusal by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import nonsingular as ns
import operator_nets
from nonsingular.bounds.interval import region
from nonsingular.errors import UnsupportedModel
from nonsingular.network.calling import logits_at
from nonsingular.network.dense import dense_chain
from nonsingular.network.graph import trace_graph
from sampling import first
from soundness import check_sound


class Net(nn.Module):
    """`f(self, x)` with two layers, a matrix, a vector, a scalar and a buffer at hand.  x: (N, 4) -> (N, 3)."""

    def __init__(self, f, shape=(4,)) -> None:
        super().__init__()
        self.f, self.shape = f, shape
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.W = nn.Parameter(torch.randn(4, 6) / 2)
        self.v = nn.Parameter(torch.randn(6) / 2)
        self.g = nn.Parameter(torch.tensor(0.7))
        self.T = nn.Parameter(torch.randn(2, 3, 3) / 2)
        self.prelu = nn.PReLU(6)
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.position = nn.Embedding(4, 2)
        self.register_buffer("mask", torch.tensor([True, False, True, False, False, True]))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        return self.f(self, x)


def statement(text: str):
    """A forward from lines that work on h = self.a(x) (N, 6)."""
    scope: dict = {"torch": torch, "F": F, "nn": nn}
    lines = ["def f(self, x):", "    h = self.a(x)", *(f"    {line}" for line in text.split("; ")), "    return self.b(h)"]
    exec("\n".join(lines), scope)
    return scope["f"]


IN_PLACE = [
    "F.hardtanh(h[:, :1], -0.3, 0.3, inplace=True)",
    "h[:, 0] += 1",
    "h[:, 0] *= -2",
    "h.view(-1, 2, 3).relu_()",
    "h.view(-1, 2, 3)[:, 1].relu_()",
    "torch.relu_(h[:, 1:4])",
    "h[:, self.mask] = 0",
    "h[:, 1:3] = h[:, 3:5]",
    "h[:, 1:3] = h[:, 2:4].clone()",
    "h[:, 0] = 0.5",
    "h[..., -1] = h[..., 0]",
    "h[:, 2:4] = x[:, :2] * 2",
    "h[:, ::2] = x[:, :3]",
    "h.view(-1, 2, 3).transpose(1, 2).add_(torch.arange(6.0, dtype=x.dtype).view(3, 2))",
    "h.view(-1, 2, 3).mT.mul_(0.5)",
    "torch.add(h, 1, out=h)",
    "z = h; h = h + F.relu(h, inplace=True); h = h + z",
    "y = F.relu(h, inplace=True); h = y + h",
    "a, b = h.chunk(2, 1); a.relu_(); b.sub_(a)",
    "a, b, c = h.split([1, 2, 3], 1); b.clamp_(0, 0.2); h = h + torch.cat([a, b, c], 1)",
    "for t in h.unbind(1)[:3]: t.tanh_()",
    "x.clamp_(0, 0.3); h = h + self.a(x)",
    "x[:, 0] = 0; h = self.a(x)",
    "h.detach()[:, :2].zero_()",
    "h.data.relu_()",
    "h[:, 3:].copy_(x[:, :3])",
    "h[:, 1].fill_(0.25)",
    "p = torch.zeros(len(x), 6, dtype=x.dtype); p[:, 1:5] = x; h = h + p",
    "p = h.new_ones(len(h), 8); p[:, 1:7] = h; h = p[:, 2:]",
    "p = torch.zeros_like(h); q = p[:, :2]; p[:, 1:] += h[:, 1:]; h = F.relu(h) + torch.cat([q, q, q], 1)",
    "e = torch.empty_like(h); e.copy_(h); e[:, 0].neg_(); h = e",
    "m = torch.ones(6, dtype=x.dtype); m[2] = 0; h = h * m; m[3] = 5",
    "h = h.masked_fill_(self.mask, 0.1)",
    "h[:, [4, 0]] = h[:, [1, 2]]",
]


def outputs(model: nn.Module, weights: dict, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return functional_call(model, weights, (x.clone(),))


def check_followed(model: nn.Module, shape=(4,)) -> None:
    """The graph gives the module's outputs at inputs and weights that it was not read at."""
    model = model.double().eval()
    graph = trace_graph(model, shape)
    for n in (1, 7):
        x = torch.randn(n, *shape, dtype=torch.float64)
        moved = {k: p.detach() + 0.3 * torch.randn_like(p) for k, p in model.named_parameters()}
        shifted = type(graph)(graph.nodes, moved, graph.head)
        torch.testing.assert_close(shifted.outputs(x), outputs(model, moved, x))


@pytest.mark.parametrize("text", IN_PLACE)
def test_what_is_written_in_place_is_followed(text):
    torch.manual_seed(0)
    check_followed(Net(statement(text)))


COMMON = [
    "h = h.float() if x.dtype == torch.float32 else h.double()",
    "h = h.to(x.dtype).to(x.device).type_as(x).contiguous().clone().detach()",
    "assert x.dim() == 2 and x.shape[-1] == 4 and len(x) == x.size(0); h = h if h.ndim == 2 else None",
    "h = h.view(x.size(0), -1).view(h.shape[0], 2, 3).reshape(len(h), -1)",
    "h = torch.max(h, h.flip(1))",
    "h = torch.min(h, self.a(-x)); h = torch.maximum(h, torch.tensor(0.1, dtype=x.dtype))",
    "h = torch.max(h.view(-1, 6, 1), 2)[0] + h.view(-1, 2, 3).max(2, keepdim=True).values.repeat(1, 1, 3).flatten(1)",
    "h = h - h.min(1, keepdim=True).values",
    "h = x @ self.W + self.v",
    "h = x @ self.a.weight.t() + self.a.bias",
    "h = torch.matmul(x, self.W).relu() - self.v",
    "h = torch.mm(x, self.a.weight.T)",
    "h = torch.addmm(self.v, x, self.W, beta=0.5, alpha=2)",
    "h = F.linear(x, self.W.t(), self.v)",
    "h = F.linear(x, self.W.permute(1, 0)[:, :]); h = F.linear(h, self.b.weight[:, :]); h = torch.cat([h, h], 1)",
    "h = torch.einsum('bi,ij->bj', x, self.W)",
    "h = torch.einsum('bi,ij', x, self.W)",
    "h = torch.einsum('...i,ij->...j', x, self.W)",
    "h = torch.einsum('bgi,gij->bgj', h.view(-1, 2, 3), self.T).flatten(1)",
    "h = torch.matmul(h.view(-1, 2, 1, 3), self.T).flatten(1)",
    "h = torch.matmul(self.T[0], h.view(-1, 3, 2)).flatten(1)",
    "h = torch.bmm(h.view(-1, 2, 3), self.T[1].expand(len(h), 3, 3)).flatten(1)",
    "h = torch.baddbmm(self.T[0, :2], h.view(-1, 2, 3), self.T[1].expand(len(h), 3, 3)).flatten(1)",
    "h = h @ self.T.flatten()[:6]; h = torch.stack([h, 2 * h, -h, h, h, h], 1)",
    "a, b, c = h.chunk(3, 1); h = torch.cat([c, a, b], dim=1)",
    "a, b = torch.split(h, [2, 4], dim=1); h = torch.cat((b, a), -1)",
    "h = torch.stack(h.unbind(1), 1)",
    "h = h[:, :1].expand(-1, 6) + h[:, :1].repeat(1, 6) + torch.tile(h[:, :2], (1, 3)) + h[:, :3].repeat_interleave(2, dim=1)",
    "h = self.v - h; h = h - self.v; h = self.g - h",
    "h = h * self.g + self.g",
    "h = self.prelu(h)",
    "h = F.prelu(h, self.g.view(1))",
    "h = F.leaky_relu(h, 1.5); h = F.leaky_relu(h, -0.2)",
    "h = F.rrelu(h)",
    "h = F.threshold(h, 0.1, 0.1)",
    "h = F.pad(h, (1, 2), value=0.7)[:, :6] + F.pad(h, (-1, 1))",
    "h = F.pad(h[:, None], (2, 1), mode='reflect')[:, 0, :6] + F.pad(h[:, None], (2, 1), mode='circular')[:, 0, 3:]",
    "h = F.pad(h[:, None], (2, 1), mode='replicate')[:, 0, :6]; h = nn.ConstantPad1d((1, 0), 3.0)(h)[:, :6]",
    "h = torch.flip(h, [1]); h = torch.roll(h, 2, 1); h = h.narrow(1, 1, 3); h = torch.cat([h, h], 1)",
    "h = h.index_select(1, torch.tensor([3, 0, 5, 5, 1, 2])); h = h[:, [2, 1, 0, 3, 4, 5]]; h = h[..., None][..., 0]",
    "h = torch.gather(h, 1, torch.tensor([[3, 0, 5, 5, 1, 2]]).expand(len(h), 6))",
    "h = torch.where(self.mask, h, -h); h = torch.where(self.mask, torch.zeros(()), h); h = h.masked_fill(self.mask, 2.0)",
    "h = torch.zeros_like(h) + h + torch.arange(6) / 3",
    "h = h + torch.linspace(0, 1, 6).to(h).expand(len(h), -1)",
    "p = self.position(torch.arange(3)); h = (h.view(-1, 3, 2) + p).flatten(1)",
    "h = torch.cat([self.v[:2].expand(len(x), 2), h[:, 2:5], torch.ones(len(x), 1)], 1)",
    "t = self.T[0, :1].expand(len(x), -1, -1); h = torch.cat([t, h.view(-1, 2, 3)[:, 1:]], 1).flatten(1)",
    "h = h.sum(1, keepdim=True) - h.mean(dim=-1, keepdim=True) * h.new_ones(6)",
    "h = self.conv(h[:, None]).mean(1)",
    "h = h + self.a.weight.detach()[:, 0]",
    "dead = self.T.sum(); h = h + 0; dead2 = h * 3",
    "h = h.permute(0, 1).unsqueeze(-1).squeeze(-1).movedim(1, -1).swapaxes(1, 1)",
    "h = torch.clamp(h, min=-0.2).clamp_max(0.4) + h.clip(0, 1)",
    "h = h.abs() - h.neg() + torch.subtract(h, 1) + h.add(x[:, :1], alpha=3)",
    "h = F.dropout(h, 0.5, self.training); h = h.tril() if h.dim() == 3 else h",
    "print(h.shape, end=''); h = h.requires_grad_(False) if h.requires_grad else h",
    "with torch.no_grad(): h = F.relu(h)",
    "h = h[:, torch.arange(6) % 2 == 0].repeat(1, 2)",
    "h = h[:, :1] * self.v",
    "h = torch.einsum('...i,ij', x, self.W)",
    "h = torch.einsum('...,i->...i', h[:, 0], self.v)",
    "h = F.interpolate(h[:, None], scale_factor=2, mode='linear')[:, 0, ::2]",
    "h = torch.addmm(self.v, x, self.W, beta=0)",
    "h = torch.baddbmm(h.new_ones(1, 2, 3), batch1=h.view(-1, 2, 3), batch2=self.T[1].expand(len(h), 3, 3)).flatten(1)",
    "h = torch.concat([h[:, :3], h[:, 3:]], axis=1)",
    "h = F.avg_pool1d(h[:, None], 2, 1, 1)[:, 0, :6]",
]


@pytest.mark.parametrize("text", COMMON)
def test_common_code_is_followed(text):
    torch.manual_seed(1)
    check_followed(Net(statement(text)))


REFUSED = {
    "no rule for equal at node": "h = h if torch.equal(h, h) else -h",
    "no rule for ge at node": "assert (h >= -100).all()",
    "no rule for gt at node": "h[h > 0] = 0",
    "no rule for item at node": "h = h * self.g.item()",
    "no rule for float at node": "h = h * float(self.g)",
    "no rule for numpy at node": "h = torch.from_numpy(h.detach().numpy())",
    "no rule for int at node 'int': it rounds|no rule for int": "h = h.int() + h",
    "no rule for half at node 'half': it rounds": "h = h.half().to(x.dtype)",
    "no rule for add_ at node 'add_': it changes 'count'": "self.count += 1",
    "no rule for copy_ at node 'copy_': it changes 'count'": "self.count.copy_(torch.ones(()))",
    "no rule for mul_ at node 'mul_': it changes 'v'": "self.v.data.mul_(1); h = h + self.v",
    "it changes 'mask'": "self.mask[:2] = True",
    "changes 'count'": "self.count = self.count + 1",
    "draws random numbers": "h = h + torch.rand(6) / 100",
    "no rule for dropout at node 'dropout': dropout is on": "h = F.dropout(h)",
    "no rule for mul_ at node": "h.t().mul_(0.5)",
    "no rule for setitem at node .*batch": "h[0] = 0",
    "no rule for setitem at node .*the batch": "h[:, 0] = torch.arange(5.0)",
    "no rule for flip at node": "h = h.flip(0)",
    "no rule for roll at node": "h = h.roll(1)",
    "no rule for mean at node": "h = h - h.mean()",
    "no rule for sub at node .*across|it does not keep|takes a part": "h = h - h[:1]",
    "no rule for max at node": "h = h - h.max()",
    "no rule for normalize at node": "h = F.normalize(h)",
    "no rule for matmul at node .*before it does not keep the batch": "h = (self.W.T[:, :4] @ h.T[:4]).T",
    "no rule for div at node .*divisor": "h = h / self.g",
    "no rule for linear at node .*computed": "h = F.linear(x, 2 * self.a.weight)",
    "no rule for threshold|no rule for _threshold": "h = F.threshold(h, 0.1, 0.0)",
    "no rule for einsum at node": "h = torch.einsum('bi,bi->i', h, h).expand(5, 6)",
    "no rule for einsum at node .*across": "h = h + torch.einsum('bi,bj->j', h, torch.eye(5, 6, dtype=x.dtype))",
    "no rule for topk at node": "h = h.topk(6).values",
    "no rule for cumprod at node": "h = h.cumprod(1)",
    "no rule for squeeze_ at node|no rule for unsqueeze_ at node": "h.unsqueeze_(1).squeeze_(1)",
    "no rule for pow at node": "h = h**2.5",
    "on the values of its inputs, on their type, on the size": "h = h + 1 if len(h) > 1 else h",
    "no parameter .*is not among the model's|is not among": "h = h + OTHER[:6]",
    "do not give": "h = h + float(torch.is_grad_enabled())",
    "infinite": "h = h.masked_fill(self.mask, float('-inf'))",
    "different for each example": "h = h + torch.arange(5.0)[:, None]",
    "outlives": "KEPT.add_(1); h = h + KEPT",
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_followed_is_refused_by_name(message):
    model = Net(statement(REFUSED[message]))
    model.f.__globals__.update(OTHER=nn.Parameter(torch.ones(9)), KEPT=torch.zeros(6))
    with pytest.raises(UnsupportedModel, match=message):
        trace_graph(model.eval(), (4,))


REFUSED_ARGUMENTS = [  # of operations that are known
    ("use eval mode", "h = F.rrelu(h, training=True)"),
    ("the negative slope is nan", "h = F.leaky_relu(h, float('nan'))"),
    ("alpha is -1", "h = F.elu(h, -1.0)"),
    ("alpha is -1", "h = F.celu(h, -1.0)"),
    ("the threshold 5", "h = F.softplus(h, 1.0, 5.0)"),
    ("the wrong way round", "h = torch.clamp(h, 1.0, 0.0)"),
    ("its limits must be numbers", "h = h.clamp(torch.zeros(6))"),
    ("only two plain operands", "h = torch.div(h, 2, rounding_mode='floor')"),
    ("different numbers of dimensions", "t = h.view(-1, 2, 3)[:, :1].expand(-1, 5, 3); h = (h[:, :3] + t).flatten(1)[:, :6]"),
    ("its factor is 0", "h = torch.add(h, self.v, alpha=0)"),
    ("different for each example", "h = h + self.W[[0, 1, 2, 3, 0]]"),
    ("different for each example", "h = torch.cat([h[:, :5], torch.arange(5.0)[:, None]], 1)"),
    ("different for each example", "h = torch.cat([h[:, :5], self.W[[0, 1, 2, 3, 0], :1]], 1)"),
    ("different for each example", "h = torch.bmm(h[:, None, :5], self.W[[0, 1, 2, 3, 0], :5, None].expand(5, 5, 6))[:, 0]"),
    ("only numbers, buffers and signals", "h = torch.where(self.mask, h, self.v)"),
    ("works across the batch", "h = torch.matmul(torch.ones(5, 5, dtype=x.dtype), h)"),
    ("works across the batch", "h = torch.einsum('bj,mb->mj', h, torch.ones(5, 5, dtype=x.dtype))"),
    ("works across the batch", "h = torch.einsum('...bi,ij->...bj', x, self.W)"),
    ("works across the batch", "h = torch.tril(h)"),
    ("its product does not contain the signal", "h = torch.addmm(h, torch.ones(5, 4, dtype=x.dtype), self.W)"),
    ("it adds another signal", "h = torch.addmm(h, x, self.W)"),
    ("only two operands", "h = torch.einsum('bi,bi,bi->bi', h, h, h)"),
    ("does not keep the batch", "h = h.view(3, -1)[:, :6]"),
    ("only named dimensions", "h = h - h.amax()"),
    ("only named dimensions", "h = h - h.amax(0)"),
    ("mode 'bicubic'", "h = F.interpolate(h.view(-1, 1, 2, 3), scale_factor=2, mode='bicubic').flatten(1)[:, :6]"),
    ("the divisor is -1", "h = F.avg_pool2d(h.view(-1, 1, 2, 3), 1, divisor_override=-1).flatten(1)"),
    ("it needs a batch dimension", "h = F.adaptive_avg_pool1d(h, 6)"),
    ("indices and inputs", "h = F.max_pool1d(h, 1)"),
    ("it joins along the batch", "h = torch.cat([h, h])[:5]"),
    ("only signals, constants and parameters", "h = torch.cat([h[:, :5], (2 * self.v).expand(5, 6)[:, :1]], 1)"),
    ("it pads the batch", "h = F.pad(h, (0, 0, 0, 1))[:5]"),
    ("an argument besides the first", "h = h.index_select(1, self.v.argsort())"),
    ("it works in place on an argument", "p, q = torch.zeros(2, 5); torch.aminmax(h, dim=1, out=(p, q)); h = h + p[:, None]"),
    ("use eval mode and running statistics", "h = F.batch_norm(h, torch.zeros(6), torch.ones(6), training=True)"),
    ("outlives the forward", "w = 2 * self.W; w.add_(1); h = x @ w"),
    ("it writes a parameter into the signal", "h.copy_(self.v)"),
    ("different constants for each example", "h.copy_(torch.arange(30.0).view(5, 6))"),
    ("fewer dimensions", "t = h.view(-1, 2, 3)[:, :1].repeat(1, 5, 1); t.copy_(x[:, :3]); h = t.flatten(1)[:, :6]"),
    ("not know it in place", "h.sqrt_()"),
    ("where it writes depends", "h[:, self.v.argmax()] = 0"),
    ("across the batch", "h[:2] = 0.0"),
    ("not example by example", "p = torch.zeros(2, 5, 6, dtype=x.dtype); p[0] = h; h = p.sum(0)"),
    ("writes across the batch", "p = torch.zeros(5, 6, dtype=x.dtype); p.view(-1)[:5] = x[:, 0]; h = h + p"),
]


@pytest.mark.parametrize("message, text", REFUSED_ARGUMENTS)
def test_arguments_that_no_rule_covers_are_refused_by_name(message, text):
    with pytest.raises(UnsupportedModel, match=message):
        trace_graph(Net(statement(text)).eval(), (4,))


class Stateful(nn.Module):
    """Adds `step` more at every call."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.inside, self.calls, self.step = nn.Linear(4, 3), 0, step

    def forward(self, x):
        self.calls += 1
        return self.inside(x) + self.step * self.calls


class Opposite(nn.Module):
    """Correct where it is read, not where the examples are: 1 is added to the other class beyond 10."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(2, 2, bias=False)
        self.inside.weight = nn.Parameter(torch.eye(2))

    def forward(self, x):
        with torch._C.DisableTorchFunction():  # what tracing cannot see
            far = (x[:, :1].detach() > 10).to(x)
        return self.inside(x) - far * torch.tensor([20.0, 0.0]).to(x)


def test_state_of_any_kind_is_noticed():
    with pytest.raises(UnsupportedModel, match="what it was called with before"):
        trace_graph(Stateful(1.0).eval(), (4,))
    trace_graph(Stateful(0.0).eval(), (4,))


@pytest.mark.parametrize("method", ["interval", "crown", "best"])
def test_no_example_is_verified_that_the_module_gets_wrong_at_x_or_near(method):
    """At (11, 0) the module says class 1.  At (9, 0) it is right, but not at the corner (12, 0)."""
    model, y = Opposite().eval(), torch.tensor([0])
    for x, eps in ((11.0, 0.0), (9.0, 3.0)):
        with pytest.raises(UnsupportedModel):
            ns.certify(model, torch.tensor([[x, 0.0]]), y, ns.JointBall(eps, 0.0, None), bound=method)


def test_a_forward_that_depends_on_the_type_of_its_inputs_is_refused():
    """Bounds are computed in float64, where this one is another function."""
    model = Net(lambda self, x: self.b(self.a(x)) + (1.0 if x.dtype == torch.float64 else 0.0) * torch.arange(3)).eval()
    with pytest.raises(UnsupportedModel, match="on their type"):
        ns.certify(model, torch.rand(2, 4), torch.tensor([0, 1]), ns.JointBall(0.1, 0.0), bound="crown")


def test_the_surface_notices_too():
    model, data = Opposite().eval(), (torch.tensor([[9.0, 0.0]]), torch.tensor([0]))
    with pytest.raises(UnsupportedModel):
        ns.evaluate(model, data, eps_x=[0.0, 3.0], eps_w=[0.0], domain=None, certify="crown")


def test_hooks_run_and_are_followed():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    check_followed(model)


HEADED = {
    "log_softmax": lambda z: F.log_softmax(z, dim=1),
    "softmax": lambda z: z.softmax(-1),
    "log of softmax": lambda z: torch.log(F.softmax(z, 1)),
    "flattened": lambda z: F.log_softmax(z[:, :, None, None], 1).flatten(1),
    "squeezed": lambda z: torch.softmax(z.view(-1, 3, 1), 1).squeeze(2),
}


@pytest.mark.parametrize("name", HEADED)
def test_a_last_softmax_is_certified_by_the_logits_under_it(name):
    """The same examples are verified, and the margins are those of what the module returns."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    model = Net(lambda self, x: HEADED[name](self.plain(x)))
    model.plain = plain
    model = model.double().eval()
    x = torch.rand(12, 4, dtype=torch.float64)
    y, ball = plain(x).argmax(1), ns.JointBall(0.02, 0.02)
    want, found = (ns.certify(m, x, y, ball, bound="crown") for m in (plain, model))
    assert found.verified.tolist() == want.verified.tolist()
    assert 0 < want.accuracy < 1
    if "log" in name or name == "flattened":
        torch.testing.assert_close(found.margins, want.margins)
    z = logits_at(model, ns.joint_pgd(plain, x, y, ball, steps=10, scope="sample"))
    assert (found.margins <= (z.gather(1, y[:, None]) - z) + 1e-9).all()
    if name == "softmax":  # margins of probabilities, attacked and certified
        assert ns.decide(model, x, y, ball, parts=50).status == ns.decide(plain, x, y, ball, parts=50).status
        ns.evaluate(model, (x, y), eps_x=[0, 0.02], eps_w=[0, 0.02], certify="crown")


def test_a_softmax_over_the_batch_is_refused():
    for f in (lambda z: z.softmax(0), lambda z: z.log_softmax(0)):
        model = Net(lambda self, x, f=f: f(self.b(self.a(x))))
        with pytest.raises(UnsupportedModel, match="softmax"):
            trace_graph(model.eval(), (4,))


def test_casts_in_forward_are_followed_in_float64_and_real_rounding_is_refused():
    torch.manual_seed(0)
    net = Net(lambda self, x: self.b(F.relu(self.a(x.float()).to(torch.float32)))).eval()
    plain = Net(lambda self, x: self.b(F.relu(self.a(x)))).eval()
    plain.load_state_dict(net.state_dict())
    x, y, ball = torch.rand(4, 4), torch.tensor([0, 1, 2, 0]), ns.JointBall(0.1, 0.01)
    for method in ("interval", "crown"):
        torch.testing.assert_close(*(ns.certify(m, x, y, ball, bound=method).margins for m in (net, plain)))
    assert ns.decide(net, x, y, ball, parts=20).status == ns.decide(plain, x, y, ball, parts=20).status
    rounded = Net(lambda self, x: self.b(self.a(x).bfloat16().float())).eval()
    with pytest.raises(UnsupportedModel, match="bfloat16"):
        ns.certify(rounded, x, y, ball)


MOVING = [
    "h = x @ self.W - self.v",
    "h = F.relu(self.v - x @ self.W)",
    "h = torch.einsum('bgi,gij->bgj', h.view(-1, 2, 3), self.T).flatten(1).relu()",
    "h = self.prelu(h)",
    "h = F.leaky_relu(h, 1.5) - self.g * h",
    "h = F.relu(h * self.g + self.g)",
    "h = torch.max(h, h.flip(1)) - self.v",
    "h[:, 1:5] *= -0.5; h = h.relu()",
    "h = torch.cat([self.v[:2].expand(len(x), 2), h[:, 2:].relu()], 1)",
    "h = F.linear(F.relu(x), self.W.t(), self.v).relu()",
]


@pytest.mark.parametrize("text", MOVING)
def test_bounds_hold_when_the_new_parameters_move(text):
    torch.manual_seed(2)
    model = Net(statement(text)).double().eval()
    with torch.no_grad():
        model.prelu.weight.copy_(torch.tensor([-0.1, 0.0, 0.25, 0.9, 1.1, 0.02]))
    x, y = torch.randn(2, 4, dtype=torch.float64), torch.tensor([0, 2])
    for eps in (0.02, 0.2):
        check_sound(model, region(model, x, y, ns.JointBall(0.1, eps, None, moves="all")), y)


def test_prelu_by_hand():
    """z = x in [-2, -1], slope 0.5 +- 0.1: prelu in [-1.2, -0.4]; against a logit of 0 the margin is at least -1.2."""
    model = nn.Sequential(nn.PReLU(init=0.5), nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
    x, y = torch.tensor([[-1.5]]).double(), torch.tensor([0])
    for method in ("interval", "crown", "best"):
        found = ns.certify(model, x, y, ns.JointBall(0.5, {"0.weight": 0.1}, None), bound=method).margins
        torch.testing.assert_close(found, torch.tensor([[0.0, -1.2]]).double())


def test_the_chain_of_a_dense_network_is_held_against_the_module():
    """Read by torch.fx, which takes the branch on `training` for one on the signal where a mode hides it."""
    torch.manual_seed(0)

    class Beyond(nn.Sequential):
        def forward(self, x):
            return super().forward(x if isinstance(x, torch.fx.Proxy) else x.clamp(max=0.5))

    model = Beyond(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    assert len(dense_chain(model).weights) == 2  # no shape is known here, so no point to compare at
    x, y, ball = torch.rand(5, 4), torch.zeros(5, dtype=torch.long), ns.JointBall(0.1, 0.01)
    with pytest.raises(UnsupportedModel, match="do not give the model's outputs"):
        ns.certify(model, x, y, ball, bound="theorem1")
    assert (ns.certify(model, x, y, ball).margins <= 10).all()  # 'best' goes on with what does follow it
    for attack in (ns.neuron_pgd,):
        with pytest.raises(UnsupportedModel, match="do not give the model's outputs"):
            attack(model, x, y, ball)


def test_a_part_of_the_signal_is_no_size():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.a(x)
            h[:, :1]
            F.hardtanh(h[:, :1], -0.1, 0.1, inplace=True)
            return self.b(F.relu(h))

    with pytest.raises(UnsupportedModel):
        dense_chain(Skips().eval())


@pytest.mark.parametrize("seed", first(2, range(4)))
def test_random_networks_of_the_operators_are_bounded(seed):
    assert operator_nets.check(seed)["violations"] == []


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_many_random_networks_of_the_operators_are_bounded(block):
    """5,000 networks in all."""
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        assert operator_nets.check(seed)["violations"] == []
