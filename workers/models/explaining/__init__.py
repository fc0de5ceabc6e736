"""Why a label: integrated gradients (Sundararajan et al., 2017), step by step beside the micro-batches of the model explained.

An item that wants an explanation takes some sixty times the device's time of one that does not. So it is no row of a micro-batch,
which would hold up everybody: it goes to the model's *explaining* side, a stepwise model of its own name (``text/explain``), which
answers it first as the model itself would, on torch, and then moves all explanations on the device a little with each step.
"""
