"""Two systems on the same prompts: a plan that is fixed first, paired statistics, and one honest sentence.

``items`` and ``plan`` say what will be compared and how; ``paired`` holds the estimand; ``permutation``, ``mcnemar``,
``ordinal``, ``preference``, ``latency`` and ``cost`` test one kind of score each; ``cluster_bootstrap``,
``score_interval``, ``confidence_sequence`` and ``bounded_sequence`` give intervals; ``equivalence``, ``holm`` and
``false_discovery`` decide; ``sample_size`` and ``clustering`` plan; ``analysis``, ``verdict`` and ``table`` report.
``quality`` scores answers without a model. Import from the module; all of it needs only NumPy.
"""
