"""5. Run the model under the plan: adaptive linears, caches, the decode loop, and the trace that leaves this stage."""
