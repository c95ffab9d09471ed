"""Recipes to runs: entry points, loop, engine and evaluators."""
