"""calling.py - how a network is run: on a batch, with weights for each example, at a perturbation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import (  # pyright: ignore[reportPrivateImportUsage]
    functional_call,  # pyright: ignore[reportPrivateImportUsage]
    vmap,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from nonsingular.errors import InvalidInput
from nonsingular.network.copies import aliases, first_line
from nonsingular.network.memory import halving, is_out_of_memory
from nonsingular.network.network import Network, load, network_of
from nonsingular.network.one_logit import unwrapped
from nonsingular.network.passes import count
from nonsingular.threat.perturbation import Perturbation

# --- the module on a batch ------------------------------------------------------------------------------------------------


Precision = Literal["medium", "high", "highest"]


def precision() -> Precision | None:
    """That of products of float32 matrices; None where the caller set it for one backend."""
    try:
        return cast(Precision, torch.get_float32_matmul_precision())
    except RuntimeError:
        return None


@contextmanager
def products(wanted: Precision | None) -> Generator[None]:
    """Sets the precision of products of float32 matrices: "medium" to search for points, "highest" to judge them.

    "medium" may round the factors to bfloat16 or TF32, where the machine has units for that; elsewhere torch picks another
    library.  It holds for the whole process inside the context.  Nothing changes where the caller set the precision of one
    backend (torch forbids both).
    """
    before = precision()
    if before is None or wanted is None:
        yield
        return
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _plain_attention() -> Generator[None]:
    """Turns off the fused path of nn.TransformerEncoder and nn.MultiheadAttention in eval mode, which has no rule for vmap."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def outputs(moving: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """(B, K) logits of a network at inputs (B, *input), which its first operation may overwrite.

    A single example is run as a batch of two where the module squeezes a batch of one away.
    Raises InvalidInput, in one line, for any error of its forward but a lack of memory, and unless it returns (B, K) logits.
    """
    given = x.clone() if len(x) == 1 else x
    with _plain_attention():
        try:
            y = moving(x)
        except Exception as e:  # whatever the user's own forward raises
            if is_out_of_memory(e):
                raise
            y = _twice(moving, given) if len(x) == 1 else None
            if y is None:
                said = first_line(e)
                raise InvalidInput(f"the model does not accept inputs of shape {tuple(x.shape)} and {x.dtype}: {said}") from e
        if len(x) == 1 and isinstance(y, Tensor) and (y.dim() != 2 or len(y) != 1):
            y = y if (two := _twice(moving, given)) is None else two
    if not isinstance(y, Tensor):
        raise InvalidInput(
            f"the model returns a {type(y).__name__}, not a tensor; wrap it in a module that returns its (B, K) logits"
        )
    if y.dim() != 2 or len(y) != len(x):
        one = ". With one logit z for two classes: torch.stack([-z, z], 1)" if y.shape == (len(x),) else ""
        raise InvalidInput(
            f"the model returns shape {tuple(y.shape)} for {len(x)} inputs; a classifier returns (B, K) logits with K >= 2{one}"
        )
    return y


def held_at(model: nn.Module, weights: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The network with these weights, by name, instead of its own; differentiable in inputs and weights."""
    if not weights:
        return model
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        moved = copy.deepcopy(model)
        load(moved, weights)
        return moved
    # places are listed one by one, so functional_call must not tie them again: with a submodule under two names it would not
    # restore the weights (torch 2.13)
    module, seen = unwrapped(model)
    places = {place: weights[name] for place, name in aliases(module).items() if name in weights}
    return lambda x: seen(functional_call(module, places, (x,), tie_weights=False))


def gradient(value: Tensor, points: Sequence[Tensor], along: Tensor | None = None) -> list[Tensor]:
    """The gradient of one number with respect to `points`, 0 where it does not depend on them.  InvalidInput if there is none.

    along: the gradient of that number with respect to `value`, which then may have any shape.
    """
    if not value.requires_grad:
        raise InvalidInput(
            "the model's logits carry no gradient with respect to what moves; gradient attacks need a differentiable model (no "
            f"detach, no rounding, no NumPy). {_WITHOUT}"
        )
    try:
        return list(torch.autograd.grad(value, points, along, allow_unused=True, materialize_grads=True))
    except InvalidInput:  # from a backward pass of this file
        raise
    except Exception as e:  # whatever a backward pass of the user's own raises
        if is_out_of_memory(e):
            raise
        raise InvalidInput(f"the gradient of the model's logits cannot be computed: {first_line(e)}. {_WITHOUT}") from e


_WITHOUT = "The attacks 'square' (on inputs) and 'corners' (on weights) need no gradient"


def _twice(moving: Callable[[Tensor], Any], x: Tensor) -> Tensor | None:
    """(1, K) logits of one example, from a batch that holds it twice; None if that fails."""
    try:
        y = moving(torch.cat([x, x]))
    except Exception as e:
        if is_out_of_memory(e):
            raise
        return None
    return y[:1] if isinstance(y, Tensor) and y.dim() == 2 and len(y) == 2 else None


# --- weights for each example ---------------------------------------------------------------------------------------------

Each = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(weights (N, *shape) by name, inputs (N, *input)) -> (N, K) logits, row n at the weights n.  Differentiable in both."""
PROBED = 2
"""Examples on which the ways to run a module with weights for each are tried."""
MOVED = 0.05
"""How far this trial moves weights, as a fraction of the largest in their tensor."""


def per_sample_logits(moving: nn.Module, copies: int = 1) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """(weights of one example, one input) -> (K,) logits, for `vmap`.  The module sees the input `copies` times."""
    module, seen = unwrapped(moving)
    places = aliases(module)

    def logits(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        moved = {place: weights[name] for place, name in places.items() if name in weights}
        # places are listed one by one, so functional_call must not tie them again: with a submodule under two names it
        # would not restore the weights (torch 2.13)
        batch = torch.stack([x] * copies)  # its own memory: the first operation may work in place
        return seen(functional_call(module, moved, (batch,), tie_weights=False))[0]

    return logits


def logits_of_each(model: nn.Module) -> Each:
    """A network with weights for each example: by vmap where that gives the same as the module, else one example after the other.

    The first call decides between the two, once for a network, on different examples and weights.  So attacks and verdicts see
    the same function.  Without weights the module runs on the batch.
    """
    network = network_of(model)
    return network.once(logits_of_each, lambda: _each(network))


def _each(network: Network) -> Each:
    ways = dict[Any, Each]()

    def each(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if not weights or not len(x):
            return outputs(network, x.clone())
        key = x.shape[1:], x.dtype, x.device
        if key not in ways:
            with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):  # a random network may draw
                ways[key] = _way(network, x[:PROBED])(network)
        return ways[key](weights, x)

    return each


def _at_once(moving: nn.Module) -> Each:
    return _vmapped(moving, 1)


def _at_once_doubled(moving: nn.Module) -> Each:
    return _vmapped(moving, 2)


def _vmapped(moving: nn.Module, copies: int) -> Each:
    at_once = vmap(per_sample_logits(moving, copies), randomness="same")

    def each(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        with _plain_attention(), sdpa_kernel(SDPBackend.MATH):  # the only one with a rule for vmap
            return at_once(dict(weights), x)

    return each


def _one_by_one(moving: nn.Module) -> Each:
    def each(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return cast(Tensor, _OneByOne.apply(moving, tuple(weights), x, *weights.values()))

    return each


class _OneByOne(torch.autograd.Function):
    """Writes the weights of each example into the module, of whatever kind; in the backward pass once more."""

    @staticmethod
    def forward(ctx: Any, moving: nn.Module, names: Sequence[str], x: Tensor, *weights: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.moving, ctx.names = moving, names
        ctx.save_for_backward(x, *weights)
        with _kept(moving, names) as live:
            return torch.cat([outputs(moving, _loaded(live, weights, x, i)) for i in range(len(x))])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        total = [torch.zeros_like(t) if asked else None for t, asked in zip((x, *weights), needed, strict=True)]
        with _kept(ctx.moving, ctx.names) as live:
            for i in range(len(x)):
                point = _loaded(live, weights, x, i)
                asked = [t for t, asked in zip((point, *live), needed, strict=True) if asked]
                with torch.enable_grad():
                    for t in asked:
                        t.requires_grad_()
                    out = outputs(ctx.moving, point.clone())
                    value = (out * g[i : i + 1]).sum()
                found = iter(gradient(value, asked))
                for t in total:
                    if t is not None:
                        t[i] = next(found).view_as(t[i])
                for t in asked:
                    t.requires_grad_(False)
        return None, None, *total


@contextmanager
def _kept(moving: nn.Module, names: Sequence[str]) -> Generator[list[Tensor]]:
    """The parameters of these names; their values are restored afterwards."""
    params = dict(moving.named_parameters())
    live: list[Tensor] = [params[name] for name in names]
    before = [p.detach().clone() for p in live]
    try:
        yield live
    finally:
        with torch.no_grad():
            for p, w in zip(live, before, strict=True):
                p.requires_grad_(False).copy_(w)


def _loaded(live: Sequence[Tensor], weights: Sequence[Tensor], x: Tensor, i: int) -> Tensor:
    """(1, *input) a copy of input i, with its weights in place."""
    with torch.no_grad():
        for p, w in zip(live, weights, strict=True):
            p.copy_(w[i])
    return x[i : i + 1].detach().clone()


def _way(moving: nn.Module, x: Tensor) -> Callable[[nn.Module], Each]:
    """How to run this module with weights for each example: the first of three ways that agrees with the last one.

    Logits and gradients must agree.  A module without a gradient in any way runs one by one, and the attack reports it.
    """
    generator = torch.Generator(x.device).manual_seed(0)
    x, weights = x.detach(), dict[str, Tensor]()
    for name, p in moving.named_parameters():
        if p.is_floating_point() and p.numel():
            noise = torch.randn(len(x), *p.shape, generator=generator, device=x.device).to(p)
            weights[name] = p.detach() + MOVED * p.detach().abs().amax() * noise
    with torch.inference_mode(False), products("highest"):
        try:
            want = _measured(_one_by_one(moving), weights, x)
        except InvalidInput:
            return _one_by_one
        for way in (_at_once, _at_once_doubled):
            copied = copy.deepcopy(moving)  # what fails may leave its own tensors in a module
            before = _held(copied)
            try:
                found = _measured(way(copied), weights, x)
            except Exception as e:  # no rule for vmap, control flow that asks for a value, ...
                if is_out_of_memory(e):
                    raise
                continue
            if all(map(same, found, want)) and not _keeps(copied, before):
                return way
    return _one_by_one


def _measured(each: Each, weights: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and the gradient of a combination of them: that of the inputs, and of all weights together."""
    with torch.no_grad():
        logits = each(weights, x)
    with torch.enable_grad():
        points = [t.clone().requires_grad_() for t in (x, *weights.values())]
        again = each(dict(zip(weights, points[1:], strict=True)), points[0])
        of_x, *of_weights = gradient((again * torch.arange(1, again.shape[1] + 1).to(again)).sum(), points)
    return logits, of_x, torch.cat([g.flatten() for g in of_weights])


def _keeps(module: nn.Module, before: Sequence[Tensor]) -> bool:
    """Whether the module holds tensors that it did not hold `before`.  Under vmap they would belong to all examples at once."""
    known = set(map(id, before))
    return any(id(t) not in known for t in _held(module))


def _held(module: nn.Module) -> list[Tensor]:
    """The tensors of a module other than its parameters."""
    own = (value for part in unwrapped(module)[0].modules() for value in [*vars(part).values(), *part.buffers(recurse=False)])
    return [value for value in own if isinstance(value, Tensor)]


def same(logits: Tensor, others: Tensor) -> bool:
    """Whether two computations of the same result differ by no more than rounding."""
    if logits.shape != others.shape:
        return False
    finite = others[torch.isfinite(others)].abs()
    size = finite.max().item() if len(finite) else 0.0
    part = 0.05 if torch.finfo(others.dtype).bits == 16 else 1e-3
    return torch.allclose(logits.double(), others.double(), rtol=0, atol=part * size, equal_nan=True)


@contextmanager
def recording() -> Generator[None]:
    """Gradients on, whatever mode the caller is in (`no_grad`, `inference_mode`)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def threads(n: int) -> Generator[None]:
    """Sets the number of torch's threads inside the context.  Raises InvalidInput below 1."""
    if n < 1:
        raise InvalidInput(f"threads is {n}; give 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def logits_at(model: nn.Module, point: Perturbation, chunk: int = 1024) -> Tensor:
    """(B, K) logits of `model` at a perturbed input with the perturbed weights written out: the logits that decide verdicts."""
    network = network_of(model)
    own = point.scope == "sample" and bool(point.weights)

    def run(size: int) -> Tensor:
        count(forward=len(point.x))
        if own:
            each = logits_of_each(network)
            parts = (slice(i, i + size) for i in range(0, max(1, len(point.x)), size))
            return torch.cat([each({n: w[at] for n, w in point.weights.items()}, point.x[at]) for at in parts])
        with network.lent(point.weights) if point.weights else nullcontext(network) as moved:
            return torch.cat([outputs(moved, part.clone()) for part in point.x.split(size)])  # it may work in place

    with torch.no_grad(), products("highest"):
        return halving(run, chunk)
