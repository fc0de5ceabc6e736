"""What benchmarks.catalogue measures: its entries, the models and inputs they need, and what the fleet is compared
with.
"""
