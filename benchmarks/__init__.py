"""Measurements that anyone can run: each prints a table against what a user would pick instead."""
