"""What a student minimizes beside the plain loss, and what that needs.

objectives  those of methods.py, as a training takes them: vanilla_kd,
minillm, sparse_kd, token_selection
seqkd       the rows that a teacher continued
logits      what a frozen model says of each token, stored
proxy       a small model of the score (regression, what it minimizes)
"""
