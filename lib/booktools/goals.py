"""What the benchmark was to reach, and what bounds each work.

The goals were set before the fast paths were written. The texts hold no numbers: those of the page
are from its runs.
"""

SHARE = "share of the limit"
GOALS = {  # work -> way -> (at least or at most, ratio)
    "lstm_window": {
        "autograd through the same steps": ("at least", 3.0),
        "torchopt": ("at least", 3.0),
        "higher": ("at least", 3.0),
        "jax, a jitted scan": ("at least", 2.7),
        SHARE: ("at least", 0.27),
    },
    "lstm_steps": {
        "5 steps": ("at most", 1.15),
        "100 steps": ("at most", 1.15),
        "100 steps, denormals flushed": ("at most", 1.15),
    },
    "lstm_tasks": {"16 tasks at once, forward pass repeated": ("at most", 1.4)},
    "oho_step": {
        "double backward": ("at least", 2.0),
        "the original's way: central differences, copied models": ("at least", 3.0),
        "jax": ("at least", 1.0),
    },
    "oho_sets_4": {"jax": ("at least", 1.0)},
    "oho_sets_8": {"jax": ("at least", 1.0)},
    "smd_look_ahead": {
        "forward mode: vmap(jvp(grad))": ("at least", 2.5),
        "plain autograd": ("at least", 1.2),
    },
}
WHY = {  # work -> what bounds it
    "lstm_window": """\
What bounds it: the matrix products of the two LSTM layers, forward and backward, and the sigmoids
of four gates for each coordinate and step. The plain ways build a graph of small operations, step
by step, and keep what each of them saved. By hand, the window runs without autograd, goes back with
suffix sums of the gradients, and writes into buffers that it made once
([the derivation](api.md)). It takes the coordinates in chunks, so that what one operation of a step
leaves to the next is in the processor's cache. What the way back reads is not: each step has
written it long before, and it comes from main memory. With 20 units to a layer the products are
narrow. Where oneDNN is no faster than BLAS, the lead is smaller. The step of Adam that follows,
on the LSTM's few thousand weights, is the same for every way and is left out: it takes about a
thousandth of the time.""",
    "lstm_steps": """\
Nothing that a step computes depends on the length of the window. What grows with it is the
memory. But what goes back through many steps shrinks on the way, and in a long window with an LSTM
that was not trained yet it falls below the smallest normal number of single precision. Some
processors are slow with such denormal numbers, Intel's among them;
`torch.set_flush_denormal(True)` takes them for zero.""",
    "lstm_tasks": """\
Sixteen tasks are sixteen times the coordinates. Kept whole, their windows would need several
gigabytes; so only the LSTM's inputs are kept, and each chunk of coordinates repeats its forward
pass before it goes back. That is one more of three passes.""",
    "oho_step": """\
What bounds it: a training gradient, two Hessian-vector products and a validation gradient. Each
product is about as much work as a gradient, a plain step is one gradient. All tangents of a
layer's weights meet its input in one matrix product. The rest of the time goes into
passes over the network and over its two tangents, and into the calls of many small operations. jax
compiles the step as a whole. So does torch.compile, which needs tens of seconds for it first and no
line by hand; it does not reach the faster products. The library's stays a page of PyTorch that can
be read.""",
    "oho_sets_4": """\
A set for each layer: a rate and a decay of its own, and exact tangents of both.""",
    "oho_sets_8": """\
A set for each tensor. Each set adds two Hessian-vector products. They share the network's passes
and, in each layer, one matrix product for all tangents, so a step costs less than the products
would one by one.""",
    "smd_look_ahead": """\
What bounds it: one gradient a step on the way out, one Hessian-vector product on the way back, as
in plain autograd; forward mode pays for each knob instead. By hand there are fewer small operations
around them, and the wide products go to the faster library. torch.compile takes all steps as one
computation, for any network, after tens of seconds of compiling for each length of the look-ahead
and each shape of a batch. On the Intel processor, where oneDNN is no faster, it is well ahead.""",
    "trials_small": """\
A small network's step is mostly calls of small operations. One batched pass makes each call once,
for all schedules: so the chapters draw a loss surface.""",
    "trials_large": """\
Here one network's weights fit the processor's cache, and those of all networks do not: a batched
pass moves them through memory at every operation. So look at the row above before you batch large
networks on a processor.""",
}
