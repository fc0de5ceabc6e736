"""The record of what operators did."""
