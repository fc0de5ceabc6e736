"""Explanations of labels by integrated gradients (Sundararajan et al., 2017), in steps between a model's micro-batches.

An item with an explanation takes about sixty times the device time of an item without. In a micro-batch it would delay
all others. It goes to the model's *explaining* side instead, a stepwise model with its own name (``text/explain``). The
explaining side first answers like the model itself, on torch, and then advances all explanations a little in each step.
"""
