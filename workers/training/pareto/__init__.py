"""`argosy tune` over more than backends: precisions, batches, threads and compressed variants, as a Pareto front."""
