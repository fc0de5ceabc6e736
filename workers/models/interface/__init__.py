"""The base classes of models (`Model`, `StepwiseModel`), their options, sample inputs and output files."""
