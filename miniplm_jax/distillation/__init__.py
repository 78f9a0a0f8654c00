"""What a student minimizes beside the plain loss, and what that needs.

Objectives (vanilla_kd, minillm, sparse_kd, token_selection); the rows that a
teacher continued (seqkd_*); its stored distributions (logits_*); the proxy, a
small model of the score (proxy_*).
"""
